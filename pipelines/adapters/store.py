"""A thousand adapters at hand: files on the disk, mapped into memory when one is wanted, and the recently used ones ready
on the device. Both levels have a budget of bytes (S-LoRA, Sheng et al. 2023, arXiv 2311.03285, keeps adapters so)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.files import load_adapter
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.byte_lru import ByteLRU
from studio.pipelines.errors import AdapterFileError, MissingFileError

MEBIBYTE = 2**20


@dataclass(frozen=True)
class StoreCounts:
    """How the store has fared: found on the device, found in memory, read from the disk; and the bytes it holds."""

    on_device: int
    in_memory: int
    from_disk: int
    device_bytes: int
    memory_bytes: int


class AdapterStore:
    """Adapters by the hash of their file.

    Args:
        device, dtype: where and as what they are used.
        device_bytes, memory_bytes: the budgets of the two levels.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        device_bytes: int = 1024 * MEBIBYTE,
        memory_bytes: int = 2048 * MEBIBYTE,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self._ready: ByteLRU[Adapter] = ByteLRU(device_bytes, adapter_bytes)
        self._read: ByteLRU[Adapter] = ByteLRU(memory_bytes, adapter_bytes)

    def get(self, path: Path, sha256: str | None = None) -> Adapter:
        """The adapter in a file, ready to be used: the same object as long as it is kept.

        Args:
            sha256: of the file that is meant; it is checked when the file is read.

        Raises:
            MissingFileError: there is no file. AdapterFileError: it is another one, or cannot be read.
        """
        key = sha256 if sha256 is not None else self._hash(path)
        return self._ready.get(key, lambda: self._on_device(self._read.get(key, lambda: self._checked(path, key))))

    def counts(self) -> StoreCounts:
        """How the store has fared since it was made."""
        return StoreCounts(
            on_device=self._ready.hits,
            in_memory=self._read.hits,
            from_disk=self._read.misses,
            device_bytes=self._ready.num_bytes,
            memory_bytes=self._read.num_bytes,
        )

    def _checked(self, path: Path, sha256: str) -> Adapter:
        if self._hash(path) != sha256:
            raise AdapterFileError(f"{path} is not the file that is meant: its SHA-256 does not begin with {sha256[:10]}.")
        return load_adapter(path)

    def _on_device(self, adapter: Adapter) -> Adapter:
        return adapter.to(self.device, self.dtype)

    @staticmethod
    def _hash(path: Path) -> str:
        try:
            return file_sha256(path)
        except OSError as error:
            raise MissingFileError(f"There is no adapter file {path}.") from error


def adapter_bytes(adapter: Adapter) -> int:
    """What its tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.named_tensors().values())
