"""Gradients of losses on attention maps, and steps along them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from studio.composition.attention_losses import contrastive_loss, region_loss
from studio.composition.latent_steps import batching, maps_gradient, moved, noise_unit
from studio.pipelines.adapters import Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import (
    AttentionMaps,
    Branch,
    Capture,
    Passes,
    layers_at,
    make_scheduler,
    mean_map,
    token_columns,
)
from tests.support.passes import latents_of, passes_of, text_of
from tests.support.scenes import lora
from tests.support.tiny_bases import tiny_base

SIZE = (64, 96)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def passes(base: BaseModel) -> Passes:
    return passes_of(base, *SIZE, pictures=2)


def branches_of(base: BaseModel) -> list[Branch]:
    """Two with adapters of their own, looked at on the grid of level 1."""
    layers = (*layers_at(base.unet, 1), *layers_at(base.unet, 1, "self")[:1])
    columns = token_columns([[2], [6]], 16)
    return [
        Branch(text_of(base, prompt, prompt), [Route(lora(base, seed))], capture=Capture(layers, columns))
        for seed, prompt in ((1, "a cat, a dog"), (2, "a fox, a dog"))
    ]


def loss_of(maps: Sequence[AttentionMaps]) -> Tensor:
    words = torch.cat([mean_map(each.words) for each in maps], dim=1)
    places = next(iter(maps[0].places.values()))
    inside = torch.zeros(words.shape[-2:])
    inside[:, 0] = 1
    return contrastive_loss(words, torch.tensor([0, 1, 0, 1])) + region_loss(places, inside)


def test_one_branch_after_the_other_gives_the_gradient_of_all_together(base: BaseModel, passes: Passes):
    latents, step, branches = latents_of(base, *SIZE, pictures=2), passes.step(3), branches_of(base)
    losses, gradient = maps_gradient(batching(passes), latents, step, branches, loss_of)
    alone = maps_gradient(passes, latents, step, branches, loss_of, one_by_one=True)
    torch.testing.assert_close(alone[0], losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone[1], gradient, rtol=1e-3, atol=1e-7)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in base.unet.parameters())


def test_checkpointing_gives_the_same_gradient(base: BaseModel, passes: Passes):
    latents, step, branches = latents_of(base, *SIZE, pictures=2), passes.step(3), branches_of(base)
    _, gradient = maps_gradient(batching(passes), latents, step, branches, loss_of)
    unet = base.unet
    unet.enable_gradient_checkpointing()  # type: ignore[operator]
    unet.train()
    try:
        for chosen in (passes, batching(passes)):
            _, again = maps_gradient(chosen, latents, step, branches, loss_of)
            torch.testing.assert_close(again, gradient, rtol=1e-3, atol=1e-7)
    finally:
        unet.disable_gradient_checkpointing()  # type: ignore[operator]
        unet.eval()


def test_a_pictures_gradient_does_not_depend_on_its_batch_and_its_loss_falls(base: BaseModel, passes: Passes):
    latents, step, branches = latents_of(base, *SIZE, pictures=2), passes.step(3), branches_of(base)
    losses, gradient = maps_gradient(batching(passes), latents, step, branches, loss_of)
    single = passes_of(base, *SIZE)
    own = [Branch(b.condition.rows([0]), b.routes, capture=b.capture) for b in branches]
    alone = maps_gradient(batching(single), latents[1:], step, own, loss_of)
    torch.testing.assert_close(alone[1], gradient[1:], rtol=1e-3, atol=1e-7)
    size = 1e-3
    closer = moved(latents, gradient, size, "normalised")
    lower, _ = maps_gradient(batching(passes), closer, step, branches, loss_of)
    slope = gradient.square().mean(dim=(1, 2, 3)).sqrt() * gradient[0].numel() * size
    torch.testing.assert_close(losses - lower, slope, rtol=0.05, atol=1e-7)


def test_a_normalised_step_has_its_size_whatever_the_gradients():
    latents = torch.zeros(4, 4, 8, 8)
    gradient = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gradient *= torch.tensor([1e-30, 1.0, 1e6, 0.0]).view(4, 1, 1, 1)
    for unit in (1.0, 13.0):
        sizes = moved(latents, gradient, 0.02, "normalised", unit).square().mean(dim=(1, 2, 3)).sqrt()
        torch.testing.assert_close(sizes, torch.tensor([0.02, 0.02, 0.02, 0.0]) * unit)
    assert torch.equal(moved(latents, gradient, 20.0, "raw"), -20.0 * gradient)
    per_picture = moved(latents, gradient, torch.tensor([0.0, 0.1, 0.0, 0.0]), "normalised")
    assert not per_picture[0].any() and per_picture[1].any()


def test_a_picture_with_a_broken_gradient_stays():
    gradient = torch.ones(2, 1, 2, 2)
    gradient[0, 0, 0, 0] = float("nan")
    assert moved(torch.zeros(2, 1, 2, 2), gradient, 1.0, "normalised").flatten(1).tolist() == [[0.0] * 4, [-1.0] * 4]


@pytest.mark.parametrize("name", ["euler", "ddim", "dpm++"])
def test_a_step_is_as_large_as_the_model_sees_it(tmp_path: Path, name: str):
    scheduler = make_scheduler(tiny_base("sd15", tmp_path).scheduler, name)
    scheduler.set_timesteps(10)
    timestep = scheduler.timesteps[0]
    expected = float((scheduler.sigmas[0] ** 2 + 1) ** 0.5) if name == "euler" else 1.0
    assert noise_unit(scheduler, timestep) == pytest.approx(expected, rel=1e-5)
