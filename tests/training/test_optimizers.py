"""Optimizers by name: groups, missing packages, the two sets of weights of schedule-free."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import nn

from studio.pipelines.errors import MissingDependencyError
from studio.training.optimizers import ParameterGroup, evaluation_weights, optimizer_factory, set_learning_rates


def _groups() -> tuple[ParameterGroup, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        ParameterGroup(name=name, parameters=(nn.Parameter(torch.randn(3, generator=generator)),), learning_rate=rate)
        for name, rate in (("denoiser", 0.1), ("text_encoder", 0.01))
    )


def _step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("schedule-free", "schedulefree")]
)
def test_a_missing_package_is_one_sentence_with_the_command(name: str, package: str, monkeypatch: pytest.MonkeyPatch):
    find = importlib.import_module

    def without(wanted: str) -> ModuleType:
        if wanted == package:
            raise ImportError(wanted)
        return find(wanted)

    monkeypatch.setattr(importlib, "import_module", without)
    factory = optimizer_factory(name, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
        factory(_groups())


def test_each_group_keeps_its_own_rate_under_the_schedule():
    optimizer = optimizer_factory("adamw", weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)(_groups())
    set_learning_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]
    set_learning_rates(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]


def test_prodigy_takes_one_rate_for_all():
    pytest.importorskip("prodigyopt")
    optimizer = optimizer_factory("prodigy", weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)(_groups())
    _step(optimizer)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize("name", ["adamw", "schedule-free"])
def test_looking_at_the_weights_leaves_them_bit_identical(name: str):
    if name == "schedule-free":
        pytest.importorskip("schedulefree")
    groups = _groups()
    optimizer = optimizer_factory(name, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)(groups)
    for _ in range(3):
        _step(optimizer)
    weights = [group.parameters[0] for group in groups]
    before = [weight.detach().clone() for weight in weights]
    with evaluation_weights(optimizer):
        changed = any(not torch.equal(weight, was) for weight, was in zip(weights, before, strict=True))
    assert changed == (name == "schedule-free")
    assert all(torch.equal(weight, was) for weight, was in zip(weights, before, strict=True))
    _step(optimizer)


@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedule-free"])
def test_a_step_shows_in_the_parameters_versions(name: str):
    """What is kept of a parameter's value is known to be out of date by it; fused AdamW alone would not say so."""
    pytest.importorskip({"prodigy": "prodigyopt", "schedule-free": "schedulefree"}.get(name, "torch"))
    parameter = nn.Parameter(torch.ones(3))
    factory = optimizer_factory(name, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)  # type: ignore[arg-type]
    optimizer = factory([ParameterGroup(name="denoiser", parameters=(parameter,), learning_rate=0.1)])
    parameter.grad = torch.ones(3)
    before = parameter._version
    optimizer.step()
    assert parameter._version > before
