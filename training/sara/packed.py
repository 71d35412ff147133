"""Unstructured backpropagation: chosen entries of many tensors as one flat parameter (SaRA, arXiv 2409.06633, section 3.4).

How the gradient gets there. While a `PackedWeights` is attached, each chosen tensor is shadowed in its module by a tensor
that shares its memory and has a history: the layer computes the gradient of the dense weight as always, the history's
backward gathers the chosen entries and lets go of the dense gradient at once, and the parts of all tensors are joined into
the gradient of one leaf, `delta`. So autograd itself brings it there, once per backward pass, and everything that looks at
parameters sees an ordinary one: clipping, loss scaling, accumulation, gradient checkpointing, an average of the weights, and
DistributedDataParallel, which reduces it over the processes like any other. The base's parameters stay what and where they
are (in `_parameters`, hence in `state_dict()`), never require gradients, and have no `.grad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from studio.kernels.sparse_update import gather, scatter_
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.pipelines.adapters.patches.sparse import digest_of
from studio.training.sara.selection import Selected


@dataclass(frozen=True, eq=False)
class Target:
    """One tensor's part of the packed vector.

    Attributes:
        selected: the tensor and its chosen entries. start, end: its part is `delta[start:end]`.
        original: the base's own values there, in the base's type.
        samples: of the whole tensor, by which the base is known again. digest: of the positions.
    """

    selected: Selected
    start: int
    end: int
    original: Tensor
    samples: BaseSamples
    digest: str

    @property
    def part(self) -> slice:
        """Where it stands in the packed vector."""
        return slice(self.start, self.end)


class PackedWeights(nn.Module):
    """The trainable entries of one or several models: parameter = base + delta at the chosen positions.

    Attributes:
        delta: `[K]` float32, the only parameter; at first zero, so that the model is the base.
        targets: what is chosen of each tensor, in order.
    """

    delta: nn.Parameter

    def __init__(self, selected: Iterable[Selected], roots: Sequence[nn.Module]) -> None:
        """`roots`: the models, whose forward pass brings the weights up to date first."""
        super().__init__()
        targets: list[Target] = []
        start = 0
        for each in selected:
            original = each.parameter.detach().reshape(-1)[each.indices].clone()
            samples, digest = BaseSamples.of(each.parameter), digest_of(each.indices)
            targets.append(Target(each, start, start + len(original), original, samples, digest))
            start += len(original)
        assert targets, "nothing is selected"
        self.targets = tuple(targets)
        self.delta = nn.Parameter(torch.zeros(start, device=targets[0].original.device))
        self._roots = tuple(roots)
        self._settled: Tensor | None = None
        self._hooks: list[RemovableHandle] | None = None
        self._written: int | None = None

    # -- in the models ---------------------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """Whether the models run with the packed values now."""
        return self._hooks is not None

    def attach(self) -> None:
        """Let the models run with base + delta, and lead the gradients of the chosen entries into `delta.grad`."""
        assert not self.is_attached, "these weights are attached already"
        with torch.enable_grad():
            handles = _Handles.apply(self.delta, tuple(target.end - target.start for target in self.targets))
            for target, handle in zip(self.targets, handles, strict=True):
                if self._moves(target):
                    shadow = _Shadow.apply(handle, target, self)
                    for module, name in target.selected.places:
                        assert name not in module.__dict__, f"{target.selected.path} is shadowed already"
                        module.__dict__[name] = shadow
        self._hooks = [root.register_forward_pre_hook(lambda *_: self.write()) for root in self._roots]
        self._written = None
        self.write()

    def detach(self) -> None:
        """Leave the models, which are then the base again, to the bit."""
        assert self._hooks is not None, "these weights are not attached"
        for hook in self._hooks:
            hook.remove()
        self._hooks = None
        for target in self.targets:
            for module, name in target.selected.places:
                module.__dict__.pop(name, None)
            scatter_(target.selected.parameter.data, target.selected.indices, target.original)

    @torch.no_grad()
    def write(self) -> None:
        """Bring the models' weights up to date with `delta`, if it has changed since; rounded once to the base's type."""
        if not self.is_attached or self._written == self.delta._version:
            return
        for target in self.targets:
            scatter_(target.selected.parameter.data, target.selected.indices, self.values(target))
        self._written = self.delta._version

    def values(self, target: Target) -> Tensor:
        """The weights themselves, base + delta, at a target's positions: `[k]` float32, differentiable."""
        return target.original.to(torch.float32) + self.delta[target.part]

    # -- progressive adjustment -------------------------------------------------------------------------------------------

    @property
    def num_moving(self) -> int:
        """How many entries train still."""
        return self.delta.numel() if self._settled is None else int((~self._settled).sum())

    def moving(self, target: Target) -> Tensor | None:
        """Which of a target's entries train still, `[k]` bool; None for all."""
        return None if self._settled is None else ~self._settled[target.part]

    @torch.no_grad()
    def reselect(self) -> int:
        """M' = M ∧ {|p| < θ} on the weights as they are now: what has grown beyond θ is settled and keeps its value.

        Nothing is written, so the models compute as before. The packed vector keeps its length, and the optimizer the
        moments of what trains on (the paper's code starts it afresh, and drops a gradient): its memory was at its peak in
        the first part anyway, and everything that holds the parameter goes on holding it.

        Returns:
            How many entries train on.
        """
        settled = torch.cat([self.values(target).abs() >= target.selected.threshold for target in self.targets])
        self._set_settled(settled if self._settled is None else settled | self._settled)
        return self.num_moving

    def keep_settled_through(self, optimizer: Optimizer) -> None:
        """Make `optimizer`, whichever it is, leave settled entries exactly as they are, and the models follow its steps.

        Their gradients are zero, but momentum and weight decay would move them on: a step's pre-hook lays their values
        aside and its post-hook puts them back.
        """
        aside: list[Tensor] = []

        def before(*_: Any) -> None:
            aside[:] = [] if self._settled is None else [self.delta.detach()[self._settled]]

        @torch.no_grad()
        def after(*_: Any) -> None:
            if aside:  # a subclass's step that calls its parent's comes by twice
                self.delta[self._settled] = aside.pop()
            self._written = None  # fused optimizers do not raise a tensor's version
            self.write()

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def _moves(self, target: Target) -> bool:
        """Whether an entry of the target trains; a tensor that is settled altogether needs no gradient at all."""
        return self._settled is None or not bool(self._settled[target.part].all())

    def _set_settled(self, settled: Tensor | None) -> None:
        self._settled = settled
        if self.is_attached:
            self.detach()
            self.attach()

    # -- state --------------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Which entries are settled, `[K]` bool."""
        return torch.zeros_like(self.delta, dtype=torch.bool) if self._settled is None else self._settled

    def set_extra_state(self, state: Any) -> None:
        """Put back what `get_extra_state` gave."""
        settled = cast("Tensor", state).to(device=self.delta.device, dtype=torch.bool)
        assert settled.shape == self.delta.shape
        self._set_settled(settled.clone() if bool(settled.any()) else None)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)


class _Handles(torch.autograd.Function):
    """The packed leaf as one handle per target. A handle has the part's shape and no memory: it only carries gradients.

    Neither this nor `_Shadow` saves a tensor for backward, so that one history serves all forward passes of an attachment.
    """

    @staticmethod
    def forward(ctx: Any, delta: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return tuple(delta.new_zeros(()).expand(size) for size in sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        some = next((gradient for gradient in gradients if gradient is not None), None)
        if some is None:
            return None, None
        pairs = zip(gradients, ctx.sizes, strict=True)
        return torch.cat([some.new_zeros(size) if gradient is None else gradient for gradient, size in pairs]), None


class _Shadow(torch.autograd.Function):
    """A tensor that shares the parameter's memory; backward turns the dense gradient into the handle's."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, target: Target, packed: PackedWeights) -> Tensor:
        ctx.target, ctx.packed = target, packed
        # `.data` is no view in autograd's eyes: writing to the parameter later must not make it a new history.
        return target.selected.parameter.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (dense,) = gradients
        gathered = gather(dense, ctx.target.selected.indices)
        moving = ctx.packed.moving(ctx.target)
        return gathered if moving is None else gathered * moving, None, None
