"""The ops that have several paths, at the sizes of Stable Diffusion's layers, for `studio bench kernels --tune`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from studio.kernels.attention_with_map import attention_with_map
from studio.kernels.gated import gated_gelu
from studio.kernels.paths import can_run_triton, device_name, key_of

Paths = dict[str, Callable[[], Any]]


def candidates(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Paths]]:
    """(line of the table, path -> what to time)."""
    name = device_name(device)
    for heads, length, depth in ((8, 4096, 40), (8, 1024, 80), (8, 256, 160), (10, 4096, 64), (20, 1024, 64)):
        query, key, value = (_random(1, heads, n, depth, device=device, dtype=dtype) for n in (length, 77, 77))
        columns = torch.eye(77, device=device)[:, :4].contiguous()
        line = key_of("attention_with_map", name, dtype, length, depth)
        yield line, _by_path(attention_with_map, (query, key, value, columns), query)
    for tokens, width in ((4096, 5120), (1024, 10240), (4096, 2560)):
        projection = _random(tokens, width, device=device, dtype=dtype)
        yield key_of("gated_gelu", name, dtype, tokens, width), _by_path(gated_gelu, (projection,), projection)


def _by_path(run: Callable[..., Any], arguments: tuple[Any, ...], like: Tensor) -> Paths:
    paths = ["torch", "plain", *(["triton"] if can_run_triton(like) else [])]
    return {path: _pinned(run, arguments, path) for path in paths}


def _pinned(run: Callable[..., Any], arguments: tuple[Any, ...], path: str) -> Callable[[], Any]:
    def call() -> Any:
        before = os.environ.get("STUDIO_KERNELS")
        os.environ["STUDIO_KERNELS"] = path
        try:
            return run(*arguments)
        finally:
            if before is None:
                del os.environ["STUDIO_KERNELS"]
            else:
                os.environ["STUDIO_KERNELS"] = before

    return call


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)
