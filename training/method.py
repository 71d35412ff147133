"""What a training method is: how something trainable is attached to a base model, and how an adapter comes out of it.

A method knows no dataset and no screen. Everything around it (data, loss, checkpoints, resume, reports) is the trainer's
and is the same for all methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from studio.pipelines.adapters import Adapter, AdapterInfo
from studio.pipelines.base_model import BaseModel
from studio.training.config import TrainConfig
from studio.training.optimizers import OptimizerFactory, ParameterGroup

Config = TypeVar("Config")


class Trainable(nn.Module, ABC):
    """Something that trains on a frozen base model. Its parameters are what the optimizer moves.

    `state_dict()` and `load_state_dict()` are the module's own: full-precision tensors, all that resuming needs.
    """

    @abstractmethod
    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The parameters by learning rate; every parameter in exactly one group."""

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Inside the block the base model runs with what trains; open it around forward *and* backward.

        Open it after the modules are on their device. Outside the block the base model is exactly itself.
        """

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """Inside the block, within `active` or not, the base model is exactly the base, to the bit."""

    @abstractmethod
    def extract(self, info: AdapterInfo) -> Adapter:
        """What was learned so far, as an adapter of its own: detached copies on the CPU, with `info` on them."""

    def make_optimizer(self, factory: OptimizerFactory) -> Optimizer:
        """The optimizer; a method with an optimizer of its own makes it here from the factory's."""
        return factory(self.parameter_groups())

    def regularizer(self) -> Tensor | None:
        """A scalar that is added to the loss of each forward pass, or None."""
        return None

    def on_step(self, step: int) -> None:
        """Called after optimizer step `step` (1-based) has changed the parameters."""
        return


class AdapterMethod(Protocol[Config]):
    """One way to learn a concept. A new method is one file in `training/methods/` and one name in its registry.

    Attributes:
        name: as on the command line, "dreambooth-lora". title: for people. adapter_type: of the `AdapterInfo`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    adapter_type: ClassVar[str]

    def configure(self, settings: TrainConfig) -> Config:
        """The method's own frozen settings, from a run's resolved configuration.

        Raises:
            ConfigError: a setting makes no sense for this method.
        """
        ...

    def attach(self, model: BaseModel, config: Config, generator: torch.Generator) -> Trainable:
        """Make what trains. The base model is not changed until `active()`; random values come from `generator` only."""
        ...
