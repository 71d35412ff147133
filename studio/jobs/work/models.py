"""What a warm worker keeps: base models and adapters, each within a budget of bytes."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import torch

from studio.jobs.specs import AdapterChoice, Precision
from studio.library.library import Library
from studio.pipelines.adapters import Adapter
from studio.pipelines.adapters.store import AdapterStore
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.byte_lru import ByteLRU
from studio.pipelines.errors import MissingFileError, UserError
from studio.pipelines.pictures import AdapterUse, lora_short_hash


class Models:
    """Bases and adapters on one device.

    Args:
        base_bytes: budget for base models; by default half of the device's memory.
    """

    def __init__(self, library: Library, device: str, base_bytes: int | None = None) -> None:
        self.library = library
        self.device = placed(device)
        budget = _half_of_memory(self.device) if base_bytes is None else base_bytes
        self._bases: ByteLRU[BaseModel] = ByteLRU(budget, base_bytes_of)
        self._stores: dict[torch.dtype, AdapterStore] = {}

    def base(self, spec: str, precision: Precision) -> BaseModel:
        """A base model, ready; errors as in `load_base`."""
        dtype = self.dtype(precision)
        evicted = self._bases.evictions
        model = self._bases.get((spec, dtype), lambda: load_base(spec, dtype=dtype, device=self.device))
        if self._bases.evictions != evicted:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return model

    def adapter(self, choice: AdapterChoice, precision: Precision) -> Adapter:
        """An adapter, ready; errors as in `AdapterStore.get`."""
        dtype = self.dtype(precision)
        store = self._stores.setdefault(dtype, AdapterStore(self.device, dtype))
        return store.get(self.path(choice), choice.sha256)

    def path(self, choice: AdapterChoice) -> Path:
        """Where the adapter's file is now."""
        path, _ = self.library.resolve(choice.adapter)
        if not path.is_file():
            raise MissingFileError(f"There is no adapter file {path}.")
        return path

    def use(self, choice: AdapterChoice, role: str | None = None) -> AdapterUse:
        """The adapter as pictures' records keep it, by the library's name for it."""
        path = self.path(choice)
        item = self.library.catalogue.find(choice.sha256 or "")
        name = path.stem if item is None else item.name
        assert choice.sha256 is not None
        return AdapterUse(name=name, strength=choice.strength, sha256=choice.sha256, short_hash=lora_short_hash(path), role=role)

    def dtype(self, precision: Precision) -> torch.dtype:
        """The type of weights that a word means on this device; see `studio generate --dtype`."""
        if precision == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        chosen: torch.dtype = getattr(torch, precision)
        return chosen


def placed(device: str) -> torch.device:
    """The device by its name, which is there. Raises UserError when it is not."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"There is no device {device!r} here; `studio doctor` shows which there are.") from error
    return place


def base_bytes_of(base: BaseModel) -> int:
    """What a base model's weights take."""
    modules = (base.unet, base.vae, *base.text_encoders)
    return sum(tensor.numel() * tensor.element_size() for module in modules for tensor in module.state_dict().values())


def _half_of_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1]) // 2
    return int(psutil.virtual_memory().total) // 2
