"""Our products beside LyCORIS' fused kernels (4.1 and later), where that package is installed and can compute on the device.

LyCORIS adds a branch to the base product; ours is one with it. So both sides are the layer's output with its adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
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
    for tokens, width, side in shapes:
        x, weight = _random(tokens, width, device=device, dtype=dtype), _random(width, width, device=device, dtype=dtype)
        factors = {
            "LoRA": (_random(RANK, width, device=device, dtype=dtype), _random(width, RANK, device=device, dtype=dtype)),
            "Kronecker": (
                _random(side, side, device=device, dtype=dtype),
                _random(width // side, width // side, device=device, dtype=dtype),
            ),
        }
        base = _bound(F.linear, x, weight)
        for kind, (first, second) in factors.items():
            ours, theirs, plain = _ARMS[kind]
            joined = torch.cat([weight, first]) if kind == "LoRA" else weight
            run = _bound(theirs, x, weight, first, second)
            if not _computes(run, plain(x, weight, first, second)):
                continue
            own = _bound(ours, x, joined, first, second)
            arms = {"base": base, "base again": base, "ours": own, "LyCORIS": run}
            results = _results(own, plain, (x, weight, first, second))
            bars = (Bar("ours", "LyCORIS", most=1.1),)
            yield Case(f"linear with {kind}, LyCORIS beside", f"{tokens}×{width}", arms, bars, results)


def _our_lora(x: Tensor, joined: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return joint_lora_linear(x, joined, up[None], JointLayout(len(up), 1, (0,), len(down)))[0]


def _our_kronecker(x: Tensor, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return kronecker_linear_added(F.linear(x, weight), x, first, second)


def _their_lora(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return F.linear(x, weight) + _branch("locon")(x, None, down, up, None)


def _their_kronecker(x: Tensor, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return F.linear(x, weight) + _branch("lokr")(x, None, first, None, None, second, None, None, None)


def _plain_lora(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return reference_lora_linear(x, weight, None, [(down, up, 1.0)])


def _plain_kronecker(x: Tensor, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return F.linear(x, weight) + reference_kronecker_linear(x, first, second)


_Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_ARMS: dict[str, tuple[_Layer, _Layer, _Layer]] = {
    "LoRA": (_our_lora, _their_lora, _plain_lora),
    "Kronecker": (_our_kronecker, _their_kronecker, _plain_kronecker),
}


@cache
def _branch(name: str) -> Callable[..., Tensor]:
    """LyCORIS' function for the branch; `ImportError` where the package is not there."""
    found: Callable[..., Tensor] = import_module(f"lycoris.functional.{name}").bypass_forward_diff
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
