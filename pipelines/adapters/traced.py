"""What a compiler sees of layers with adapters: an operator, a few tensors, and numbers that no switch of adapters changes.

`torch.compile` watches everything that it reads in Python and compiles again where it changes, also where one object stands in
another's place. So a compiled layer has one forward for good, a `TracedForward`, and a switch changes what that one shows:
factors and strengths are numbers in its tensors, and ranks are padded to few sizes.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from studio.kernels.library import joint_lora

LEAST_RANK = 16
"""Ranks are padded to 16, 32, 64 and so on in compiled blocks."""

_NAME = "_traced_forward"
_compiled: WeakSet[nn.Module] = WeakSet()


class TracedSite(NamedTuple):
    """A joint product for a compiler: tensors as for `joint_lora_linear`, and its layout."""

    rows: Tensor
    ups: Tensor
    bias: Tensor | None
    width: int
    num_layers: int
    active: tuple[int, ...]


class TracedForward:
    """The forward of a compiled layer, whichever adapters are on it.

    Attributes:
        patched: what it stands for, which runs outside of compiled blocks. is_joint: whether the joint product is all of it.
    """

    def __init__(self) -> None:
        self.patched: Any = None
        self.is_joint = False
        self.num_layers = 0

    def show(self, patched: Any) -> None:
        """Stand for `patched` from now on."""
        self.patched = patched
        site: TracedSite | None = None if patched.site is None else patched.site.traced
        self.is_joint = site is not None and not patched.rest
        if site is not None:
            self.rows, self.ups, self.bias, self.width, self.num_layers, self.active = site

    def hide(self) -> None:
        """Stand for nothing; let what was shown go."""
        self.patched = None
        self.is_joint = False

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output with all that is added."""
        if not is_tracing():
            output: Tensor = self.patched(x)
            return output
        if self.is_joint and self.num_layers == 1 and x.dtype == self.rows.dtype:
            return self.joint_outputs(x)[0]
        result: Tensor = self.patched.sum(x)
        return result

    def joint_outputs(self, x: Tensor) -> list[Tensor]:
        """The outputs of all layers of the product, `[…, N]` each."""
        joint = joint_lora(x, self.rows, self.ups, self.bias, self.width, self.num_layers, list(self.active))
        return [joint[..., layer * self.width : (layer + 1) * self.width] for layer in range(self.num_layers)]


def traced_outputs(modules: list[Any], x: Tensor) -> tuple[Tensor, ...]:
    """What layers make of `x` under a compiler: as one product where they are one."""
    first = modules[0].__dict__.get("forward")
    if isinstance(first, TracedForward) and first.is_joint and first.num_layers == len(modules) and x.dtype == first.rows.dtype:
        return tuple(first.joint_outputs(x))
    return tuple(module(x) for module in modules)


def traced_forward(module: nn.Module) -> TracedForward:
    """The one of a layer, which is made when it is first asked for."""
    found: TracedForward = module.__dict__.setdefault(_NAME, TracedForward())
    return found


def behind(forward: Any) -> Any:
    """What a traced forward shows; any other as it is."""
    return forward.patched if isinstance(forward, TracedForward) else forward


def mark_compiled(component: nn.Module) -> None:
    """Note that blocks of a model are compiled; what is opened on it from now on is made for a compiler."""
    _compiled.add(component)


def is_compiled(component: nn.Module) -> bool:
    """Whether `mark_compiled` has noted it."""
    return component in _compiled


def is_tracing() -> bool:
    """Whether a compiler is reading this now."""
    return torch.compiler.is_compiling()
