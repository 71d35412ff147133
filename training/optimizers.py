"""The optimizers a run can choose from, made by name from parameter groups."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from studio.pipelines.errors import MissingDependencyError

OptimizerName = Literal["adamw", "adamw8bit", "prodigy", "schedule-free"]

PIP_PACKAGES = {"bitsandbytes": "bitsandbytes", "prodigyopt": "prodigyopt", "schedulefree": "schedulefree"}


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: for logs, "denoiser" or "text_encoder".
        parameters: the leaf tensors. learning_rate: before the schedule's factor.
        weight_decay: None for the run's own.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float | None = None


OptimizerFactory: TypeAlias = Callable[[Sequence[ParameterGroup]], Optimizer]


def optimizer_factory(
    name: OptimizerName, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> OptimizerFactory:
    """A function from parameter groups to an optimizer. Every torch group keeps its base rate under "base_lr".

    Raises MissingDependencyError (when the factory is called) for an optional optimizer that isn't installed.
    """

    def make(groups: Sequence[ParameterGroup]) -> Optimizer:
        rates = _rates(name, groups)
        torch_groups = [
            {
                "params": list(group.parameters),
                "lr": rate,
                "base_lr": rate,
                "name": group.name,
                "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group, rate in zip(groups, rates, strict=True)
        ]
        optimizer = _build(name, torch_groups, betas, epsilon)
        optimizer.register_step_post_hook(_count_as_changed)
        return optimizer

    return make


def _count_as_changed(optimizer: Optimizer, *_: object) -> None:
    """Let every parameter's version say that a step changed it: fused kernels write past torch's count, by which those who
    keep something that was made of a parameter know that it is out of date."""
    torch.autograd.graph.increment_version([parameter for group in optimizer.param_groups for parameter in group["params"]])


def _rates(name: OptimizerName, groups: Sequence[ParameterGroup]) -> list[float]:
    """Prodigy estimates one step size for all parameters and refuses rates that differ: it gets the first group's."""
    if name == "prodigy":
        return [groups[0].learning_rate for _ in groups]
    return [group.learning_rate for group in groups]


def _build(name: OptimizerName, groups: list[dict[str, object]], betas: tuple[float, float], eps: float) -> Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
    if name == "adamw8bit":
        made: Optimizer = optional_module("bitsandbytes").optim.AdamW8bit(groups, betas=betas, eps=eps)
    elif name == "prodigy":
        made = optional_module("prodigyopt").Prodigy(
            groups, betas=betas, eps=eps, use_bias_correction=True, safeguard_warmup=True
        )
    else:
        made = optional_module("schedulefree").AdamWScheduleFree(groups, betas=betas, eps=eps)
        set_training(made, True)
    return made


def optional_module(name: str) -> ModuleType:
    """Import an optional package, or say in one sentence how to get it (MissingDependencyError)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = PIP_PACKAGES[name]
        message = f"this optimizer needs the package {package}, which isn't installed: run `pip install {package}`"
        raise MissingDependencyError(message) from error


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Every group's rate becomes its base rate × `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def set_training(optimizer: Optimizer, training: bool) -> None:
    """Schedule-free optimizers hold two sets of weights and must be told which one is wanted; others have no modes."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside the block the parameters are the ones to use and to save; after it, bit-identical to before.

    Schedule-free's own way back from `eval()` is a linear interpolation, which rounds: looking at the weights would change
    the run. So the training weights are copied aside and put back.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    set_training(optimizer, False)
    try:
        yield
    finally:
        set_training(optimizer, True)
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
