"""Our products beside LyCORIS' fused kernels (4.1 and later), where that package is installed and can compute on the device.

LyCORIS adds a branch to the base product; ours is one with it. So both sides are the layer's output with its adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.bench.case import Bar, Case
from studio.kernels.joint_layout import JointLayout
from studio.kernels.joint_lora import joint_lora_linear, reference_lora_linear
from studio.kernels.kronecker import kronecker_linear_added, reference_kronecker_linear

SHAPES = ((8192, 640, 20), (2048, 1280, 32))
"""(tokens, width, side of the Kronecker product's first factor) of SDXL's attention layers at B = 2."""

RANK = 16


def lycoris_cases(device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> Iterator[Case]:
    """A linear layer with a LoRA, and with a Kronecker adapter; none where LyCORIS cannot compute it."""
    lora, lokr = _branch("locon"), _branch("lokr")
    for tokens, width, side in shapes:
        x, weight = _random(tokens, width, device=device, dtype=dtype), _random(width, width, device=device, dtype=dtype)
        down, up = _random(RANK, width, device=device, dtype=dtype), _random(width, RANK, device=device, dtype=dtype)
        first = _random(side, side, device=device, dtype=dtype)
        second = _random(width // side, width // side, device=device, dtype=dtype)
        joint, layout = torch.cat([weight, down]), JointLayout(width, 1, (0,), RANK)
        base = _bound(F.linear, x, weight)
        theirs = {
            "LoRA": lambda x=x, w=weight, d=down, u=up: F.linear(x, w) + lora(x, None, d, u, None),
            "Kronecker": lambda x=x, w=weight, a=first, b=second: (
                F.linear(x, w) + lokr(x, None, a, None, None, b, None, None, None)
            ),
        }
        ours: dict[str, Callable[[], Any]] = {
            "LoRA": lambda x=x, r=joint, u=up[None], own=layout: joint_lora_linear(x, r, u, own)[0],
            "Kronecker": lambda x=x, w=weight, a=first, b=second: kronecker_linear_added(F.linear(x, w), x, a, b),
        }
        plain: dict[str, Callable[..., Tensor]] = {
            "LoRA": lambda x, w, d, u, a, b: reference_lora_linear(x, w, None, [(d, u, 1.0)]),
            "Kronecker": lambda x, w, d, u, a, b: F.linear(x, w) + reference_kronecker_linear(x, a, b),
        }
        tensors = (x, weight, down, up, first, second)
        for kind, run in theirs.items():
            if _computes(run, plain[kind](*tensors)):
                arms = {"base": base, "base again": base, "ours": ours[kind], "LyCORIS": run}
                yield Case(
                    f"linear with {kind}, LyCORIS beside",
                    f"{tokens}×{width}",
                    arms,
                    (Bar("ours", "LyCORIS", most=1.1),),
                    _results(ours[kind], plain[kind], tensors),
                )


def _branch(name: str) -> Callable[..., Tensor]:
    """LyCORIS' function for the branch; one that raises where the package is not there."""
    try:
        found: Callable[..., Tensor] = import_module(f"lycoris.functional.{name}").bypass_forward_diff
    except ImportError as error:
        reason = error

        def missing(*arguments: Any) -> Tensor:
            raise reason

        return missing
    return found


def _computes(run: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether it is what we mean, here: kinds, versions and devices differ."""
    try:
        found = run()
    except Exception:  # whatever a foreign library throws when it cannot
        return False
    return bool((found.float() - expected.float()).norm() <= 0.05 * expected.float().norm())


def _results(
    ours: Callable[[], Tensor], plain: Callable[..., Tensor], tensors: tuple[Tensor, ...]
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    return lambda: (ours(), plain(*tensors), plain(*(tensor.double() for tensor in tensors)))


def _bound(run: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: run(*arguments)


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape, device=device) * shape[-1] ** -0.5).to(dtype)
