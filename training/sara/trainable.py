"""SaRA as a trainable: packed weights of the denoiser, and of the text encoders when they train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from studio.pipelines.adapters import Adapter, AdapterInfo
from studio.training.method import Trainable
from studio.training.optimizers import OptimizerFactory, ParameterGroup
from studio.training.sara.extraction import sparse_patches
from studio.training.sara.nuclear import NuclearNorm
from studio.training.sara.packed import PackedWeights


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progressive parameter adjustment: after optimizer step `switch_step` (1-based) the weights are selected again.

    None never does.
    """

    switch_step: int | None = None


class SaraTrainable(Trainable):
    """Trains the small weights of `groups`, by group name ("denoiser", "text_encoder")."""

    def __init__(
        self,
        groups: Mapping[str, PackedWeights],
        learning_rates: Mapping[str, float],
        nuclear: NuclearNorm,
        progress: Progress,
        seed: int,
    ) -> None:
        super().__init__()
        self.groups = nn.ModuleDict(groups)
        self._rates = dict(learning_rates)
        self._nuclear = nuclear
        self._progress = progress
        self._seed = seed
        self._step = 0
        self._is_active = False

    @property
    def packed(self) -> tuple[PackedWeights, ...]:
        """The packed weights of all groups."""
        return tuple(group for group in self.groups.values() if isinstance(group, PackedWeights))

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """One parameter per group."""
        return tuple(
            ParameterGroup(name=name, parameters=(packed.delta,), learning_rate=self._rates[name])
            for name, packed in zip(self.groups, self.packed, strict=True)
        )

    def make_optimizer(self, factory: OptimizerFactory) -> Optimizer:
        """The factory's, after whose steps the models follow and settled weights are as they were."""
        optimizer = factory(self.parameter_groups())
        for packed in self.packed:
            packed.keep_settled_through(optimizer)
        return optimizer

    @contextmanager
    def active(self) -> Iterator[None]:
        """The base model runs with the trained weights inside the block."""
        assert not self._is_active, "active() does not nest"
        self._is_active = True
        self._attach()
        try:
            yield
        finally:
            self._is_active = False
            self._detach()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base's own weights are written back for the block, and the trained ones after it."""
        was_active = self._is_active and all(packed.is_attached for packed in self.packed)
        if was_active:
            self._detach()
        try:
            yield
        finally:
            if was_active:
                self._attach()

    def regularizer(self) -> Tensor | None:
        """λ · ‖P ⊙ M‖_* when it is due in this step."""
        return self._nuclear.term(self.packed, self._step, self._seed)

    def on_step(self, step: int) -> None:
        """Select again at the switch."""
        self._step = step
        if step == self._progress.switch_step:
            for packed in self.packed:
                packed.reselect()

    def extract(self, info: AdapterInfo) -> Adapter:
        """Changes of single weights, with their places and samples of the base by which another base is refused."""
        patches = [sparse_patches(packed, info.base_name) for packed in self.packed]
        return Adapter(info, {path: patch for group in patches for path, patch in group.items()})

    def get_extra_state(self) -> Tensor:
        """Steps done and the regularizer's seed, int64 `[2]`."""
        return torch.tensor([self._step, self._seed])

    def set_extra_state(self, state: object) -> None:
        """Put back what `get_extra_state` gave."""
        assert isinstance(state, Tensor)
        self._step, self._seed = (int(number) for number in state)

    def _attach(self) -> None:
        for packed in self.packed:
            packed.attach()

    def _detach(self) -> None:
        for packed in self.packed:
            packed.detach()
