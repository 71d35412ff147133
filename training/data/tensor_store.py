"""Tensors that are dear to make, kept by the hash of all that decides them: in memory, and on disk if asked to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from studio.pipelines.files import atomic_save_safetensors

Tensors = Mapping[str, Tensor]


def store_key(*parts: object) -> str:
    """SHA-256 (64 hex digits) over `parts`, each as text."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


class TensorStore:
    """A dictionary from key to named CPU tensors that makes what it lacks.

    Args:
        folder: where entries are files, or None for memory only.
        in_memory: whether entries are kept in memory too; with neither nothing is kept.
    """

    def __init__(self, folder: Path | None = None, *, in_memory: bool = True) -> None:
        self.folder = folder
        self.in_memory = in_memory
        self._entries: dict[str, Tensors] = {}

    def get(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The entry of `key`, made by `make` if there is none, or none that is whole.

        Raises:
            OutputError: the entry cannot be written.
        """
        if key in self._entries:
            return self._entries[key]
        entry = None if self.folder is None else self._read(key)
        if entry is None:
            entry = {name: tensor.detach().to("cpu") for name, tensor in make().items()}
            if self.folder is not None:
                atomic_save_safetensors(self._path(key), entry, {"entry": _digest(key, entry)})
        if self.in_memory:
            self._entries[key] = entry
        return entry

    def clear_memory(self) -> None:
        """Forget what is in memory; files stay."""
        self._entries.clear()

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> Tensors | None:
        """The entry on disk; None if there is none, or it is damaged and has to be made again."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                entry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
                metadata = file.metadata()
        except (SafetensorError, OSError, ValueError):
            return None
        whole = metadata is not None and metadata.get("entry") == _digest(key, entry)
        return entry if whole else None


def _digest(key: str, tensors: Tensors) -> str:
    """One value for key and content: safetensors writes two in random order, and equal entries should be equal files."""
    digest = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
