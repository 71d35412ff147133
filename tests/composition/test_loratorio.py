"""LoRAtorio: weights by definition, and the adapter that differs is the one that counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from studio.composition.patchwise import farthest, patch_distances, placewise_mean, proportional_weights, softmin_weights
from studio.composition.strategies.loratorio import Loratorio, LoratorioConfig
from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Step
from studio.pipelines.generation import draw_latents
from tests.support.scenes import compiled_for, drawn, latents_of, lora, scene_for
from tests.support.tiny_bases import tiny_base

ATTENTION = {"unet": r".*attn2\.to_q"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("sd15"))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "patch"), [((8, 8), 4), ((7, 5), 3), ((3, 9), 4), ((1, 1), 2)])
def test_distances_are_by_definition(size: tuple[int, int], patch: int):
    one, other = noise(2, 4, *size), noise(2, 4, *size, seed=1)
    found = patch_distances(one, other, patch)
    rows, columns = -(-size[0] // patch), -(-size[1] // patch)
    assert found.shape == (2, rows, columns)
    for picture in range(2):
        for row in range(rows):
            for column in range(columns):
                cut = (picture, slice(None), slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
                expected = 1 - torch.cosine_similarity(one[cut].flatten(), other[cut].flatten(), dim=0)
                assert float(found[picture, row, column]) == pytest.approx(float(expected), abs=1e-6)
    assert torch.equal(patch_distances(one, one, patch), torch.zeros(2, rows, columns))
    assert torch.equal(patch_distances(one, torch.zeros_like(one), patch), torch.zeros(2, rows, columns))


def test_weights_sum_to_one_and_grow_with_the_distance():
    distances = noise(3, 2, 4, 4).abs()
    for weights in (softmin_weights(distances, 0.1), proportional_weights(distances)):
        torch.testing.assert_close(weights.sum(dim=0), torch.ones(2, 4, 4))
        assert torch.equal(weights.argsort(dim=0), distances.argsort(dim=0))
    torch.testing.assert_close(softmin_weights(distances, 1.0), torch.softmax(-(1 - distances), dim=0))
    assert torch.equal(proportional_weights(torch.zeros(4, 1, 2, 2)), torch.full((4, 1, 2, 2), 0.25))
    chosen = farthest(torch.tensor([0.1, 0.3, 0.2]).reshape(3, 1, 1, 1), 2)
    assert chosen.flatten().tolist() == [False, True, True]


def test_the_mean_of_equals_is_them_to_the_bit():
    prediction, weights = noise(2, 4, 8, 8), torch.softmax(noise(5, 2, 1, 8, 8), dim=0)
    assert torch.equal(placewise_mean([prediction] * 5, weights), prediction)
    others = [noise(2, 4, 8, 8, seed=seed) for seed in range(5)]
    expected = (torch.stack(others) * weights).sum(dim=0)
    torch.testing.assert_close(placewise_mean(others, weights), expected)


@pytest.mark.parametrize("config", [{"weighting": "proportional"}, {"temperature": 1e-5}, {"top_k": 1}])
def test_one_that_differs_is_what_counts_where_it_differs(base: BaseModel, config: dict[str, Any]):
    """Of two adapters one differs from the base in the left half only, the other nowhere."""
    scene = scene_for(base, [lora(base, seed, targets=ATTENTION) for seed in range(2)])
    strategy = Loratorio().build(scene, LoratorioConfig(**config))
    plain = noise(1, 4, 8, 8)
    differing = plain.clone()
    differing[..., :4] += 0.3 * noise(1, 4, 8, 4, seed=1)
    weights = strategy.weights(plain, [differing, plain])
    folded = placewise_mean([differing, plain], weights)
    assert torch.equal(folded, differing)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_copies_of_one_adapter_are_the_adapter(base: BaseModel, guidance: float):
    adapter = lora(base, 1)
    strategy = {"name": "loratorio", "recenter": 0.0}
    compiled = compiled_for(base, [adapter] * 2, strategy, guidance_scale=guidance)
    with torch.no_grad(), patched(base.components(), [Route(adapter)]):
        alone = draw_latents(base, compiled.scene.request)
    torch.testing.assert_close(latents_of(compiled), alone, rtol=0, atol=0)


def test_guidance_is_centred_on_the_base(base: BaseModel):
    scene = scene_for(base, [lora(base, seed, targets=ATTENTION) for seed in range(2)])
    step = Step(0, 2, torch.tensor(500))
    predictions = [noise(1, 4, 8, 8, seed=seed) for seed in range(6)]  # without and with the prompt: base, first, second
    for recenter in (0.0, 0.5, 1.0):
        strategy = Loratorio().build(scene, LoratorioConfig(recenter=recenter))
        weights = strategy.weights(predictions[1], [predictions[3], predictions[5]])
        conditional = weights[0] * predictions[3] + weights[1] * predictions[5]
        own = weights[0] * predictions[2] + weights[1] * predictions[4]
        unconditional = recenter * predictions[0] + (1 - recenter) * own
        expected = unconditional + 3.0 * (conditional - unconditional)
        torch.testing.assert_close(strategy.combine(step, predictions), expected)


def test_the_base_pass_is_made_only_where_there_is_something_to_weigh(base: BaseModel):
    entries = [{"active_to": 0.5}, {"active_from": 0.25, "active_to": 0.75}]
    scene = scene_for(base, [lora(base, seed, targets=ATTENTION) for seed in range(2)], entries=entries)
    strategy = Loratorio().build(scene, LoratorioConfig())
    counts = [len(strategy.passes(Step(0, 4, torch.tensor(timestep)))) for timestep in (999, 600, 300, 100)]
    assert counts == [1, 3, 1, 1]
    assert torch.isfinite(drawn(base, [lora(base, 1), lora(base, 2)], {"name": "loratorio", "top_k": 1}, entries=entries)).all()
