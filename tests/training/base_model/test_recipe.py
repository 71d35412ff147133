"""The recipe of the embedded base, each stage at the smallest size that is still the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from studio.assets.world import Scene, caption, random_scene, words
from studio.training.base_model import renders
from studio.training.base_model.autoencoder import encode_shard, fit_encoder, patch_pca, to_pixels, train_decoder, write_pca
from studio.training.base_model.denoiser import (
    DenoiserState,
    LatentPool,
    RunPlan,
    accumulate_gradients,
    draw_timesteps,
    start_from_weights,
    train_denoiser,
)
from studio.training.base_model.export import export
from studio.training.base_model.model import build_autoencoder, build_scheduler, velocity
from studio.training.base_model.recipe import BaseRecipe
from studio.training.base_model.replicas import Replica
from studio.training.base_model.tokenizer import build_tokenizer, merges_for, segment

TINY = BaseRecipe(
    size=32,
    latent_channels=8,
    decoder_channels=8,
    decoder_blocks=(1, 1, 1, 1),
    decoder_batch_size=4,
    block_out_channels=(16, 32, 32),
    transformer_layers_per_block=1,
    text_width=32,
    text_layers=1,
    batch_size=4,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with one small shard."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renders, "SHARD", 64)
        (folder / "renders").mkdir()
        renders.render_shard(folder / "renders", 0, seed=0, size=TINY.size)
    return folder


def test_every_word_is_one_token_and_any_text_still_tokenizes() -> None:
    tokenizer = build_tokenizer(words(), 32)
    for word in words():
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
    strange = tokenizer("a zeppelin über café 7!", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in strange
    assert tokenizer.decode(strange).replace(" ", "") == "azeppelinübercafé7!"


def test_captions_fit_into_the_tokens() -> None:
    tokenizer, rng = build_tokenizer(words(), 32), np.random.default_rng(0)
    lengths = [len(tokenizer(caption(random_scene(rng, num_objects=4), rng)).input_ids) for _ in range(300)]
    assert max(lengths) <= 32


def test_later_merges_leave_earlier_words_whole() -> None:
    merges = merges_for(["cat", "car", "scarf", "cats", "abab"])
    ranks = {pair: i for i, pair in enumerate(merges)}
    assert [segment(word, ranks) for word in ("cat", "car", "scarf", "cats", "abab")] == [
        ["cat</w>"], ["car</w>"], ["scarf</w>"], ["cats</w>"], ["abab</w>"]
    ]  # fmt: skip


def test_encoder_is_the_pca_exactly(state_dir: Path) -> None:
    pictures = renders.load_pictures(state_dir / "renders", 0)
    functionals, means = patch_pca(pictures, TINY)
    vae = build_autoencoder(TINY)
    write_pca(vae, functionals, means)
    x = to_pixels(pictures[:4])
    latents = vae.encode(x).latents
    side = TINY.latent_size
    patches = ((x + 1) / 2).reshape(4, 3, side, 8, side, 8)
    expected = torch.einsum("ncyixj,kcij->nkyx", patches, functionals) - means.view(1, -1, 1, 1)
    assert (latents - expected).abs().max() < 2e-5
    scaled = encode_shard(vae, pictures).float()
    assert abs(float(scaled.square().mean().sqrt()) - 1) < 0.02


def test_timesteps_cover_the_range_and_prefer_the_middle() -> None:
    steps = draw_timesteps(np.random.default_rng(0), 20_000, TINY).float()
    assert 0 <= steps.min() < 20 and 980 < steps.max() <= 999
    assert 560 < steps.mean() < 680
    assert steps.std() < 240  # uniform would be 289


def test_velocity_target_gives_back_picture_and_noise() -> None:
    alphas = build_scheduler().alphas_cumprod[torch.tensor([0, 500, 999])]
    x, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    noisy, v = velocity(x, noise, alphas)
    a, s = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(a * noisy - s * v, x)
    torch.testing.assert_close(s * noisy + a * v, noise)
    assert float(alphas[-1]) == 0.0


def test_rate_warms_up_and_anneals_to_zero() -> None:
    plan = RunPlan(pictures=400, anneal=200)
    rates = [plan.rate(step, TINY) for step in range(101)]
    assert rates[0] == 0.5 and rates[1] == 1.0 and rates[50] == 1.0
    assert rates[75] == pytest.approx(0.5) and rates[100] == 0.0


def fresh_copy(state_dir: Path, target: Path) -> Path:
    target.mkdir()
    for name in ("renders", "latents"):
        if (state_dir / name).exists():
            (target / name).symlink_to(state_dir / name)
    return target


def test_denoiser_resumes_bit_equal(state_dir: Path, tmp_path: Path) -> None:
    fit_encoder(state_dir, TINY)
    whole = train_denoiser(fresh_copy(state_dir, tmp_path / "whole"), TINY, RunPlan(pictures=5 * 4))
    parts = fresh_copy(state_dir, tmp_path / "parts")
    train_denoiser(parts, TINY, RunPlan(pictures=3 * 4))
    resumed = train_denoiser(parts, TINY, RunPlan(pictures=5 * 4))
    assert resumed.step == whole.step == 5
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(whole.ema, resumed.ema, strict=True):
        assert torch.equal(a, b)
    fresh = DenoiserState(TINY)
    still = [name for (name, a), b in zip(fresh.named_parameters(), whole.parameters(), strict=True) if torch.equal(a, b)]
    assert still == []


def test_two_processes_take_the_steps_of_one(state_dir: Path, tmp_path: Path) -> None:
    fit_encoder(state_dir, TINY)
    alone = train_denoiser(fresh_copy(state_dir, tmp_path / "alone"), TINY, RunPlan(pictures=3 * 4))
    together = train_denoiser(fresh_copy(state_dir, tmp_path / "together"), TINY, RunPlan(pictures=3 * 4, processes=2))
    assert together.step == alone.step == 3
    fresh = DenoiserState(TINY)
    apart = moved = 0.0
    for start, a, b in zip(fresh.parameters(), alone.parameters(), together.parameters(), strict=True):
        apart += float((a - b).detach().square().sum())
        moved += float((a - start).detach().square().sum())
    # Both optimizers divide by the gradient's size (Muon in bfloat16), so that rounding shows where there is hardly one.
    assert apart < 0.15 * moved, f"{apart:.2e} of {moved:.2e}"


def test_shares_of_a_batch_have_its_mean_gradient(state_dir: Path) -> None:
    pool, alphas = LatentPool(state_dir, TINY), build_scheduler().alphas_cumprod

    def gradients(replica: Replica) -> tuple[float, list[torch.Tensor]]:
        state = DenoiserState(TINY)
        loss = accumulate_gradients(state, state.unet, pool, alphas, TINY, replica)
        return loss, [parameter.grad for parameter in state.parameters()]

    whole_loss, whole = gradients(Replica())
    (loss_a, a), (loss_b, b) = gradients(Replica(0, 2)), gradients(Replica(1, 2))
    assert loss_a != loss_b and (loss_a + loss_b) / 2 == pytest.approx(whole_loss, rel=1e-5)
    # As one vector: a parameter that hardly matters has a gradient that cancels, and there rounding shows.
    expected, first, second = (torch.cat([gradient.flatten() for gradient in each]) for each in (whole, a, b))
    assert float(((first + second) / 2 - expected).norm()) < 1e-3 * float(expected.norm())
    assert float((first - expected).norm()) > 0.1 * float(expected.norm())


def test_export_loads_in_plain_diffusers_and_can_be_continued(state_dir: Path, tmp_path: Path) -> None:
    train_decoder(state_dir, TINY, cpu_seconds=0.5)
    train_denoiser(state_dir, TINY, RunPlan(pictures=25 * 4))
    folder = tmp_path / "base"
    export(state_dir, TINY, folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert {p.dtype for p in pipeline.text_encoder.parameters()} == {torch.float32}
    image = pipeline("a red cat", num_inference_steps=2).images[0]
    assert image.size == (32, 32)
    assert {f.suffix for f in folder.rglob("*") if f.is_file()} <= {".json", ".safetensors", ".md", ".png", ".jsonl"}
    assert json.loads((folder / "recipe.json").read_text())["size"] == 32

    again = tmp_path / "again"
    again.mkdir()
    assert start_from_weights(again, TINY, folder) == 25
    state = DenoiserState(TINY)
    state.load(again / "denoiser")
    assert state.step == 25
    assert RunPlan(pictures=10**6, rewarm_from=25).rate(25, TINY) == 1 / TINY.warmup_steps
    for (name, a), b in zip(state.unet.named_parameters(), pipeline.unet.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_scenes_of_a_shard_describe_its_pictures(state_dir: Path) -> None:
    from studio.assets.world import render

    scenes, pictures = renders.load_scenes(state_dir / "renders", 0), renders.load_pictures(state_dir / "renders", 0)
    assert len(scenes) == len(pictures) == 64
    assert isinstance(scenes[7], Scene)
    np.testing.assert_array_equal(render(scenes[7], TINY.size), pictures[7])


def test_going_on_from_weights_never_replaces_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from studio.cli.base_model import Stage, base_model

    (tmp_path / "denoiser").mkdir()
    state = tmp_path / "denoiser" / "state.safetensors"
    state.write_bytes(b"hours of work")
    base_model(Stage.renders, state=tmp_path, shards=0, workers=1, from_weights=tmp_path / "exported")
    assert state.read_bytes() == b"hours of work"
    assert "holds a state already" in capsys.readouterr().err
