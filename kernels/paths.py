"""Which way an op is computed: its plain reference, the fast torch path, or Triton.

`STUDIO_PLAIN_KERNELS=1` takes the references everywhere; `STUDIO_KERNELS=plain`, `torch` or `triton` pins one path. Otherwise
the committed table `paths.json`, written by `studio bench kernels --tune`, says which path was the quickest on a device at a
size; what is not in it takes the fast torch path. Triton is taken where it compiles: on a GPU.
"""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import torch
from torch import Tensor

Path = Literal["plain", "torch", "triton"]
TABLE = "paths.json"


def path_of(op: str, like: Tensor, *sizes: int) -> Path:
    """The path of `op` for tensors of the type and device of `like`.

    Args:
        sizes: what the op's cost depends on, as (tokens, width); the table knows them rounded up to powers of two.
    """
    pinned = pinned_path()
    if pinned is not None:
        return pinned if pinned != "triton" or can_run_triton(like) else "torch"
    found = table().get(key_of(op, device_name(like.device), like.dtype, *sizes), "torch")
    return found if found != "triton" or can_run_triton(like) else "torch"


def pinned_path() -> Path | None:
    """What the environment asks for; None for the table's choice.

    Raises:
        ValueError: it asks for a path that there is not.
    """
    if os.environ.get("STUDIO_PLAIN_KERNELS", "") not in ("", "0"):
        return "plain"
    asked = os.environ.get("STUDIO_KERNELS", "")
    for path in get_args(Path):
        if asked == path:
            return path
    if asked in ("", "auto"):
        return None
    raise ValueError(f"STUDIO_KERNELS is auto, {', '.join(get_args(Path))}; not {asked!r}.")


def can_run_triton(like: Tensor) -> bool:
    """Whether Triton can compute with `like`: on a GPU, or anywhere under its interpreter."""
    if not has_triton():
        return False
    return like.device.type == "cuda" or (os.environ.get("TRITON_INTERPRET", "") == "1" and like.device.type == "cpu")


@cache
def has_triton() -> bool:
    """Whether the package is there."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def key_of(op: str, device: str, dtype: torch.dtype, *sizes: int) -> str:
    """A line of the table, as `attention_with_map/cpu/bfloat16/4096/64`."""
    return "/".join([op, device, str(dtype).removeprefix("torch."), *(str(_rounded_up(size)) for size in sizes)])


@cache
def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def table() -> dict[str, Path]:
    """The committed choices; empty where the file is missing."""
    file = files("studio.kernels").joinpath(TABLE)
    if not file.is_file():
        return {}
    entries: dict[str, Path] = json.loads(file.read_text(encoding="utf-8"))["paths"]
    return entries


def _rounded_up(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
