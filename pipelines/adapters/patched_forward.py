"""A layer's forward with what adapters add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.kernels.paths import pinned_path
from studio.pipelines.adapters.entries import Entry
from studio.pipelines.adapters.folding import Merging, folded_entries, folded_weight, run_with
from studio.pipelines.adapters.joint_site import JointSite, can_be_joint, write
from studio.pipelines.adapters.joint_weights import can_join_together, has_own_forward
from studio.pipelines.adapters.patches.base import Adding, BoundPatch
from studio.pipelines.adapters.patches.lora import BoundLoRA
from studio.pipelines.adapters.routing import RouteWeight
from studio.pipelines.adapters.sites import Place
from studio.pipelines.adapters.traced import behind


class PatchedForward:
    """A layer's forward that adds what patches add. It replaces `forward` on the instance, so hooks still run.

    Attributes:
        site: the joint product that this layer is part of; None if it computes a sum.
        peers: all such products of the same opening, which are written together.
        weight: with changes folded in; None without.
    """

    def __init__(
        self, module: nn.Module, original: Callable[[Tensor], Tensor], entries: tuple[Entry, ...], merging: Merging
    ) -> None:
        self.module = module
        self.original = original
        self.entries = entries
        self.merging = merging
        self.site: JointSite | None = None
        self.peers: list[JointSite] = []
        self.is_convolution = isinstance(module, nn.Conv2d)
        folded = folded_entries(module, original, entries, merging)
        self.added = [entry for entry in entries if entry not in folded]
        self.needs_base_out = any(entry.needs_base_out for entry in self.added)
        self.rest = [entry for entry in self.added if not isinstance(entry.bound, BoundLoRA)]
        self.weight = folded_weight(module, folded) if folded else None

    @classmethod
    def extending(cls, module: nn.Module, entries: tuple[Entry, ...], merging: Merging) -> PatchedForward:
        """Over the module's present forward; a patched one is extended, so that all see the same unpatched output."""
        present = behind(module.forward)
        if isinstance(present, cls):
            return cls(module, present.original, (*present.entries, *entries), merging)
        return cls(module, present, entries, merging)

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output with all that is added."""
        site = self.site
        if site is not None and len(site.modules) == 1 and site.runs(x):
            self.bring_up_to_date()
            return self.finished(site.run(x)[0], x)
        return self.sum(x)

    def sum(self, x: Tensor) -> Tensor:
        """The same without the joint product, one change after the other."""
        output = self.original(x) if self.weight is None else run_with(self.module, self.weight, x)
        return self._plus_all(output, x, self._without_bias(output) if self.needs_base_out else output, self.added)

    def bring_up_to_date(self) -> None:
        """Write the factors of all that have changed, or were overwritten by another opening."""
        assert self.site is not None
        if not self.site.is_current():
            write([peer for peer in self.peers if not peer.is_current()])

    def finished(self, output: Tensor, x: Tensor) -> Tensor:
        """The joint product's output with what is not in it."""
        base_out = self._without_bias(self.original(x)) if self.needs_base_out else output
        return self._plus_all(output, x, base_out, self.rest)

    def _plus_all(self, output: Tensor, x: Tensor, base_out: Tensor, entries: Sequence[Entry]) -> Tensor:
        for entry in entries:
            bound, weight = entry.bound, entry.weight
            if isinstance(bound, Adding) and not self.is_convolution and weight.chosen is None and x.dtype == output.dtype:
                factor = weight.factor(output, self.is_convolution)
                if not isinstance(factor, Tensor):
                    output = bound.added_to(output, x, factor)
                    continue
            output = _plus(output, x, base_out, bound, weight, self.is_convolution)
        return output

    def _without_bias(self, output: Tensor) -> Tensor:
        bias = self.module.bias
        if not isinstance(bias, Tensor):
            return output
        bias = bias.to(output.dtype)
        return output - (bias[:, None, None] if self.is_convolution else bias)


def joint_site(
    place: Place, forwards: Sequence[PatchedForward], shared: dict[tuple[Any, ...], Tensor], *, is_compiled: bool = False
) -> JointSite | None:
    """The joint product of a place's layers, if they and the LoRAs on them can be one, and nothing has changed the weight."""
    if pinned_path() == "plain":
        return None
    loras = [[entry for entry in forward.added if isinstance(entry.bound, BoundLoRA)] for forward in forwards]
    is_plain = all(has_own_forward(forward.module, forward.original) for forward in forwards)
    is_folded = any(forward.weight is not None for forward in forwards)
    if not is_plain or is_folded or not can_be_joint([entry for own in loras for entry in own]):
        return None
    return JointSite(place, loras, shared, is_compiled=is_compiled) if can_join_together(place.modules) else None


def _plus(output: Tensor, x: Tensor, base_out: Tensor, bound: BoundPatch, weight: RouteWeight, is_convolution: bool) -> Tensor:
    """output + route ⊙ Δ(x); rows that the route does not name are not computed and stay as they are, bit for bit."""
    factor = weight.factor(output, is_convolution)
    if weight.chosen is None:
        delta = bound.forward_delta(x, base_out).to(output.dtype)
        return output + factor * delta if isinstance(factor, Tensor) else torch.add(output, delta, alpha=factor)
    chosen = weight.chosen.to(output.device)
    delta = bound.forward_delta(x[chosen], base_out[chosen]).to(output.dtype)
    rows_factor = factor[chosen] if isinstance(factor, Tensor) and factor.shape[0] == output.shape[0] else factor
    return output.index_add(0, chosen, rows_factor * delta)
