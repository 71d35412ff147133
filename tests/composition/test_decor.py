"""DECOR: what is projected out is gone, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from studio.composition.strategies.decor import Decor, DecorConfig, DecorStrategy, apart
from studio.composition.text_projection import directions_of, projected
from studio.pipelines.base_model import BaseModel
from tests.support.scenes import compiled_for, drawn, lora, scene_for
from tests.support.tiny_bases import tiny_base

WORDS = [{"words": "cat"}, {"words": "dog"}]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(request.param, tmp_path_factory.mktemp(request.param))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_projected_out_direction_is_gone(count: int):
    features, undesired = 28 * normal(1, 77, 64), normal(count, 64, seed=1)
    directions = directions_of(torch.cat([undesired, undesired[:1] * 2]))
    assert directions.shape == (64, count), "a row that says nothing new is no direction"
    torch.testing.assert_close(directions.T @ directions, torch.eye(count, dtype=torch.float64))
    clean = projected(features, directions, 1.0)
    unit = undesired / undesired.norm(dim=1, keepdim=True)
    left = (clean.double() @ unit.double().T).abs() / features.double().norm(dim=-1, keepdim=True)
    assert float(left.max()) < 1e-6
    half = projected(features, directions, 0.5)
    torch.testing.assert_close(half, (features + clean) / 2)
    assert torch.equal(projected(features, directions, 0.0), features)
    across = features.double() - (features.double() @ directions) @ directions.T
    torch.testing.assert_close(clean.double(), across, atol=1e-5, rtol=1e-6)


def strategy_for(base: BaseModel, entries: Any = WORDS, **config: Any) -> DecorStrategy:
    adapters = [lora(base, seed) for seed in range(len(entries))]
    return Decor().build(scene_for(base, adapters, entries=entries), DecorConfig(**config))


def plain_text(base: BaseModel, words: str | None = None) -> torch.Tensor:
    scene = scene_for(base, [lora(base, seed) for seed in range(2)])
    return scene.condition(scene.plan.prompt if words is None else words, scene.concepts).prompt_embeds[0]


def test_each_ones_words_lose_the_others(base: BaseModel):
    plain, found = plain_text(base), strategy_for(base, alpha=1.0).positive.prompt_embeds[0]
    scene = scene_for(base, [lora(base, 0), lora(base, 1)], entries=WORDS)
    cat, dog = (list(concept.span.tokens) for concept in scene.concepts if concept.span is not None)
    assert len(cat) == 3 and len(dog) == 3
    size = plain.double().norm()
    for own, other in ((cat, dog), (dog, cat)):
        assert float((found[own].double() @ plain[other].double().T).abs().max() / size**2) < 1e-6
        assert float((plain[own].double() @ plain[other].double().T).abs().max() / size**2) > 1e-3
    rest = [position for position in range(len(plain)) if position not in (*cat, *dog)]
    assert torch.equal(found[rest], plain[rest])


def test_undesired_words_are_gone_from_all_of_the_text(base: BaseModel):
    found = strategy_for(base, alpha=1.0, apart=False, undesired="ink").positive.prompt_embeds[0]
    undesired = plain_text(base, "ink")[1:4].double()
    left = (found.double() @ (undesired / undesired.norm(dim=1, keepdim=True)).T).abs() / plain_text(base).norm(
        dim=1, keepdim=True
    )
    assert float(left.max()) < 1e-6
    assert not torch.allclose(found, plain_text(base))


def test_tokens_that_both_have_stay():
    features = normal(1, 6, 16)
    first, second = {1: 10, 2: 99}, {3: 11, 4: 99}
    found = apart(features, [first, second], 1.0)
    for own, other in (([1, 2], 3), ([3, 4], 1)):
        assert float((found[0, own] @ features[0, other]).abs().max()) < 1e-5
        assert float((found[0, own] @ features[0, 4 if other == 3 else 2]).abs().min()) > 1e-3, "the word of both is no direction"
    assert apart(features, [first, {}], 1.0) is features and apart(features, [{1: 7}, {2: 7}], 1.0) is features


def test_without_words_it_is_merge_and_says_so(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    compiled = compiled_for(base, adapters, "decor")
    assert "decor found nothing to take out" in compiled.notes[0]
    assert torch.equal(drawn(base, adapters, "decor"), drawn(base, adapters, "merge"))
    worded = compiled_for(base, adapters, "decor", entries=WORDS)
    assert worded.notes == ()
    assert not torch.equal(drawn(base, adapters, "decor", entries=WORDS), drawn(base, adapters, "merge", entries=WORDS))
    nothing = {"name": "decor", "alpha": 0.0}
    assert torch.equal(drawn(base, adapters, nothing, entries=WORDS), drawn(base, adapters, "merge", entries=WORDS))
