"""How much memory a composition will take, counted beforehand on the meta device, and the most sparing way that fits.

Counted are the weights of the base model and of the adapters, and the most that is alive at once of everything between:
activations, graphs for gradients, kept text, attention maps; or, where that is more, of turning latents into pictures. What
counts is bytes of tensors: what a library or a memory allocator takes on top is not in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from studio.composition.drawing import Compiled, batch_request
from studio.composition.scene import Scene
from studio.composition.thrift import Thrift, checkpointed, ladder
from studio.pipelines.base_model import BaseModel, decode_latents
from studio.pipelines.counting import counting
from studio.pipelines.denoising.dry_run import DryModel, dry_run, on_meta
from studio.pipelines.errors import UserError

_STEPS = 10
"""Steps of a dry run at the most: passes come up again and again."""
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes: of all weights, of the passes of the denoiser at their peak, and of decoding at its peak."""

    weights: int
    passes: int
    decoding: int

    @property
    def peak(self) -> int:
        """The most at once."""
        return self.weights + max(self.passes, self.decoding)


@dataclass(frozen=True)
class Fitting:
    """A way to draw that fits, what it needs, what the way that was asked for would need, and what is done about it."""

    thrift: Thrift
    need: MemoryNeed
    asked: MemoryNeed
    notes: tuple[str, ...]


def predict_memory(compiled: Compiled, thrift: Thrift) -> MemoryNeed:
    """What drawing `compiled` that way will take at its peak; nothing is drawn."""
    scene = compiled.scene
    base = scene.base
    twin = replace(base, unet=on_meta(base.unet), vae=on_meta(base.vae))
    request = batch_request(scene, scene.request.seeds[: thrift.batch_size], thrift)
    request = replace(request, num_steps=min(request.num_steps, _STEPS))
    with checkpointed(twin.unet, thrift.checkpointing):
        passes = dry_run(DryModel(base=twin, device=base.device, runs=1), request, compiled.strategy).peak_bytes
    with torch.no_grad(), counting() as counter:
        decode_latents(twin, torch.empty_like(request.noise, device="meta"))
    # The loop's own latents, predictions and what the scheduler makes of them: small beside the rest.
    return MemoryNeed(_weights(scene), passes + 4 * _size(request.noise), counter.peak_bytes)


def fit_memory(compiled: Compiled, asked: Thrift, limit: int) -> Fitting:
    """The least sparing way, from `asked` on, that takes no more than `limit` bytes.

    Raises:
        UserError: none does.
    """
    steps = ladder(asked)
    needs = {asked: predict_memory(compiled, asked)}
    if needs[asked].peak <= limit:
        return Fitting(asked, needs[asked], needs[asked], ())
    needs[steps[-1]] = predict_memory(compiled, steps[-1])
    if needs[steps[-1]].peak > limit:
        raise UserError(_too_little(compiled.scene, needs[steps[-1]], limit))
    low, high = 0, len(steps) - 1  # each step takes no more than the one before: half the rest at a time
    while high - low > 1:
        middle = (low + high) // 2
        needs[steps[middle]] = predict_memory(compiled, steps[middle])
        low, high = (low, middle) if needs[steps[middle]].peak <= limit else (middle, high)
    chosen = steps[high]
    done = "; ".join(chosen.sentences(asked))
    note = f"{in_words(needs[asked].peak)} would be needed and {in_words(limit)} are allowed: {done}."
    return Fitting(chosen, needs[chosen], needs[asked], (note,))


def parse_memory(text: str, device: torch.device) -> int:
    """Bytes of "4GB", "512 MiB" or "auto": what is free on the device.

    Raises:
        UserError: it is neither.
    """
    if text.strip().lower() == "auto":
        return free_memory(device)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS or float(match.group(1)) == 0:
        raise UserError(f"--memory-limit {text!r} should be a size, such as 4GB or 900MB, or auto.")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def free_memory(device: torch.device) -> int:
    """Bytes that are free, and those that this process has already: the model is among them."""
    if device.type == "cuda":
        free_there, _ = torch.cuda.mem_get_info(device)
        return free_there + torch.cuda.memory_reserved(device)
    free = _kilobytes(Path("/proc/meminfo"), "MemAvailable:")
    own = _kilobytes(Path("/proc/self/status"), "VmRSS:")
    if free is None or own is None or device.type != "cpu":
        raise UserError("It is not known here how much memory is free; say how much may be used, as --memory-limit 4GB.")
    return 1024 * (free + own)


def in_words(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _too_little(scene: Scene, least: MemoryNeed, limit: int) -> str:
    return (
        f"Drawing this takes {in_words(least.peak)} at the least, {in_words(least.weights)} of it for weights, and "
        f"{in_words(limit)} are allowed. Draw smaller pictures than {scene.request.width}×{scene.request.height}, or use "
        "--dtype bfloat16, fewer adapters or another strategy."
    )


def _weights(scene: Scene) -> int:
    """Of the base model and of every adapter, each tensor once."""
    adapters = (each.adapter.named_tensors().values() for each in scene.concepts)
    tensors = {tensor.data_ptr(): _size(tensor) for tensor in chain(_tensors_of(scene.base), *adapters)}
    return sum(tensors.values())


def _tensors_of(base: BaseModel) -> list[Tensor]:
    modules = [*base.components().values(), base.vae]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _kilobytes(path: Path, key: str) -> int | None:
    """The number behind `key` in one of Linux's own files."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), None)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
