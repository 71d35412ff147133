"""What every training method must do. A method in the registry is tested here without another line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from studio.pipelines.adapters import AdapterInfo, Route, load_adapter, patched
from studio.pipelines.base_model import BaseModel, encode_text
from studio.pipelines.errors import ConfigError
from studio.training.config import TrainConfig, load_config, resolve_defaults
from studio.training.method import AdapterMethod, Trainable
from studio.training.methods import METHODS, method_named
from studio.training.optimizers import optimizer_factory
from studio.training.outputs import save_own
from tests.support.tiny_bases import tiny_base

FAMILIES = ("embedded", "sdxl")
INFO = AdapterInfo(name="test")
TINY_SETTINGS = {"diffusekrona": {"krona.factors": "4x4"}}
"""What a method needs on models as small as these."""


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny random base model, shared: methods may not change it."""
    return tiny_base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=METHODS, ids=lambda method: method.name)
def method(request: pytest.FixtureRequest) -> AdapterMethod[Any]:
    """Each method."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def settings(base: BaseModel, method: AdapterMethod[Any]) -> TrainConfig:
    """A resolved configuration with the text encoders training too, where the method trains them."""
    tables = {
        "concept.images": ".",
        "concept.class_noun": "dog",
        "adapter.method": method.name,
        "adapter.rank": 2,
        "adapter.train_text_encoder": True,
        "optimizer.learning_rate": 0.05,
        "optimizer.text_encoder_learning_rate": 0.05,
        **TINY_SETTINGS.get(method.name, {}),
    }
    settings = resolve_defaults(load_config(None, tables), base.family, 4)
    try:
        method.configure(settings)
    except ConfigError:
        return resolve_defaults(load_config(None, tables | {"adapter.train_text_encoder": False}), base.family, 4)
    return settings


@pytest.fixture
def trainable(base: BaseModel, method: AdapterMethod[Any], settings: TrainConfig) -> Iterator[Trainable]:
    """The method attached to the base; after the test the base must be what it was."""
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    base.unet.requires_grad_(False)
    for encoder in base.text_encoders:
        encoder.requires_grad_(False)
    yield method.attach(base, method.configure(settings), torch.Generator().manual_seed(0))
    after = base.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before.keys() == after.keys()


def _output(base: BaseModel) -> Tensor:
    """The denoiser's answer to a fixed question, [2, C, 4, 4], through the text encoders as they are."""
    channels = base.unet.config.in_channels  # type: ignore[union-attr]
    latents = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(1))
    text = encode_text(base, ["a ohwx dog", "a dog"])
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    answer: Tensor = base.unet(latents, torch.tensor([100, 900]), text.prompt_embeds, added_cond_kwargs=added)[0]
    return answer


def _train(base: BaseModel, trainable: Trainable, steps: int = 2) -> None:
    factory = optimizer_factory("adamw", weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    optimizer = trainable.make_optimizer(factory)
    with trainable.active():
        for step in range(steps):
            loss = _output(base).square().mean()
            regularizer = trainable.regularizer()
            (loss if regularizer is None else loss + regularizer).backward()
            optimizer.step()
            optimizer.zero_grad()
            trainable.on_step(step + 1)


def test_the_registry_names_methods_uniquely(method: AdapterMethod[Any]):
    assert method_named(method.name) is method
    assert len({each.name for each in METHODS}) == len(METHODS)


@torch.no_grad()
def test_at_step_0_the_model_is_the_base(base: BaseModel, trainable: Trainable):
    before = _output(base)
    with trainable.active():
        torch.testing.assert_close(_output(base), before, atol=1e-6, rtol=1e-6)


def test_every_parameter_is_in_one_group_with_a_learning_rate(trainable: Trainable):
    groups = trainable.parameter_groups()
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(grouped) == sorted(id(parameter) for parameter in trainable.parameters())
    assert all(group.learning_rate > 0 for group in groups)
    assert all(group.parameters for group in groups)
    assert all(parameter.dtype == torch.float32 for parameter in trainable.parameters())


def test_a_step_moves_every_group(base: BaseModel, trainable: Trainable):
    before = [[parameter.detach().clone() for parameter in group.parameters] for group in trainable.parameter_groups()]
    _train(base, trainable, steps=1)
    for group, old in zip(trainable.parameter_groups(), before, strict=True):
        assert any(not torch.equal(new, was) for new, was in zip(group.parameters, old, strict=True)), group.name
    _train(base, trainable, steps=1)
    names = {id(parameter): name for name, parameter in trainable.named_parameters()}
    for group, old in zip(trainable.parameter_groups(), before, strict=True):
        still = [names[id(new)] for new, was in zip(group.parameters, old, strict=True) if torch.equal(new, was)]
        # Where the grid has a single place, a softmax over one key is 1 whatever queries and keys are: no gradient at all.
        assert all(re.search(r"attn1[./]to_[qk]\b", name) for name in still), (group.name, still)
        assert len(still) < len(old) / 2


@torch.no_grad()
def test_disabled_is_exactly_the_base(base: BaseModel, trainable: Trainable):
    before = _output(base)
    with torch.enable_grad():
        _train(base, trainable)
    with trainable.active():
        changed = _output(base)
        with trainable.disabled():
            assert torch.equal(_output(base), before)
        assert torch.equal(_output(base), changed)
    with trainable.disabled():
        assert torch.equal(_output(base), before)
    assert torch.equal(_output(base), before)
    assert not torch.equal(changed, before)


@torch.no_grad()
def test_disabled_restores_after_an_exception(base: BaseModel, trainable: Trainable):
    before = _output(base)
    with pytest.raises(RuntimeError), trainable.active(), trainable.disabled():
        raise RuntimeError
    assert torch.equal(_output(base), before)


@torch.no_grad()
def test_the_extracted_adapter_does_what_the_live_one_does(base: BaseModel, trainable: Trainable, tmp_path: Path):
    with torch.enable_grad():
        _train(base, trainable)
    adapter = trainable.extract(INFO)
    with trainable.active():
        live = _output(base)
    with patched(base.components(), [Route(adapter)]):  # a change of weights is kept as W' - W, so W + it may miss W' by a bit
        torch.testing.assert_close(_output(base), live, atol=1e-6, rtol=1e-5)
    save_own(adapter, tmp_path / "adapter.safetensors", base.family, dtype=torch.float32)
    with patched(base.components(), [Route(load_adapter(tmp_path / "adapter.safetensors"))]):
        torch.testing.assert_close(_output(base), live, atol=1e-6, rtol=1e-5)


def test_the_extracted_adapter_is_a_copy(base: BaseModel, trainable: Trainable):
    adapter = trainable.extract(INFO)
    before = adapter.content_hash()
    _train(base, trainable)
    assert adapter.content_hash() == before
    assert not any(tensor.requires_grad for tensor in adapter.named_tensors().values())
    assert trainable.extract(INFO).content_hash() != before


def test_state_comes_back(base: BaseModel, method: AdapterMethod[Any], settings: TrainConfig, trainable: Trainable):
    _train(base, trainable)
    state = {name: tensor.clone() for name, tensor in trainable.state_dict().items()}
    other = method.attach(base, method.configure(settings), torch.Generator().manual_seed(99))
    other.load_state_dict(state)
    assert other.extract(INFO).content_hash() == trainable.extract(INFO).content_hash()
    assert {name for name, _ in trainable.named_parameters()} <= state.keys()


def test_the_same_seed_attaches_the_same(base: BaseModel, method: AdapterMethod[Any], settings: TrainConfig):
    config = method.configure(settings)
    attach: Callable[[int], Trainable] = lambda seed: method.attach(base, config, torch.Generator().manual_seed(seed))  # noqa: E731
    first, same, other = (attach(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
