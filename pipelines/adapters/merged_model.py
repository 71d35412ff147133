"""A base model with adapters merged in, as a folder in the diffusers layout."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.merging import merge_all_into
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import AdapterMismatchError, OutputError
from studio.pipelines.families import ModelFamily, family_named
from studio.pipelines.files import atomic_save_safetensors, atomic_write_json, output_errors


def save_merged(
    base: BaseModel, adapters: Sequence[tuple[Adapter, float]], folder: Path | str, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write `base` with W + Σ strength · ΔW for weights to `folder`, which diffusers loads with `from_pretrained`.

    `base` should be loaded in float32; its weights are the same afterwards. `dtype` is the type of the file's weights.

    Raises:
        AdapterMismatchError: an adapter is for another family, or does not fit.
        OutputError: the folder is there already and not empty, or cannot be written; nothing is left of it then.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; choose another name for the merged model, or remove it first.")
    part = folder.parent / f".{folder.name}.{secrets.token_hex(6)}.part"
    with ExitStack() as merges, output_errors(folder):
        for adapter, _ in adapters:
            require_family(adapter, base.family)
        merges.enter_context(merge_all_into(base.components(), adapters))
        merges.callback(shutil.rmtree, part, ignore_errors=True)
        base.diffusers_pipeline().save_pretrained(part, safe_serialization=True)
        _store_as(part, dtype)
        _load_text_encoders_as_float32(part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)


def require_family(adapter: Adapter, family: ModelFamily) -> None:
    """`AdapterMismatchError` if `adapter` is known to be for another family than `family`."""
    if adapter.info.family not in (None, family.name):
        made_for = family_named(adapter.info.family).title
        raise AdapterMismatchError(
            f"The adapter {adapter.info.name!r} was made for {made_for} and the base model is {family.title}; "
            f"choose a base model of its family with --base."
        )


def _store_as(folder: Path, dtype: torch.dtype) -> None:
    """Round every weight file's floating-point tensors to `dtype`."""
    for path in sorted(folder.glob("*/*.safetensors")):
        tensors = load_file(path)
        stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        atomic_save_safetensors(path, stored, {"format": "pt"})


def _load_text_encoders_as_float32(folder: Path) -> None:
    """transformers would load a text encoder in its file's type, beside a UNet in float32."""
    for path in sorted(folder.glob("text_encoder*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        atomic_write_json(path, {**config, "dtype": "float32"})
