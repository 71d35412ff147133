"""Which files of a diffusers component folder hold its weights: safetensors only, whole or in shards."""

from __future__ import annotations

import json
from pathlib import Path

from studio.pipelines.errors import BaseModelError

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
"""Formats that can run code when read, and are refused."""

_STEMS = ("diffusion_pytorch_model", "model")
_VARIANTS = (None, "fp16", "bf16")


def find_weight_files(component_dir: Path) -> tuple[str | None, tuple[Path, ...]]:
    """The variant ("fp16", or None for the plain files) and the weight files of a component.

    Raises:
        BaseModelError: if there are none, only pickled ones, or shards are missing.
    """
    for variant in _VARIANTS:
        for stem in _STEMS:
            whole = component_dir / (f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors")
            if whole.is_file():
                return variant, (whole,)
            index = component_dir / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
            if index.is_file():
                return variant, _shards(index)
    pickled = sorted(path.name for path in component_dir.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise BaseModelError(
            f"{component_dir / pickled[0]} is not a safetensors file. Reading {Path(pickled[0]).suffix} files can run "
            "code hidden in them, so they are refused: convert the model to safetensors, or get it in that form."
        )
    raise BaseModelError(f"The base model's {component_dir.name!r} has no weights: {component_dir} holds no .safetensors file.")


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaseModelError(f"{index} is not a readable index of weight files.") from error
    shards = tuple(index.parent / str(name) for name in names)
    for shard in shards:
        if shard.parent.resolve() != index.parent.resolve() or not shard.is_file():
            raise BaseModelError(f"{index} names {shard.name!r}, which is missing: the copy of the base model is incomplete.")
    return shards
