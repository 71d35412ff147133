"""Generation: the pictures of the stock pipelines, the same for a seed in any batch, with adapters and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from studio.pipelines.adapters import Adapter, Route, new_lora
from studio.pipelines.base_files.loading import quiet_libraries
from studio.pipelines.base_model import BaseModel, encode_negative, encode_text, load_base
from studio.pipelines.denoising import (
    SCHEDULER_NAMES,
    Branch,
    DenoiseRequest,
    GuidanceStrategy,
    Step,
    denoise,
    make_scheduler,
)
from studio.pipelines.errors import AdapterMismatchError, Cancelled, UserError
from studio.pipelines.generation import GenerationRequest, generate, initial_noise
from tests.support.tiny_bases import tiny_embedded_dir, tiny_sd15_dir, tiny_sdxl_dir

WRITERS = {"embedded": tiny_embedded_dir, "sd15": tiny_sd15_dir, "sdxl": tiny_sdxl_dir}


@pytest.fixture(scope="module", params=list(WRITERS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(WRITERS[request.param](tmp_path_factory.mktemp("bases") / request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_embedded_dir(tmp_path_factory.mktemp("bases") / "embedded"))


def request_of(**changes: object) -> GenerationRequest:
    plain = GenerationRequest(
        prompts=("a cat", "two dogs", "a boat"), seeds=(3, 7, 2**40), steps=4, guidance_scale=4.0, height=64, width=48
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def lora_for(base: BaseModel, seed: int = 0) -> Adapter:
    targets = dict.fromkeys(base.components(), base.family.text_encoder_targets) | {"unet": base.family.adapter_targets}
    adapter = new_lora(base.components(), targets, rank=2, alpha=2.0, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in adapter.named_tensors().values():
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return adapter


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def weights(base: BaseModel) -> list[Tensor]:
    return [tensor.clone() for module in base.components().values() for tensor in module.state_dict().values()]


# ----------------------------------------------------------------------------------------- the same as stock diffusers


@pytest.mark.parametrize("scheduler", SCHEDULER_NAMES)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_pictures_are_those_of_the_stock_pipeline(base: BaseModel, scheduler: str, guidance_scale: float):
    request = request_of(scheduler=scheduler, guidance_scale=guidance_scale)
    pipeline = base.diffusers_pipeline()
    pipeline.scheduler = make_scheduler(base.scheduler, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    with quiet_libraries():
        theirs = pipeline(
            list(request.prompts),
            num_inference_steps=request.steps,
            guidance_scale=guidance_scale,
            height=64,
            width=48,
            generator=[torch.Generator().manual_seed(seed) for seed in request.seeds],
            output_type="pil",
        ).images
    assert np.array_equal(pixels(generate(base, request)), pixels(theirs))


def test_latents_are_those_of_the_stock_pipeline_with_a_negative_prompt(base: BaseModel):
    prompts = ["a cat", "two dogs"]
    noise = initial_noise(base, [torch.Generator().manual_seed(seed) for seed in (1, 2)], 64, 64)
    strategy = GuidanceStrategy(encode_text(base, prompts), encode_negative(base, "blurry", 2), 5.0, rescale=0.7)
    ours = denoise(base, denoise_request(base, noise), strategy)
    pipeline = base.diffusers_pipeline()
    pipeline.scheduler = make_scheduler(base.scheduler, "ddim")
    pipeline.set_progress_bar_config(disable=True)
    with quiet_libraries():
        theirs = pipeline(
            prompts,
            negative_prompt=["blurry"] * 2,
            num_inference_steps=4,
            guidance_scale=5.0,
            guidance_rescale=0.7,
            height=64,
            width=64,
            latents=noise.clone(),
            output_type="latent",
        ).images
    assert (ours - theirs).abs().max() <= 1e-4


def denoise_request(base: BaseModel, noise: Tensor, steps: int = 4, scheduler: str = "ddim") -> DenoiseRequest:
    return DenoiseRequest(
        noise=noise,
        height=noise.shape[2] * 8,
        width=noise.shape[3] * 8,
        scheduler=make_scheduler(base.scheduler, scheduler),
        num_steps=steps,
        generators=[torch.Generator().manual_seed(n) for n in range(len(noise))],
    )


# ------------------------------------------------------------------------------------------------ seeds and batches


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_a_picture_is_the_same_in_any_batch(base: BaseModel, scheduler: str):
    request = request_of(scheduler=scheduler)
    together = pixels(generate(base, request))
    for batch_size in (1, 2):
        assert np.abs(pixels(generate(base, request, batch_size=batch_size)) - together).max() <= 1
    alone = replace(request, prompts=request.prompts[1:2], seeds=request.seeds[1:2])
    assert np.abs(pixels(generate(base, alone))[0] - together[1]).max() <= 1


def test_the_same_request_gives_the_same_bytes(base: BaseModel):
    request = request_of(scheduler="euler_a")
    assert np.array_equal(pixels(generate(base, request)), pixels(generate(base, request)))


def test_noise_depends_on_the_seed_alone(small: BaseModel):
    one = initial_noise(small, [torch.Generator().manual_seed(5)], 64, 64)
    many = initial_noise(small, [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)], 64, 64)
    assert torch.equal(one[0], many[1]) and not torch.equal(many[0], many[1])


def test_half_precision_keeps_its_latents_in_float32(tmp_path: Path):
    base = load_base(tiny_embedded_dir(tmp_path / "base"), dtype=torch.bfloat16)
    noise = initial_noise(base, [torch.Generator().manual_seed(0)], 64, 64)
    for scheduler in SCHEDULER_NAMES:
        condition = encode_text(base, ["a cat"])
        strategy = GuidanceStrategy(condition, encode_negative(base, "", 1), 3.0)
        latents = denoise(base, denoise_request(base, noise, scheduler=scheduler), strategy)
        assert latents.dtype == torch.float32 and latents.isfinite().all()
    assert len(generate(base, request_of())) == 3


# ---------------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_changes_the_picture_and_leaves_the_model_as_it_was(base: BaseModel):
    before, adapter = weights(base), lora_for(base)
    plain = pixels(generate(base, request_of()))
    changed = pixels(generate(base, request_of(), [Route(adapter)]))
    assert np.abs(changed - plain).max() > 1
    assert np.array_equal(pixels(generate(base, request_of(), [Route(adapter, 0.0)])), plain)
    assert all(torch.equal(old, new) for old, new in zip(before, weights(base), strict=True))
    assert np.array_equal(pixels(generate(base, request_of())), plain)


def test_the_text_encoders_part_of_an_adapter_acts(base: BaseModel):
    adapter = lora_for(base)
    text_only = replace(adapter, patches={path: p for path, p in adapter.patches.items() if path.component != "unet"})
    assert text_only.patches
    assert not np.array_equal(pixels(generate(base, request_of(), [Route(text_only)])), pixels(generate(base, request_of())))


def test_an_adapter_of_another_family_is_refused_by_name(small: BaseModel):
    adapter = lora_for(small)
    foreign = replace(adapter, info=replace(adapter.info, name="my-robot", family="sdxl"))
    with pytest.raises(AdapterMismatchError, match=r"'my-robot'.*Stable Diffusion XL"):
        generate(small, request_of(), [Route(foreign)])


# ---------------------------------------------------------------------------------------------- progress and the end


def test_progress_counts_the_steps_of_all_batches(small: BaseModel):
    seen: list[tuple[int, int]] = []
    generate(small, request_of(), batch_size=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 8) for n in range(1, 9)]


def test_it_can_be_called_off_and_leaves_the_model_as_it_was(small: BaseModel):
    before, answers = weights(small), iter([False, False, True])
    with pytest.raises(Cancelled, match="after 2 of 4"):
        generate(small, request_of(), [Route(lora_for(small))], should_stop=lambda: next(answers))
    assert all(torch.equal(old, new) for old, new in zip(before, weights(small), strict=True))
    assert not any("forward" in module.__dict__ for module in small.unet.modules())


# ------------------------------------------------------------------------------------------------------- strategies


class RecordingStrategy(GuidanceStrategy):
    """Guidance whose branches have routes of their own, noting in which order the loop calls it."""

    def __init__(self, base: BaseModel, routes: list[Route]) -> None:
        super().__init__(encode_text(base, ["a cat"]), encode_negative(base, "", 1), 3.0)
        self.routes = routes
        self.calls: list[str] = []

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        self.calls.append("prepare")
        return latents * 0.5

    def branches(self, step: Step) -> list[Branch]:
        self.calls.append("branches")
        return [Branch(self.negative), Branch(self.condition, self.routes)]

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        self.calls.append("refine")
        with torch.enable_grad():
            variable = latents.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(variable.square().sum(), variable)
        return latents - 0.01 * gradient

    def combine(self, step: Step, predictions: list[Tensor]) -> Tensor:
        self.calls.append("combine")
        return super().combine(step, predictions)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        self.calls.append("after")
        return latents


def test_a_strategy_is_asked_in_order_and_its_branches_have_their_own_adapters(small: BaseModel):
    noise = initial_noise(small, [torch.Generator().manual_seed(0)], 64, 64)
    route = Route(lora_for(small))
    strategy = RecordingStrategy(small, [route])
    with_adapter = denoise(small, denoise_request(small, noise, steps=2), strategy)
    assert strategy.calls == ["prepare", *["refine", "branches", "combine", "after"] * 2]
    without = denoise(small, denoise_request(small, noise, steps=2), RecordingStrategy(small, []))
    silent = denoise(small, denoise_request(small, noise, steps=2), RecordingStrategy(small, [replace(route, strength=0.0)]))
    assert not torch.equal(with_adapter, without)
    assert torch.allclose(silent, without, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_schedulers_keep_the_bases_noise_schedule(base: BaseModel, name: str):
    scheduler = make_scheduler(base.scheduler, name)
    for key in ("prediction_type", "beta_start", "beta_end", "beta_schedule"):
        assert scheduler.config[key] == base.scheduler.config[key]
    scheduler.set_timesteps(10)
    if base.family.name == "embedded":
        assert scheduler.config.rescale_betas_zero_snr
        assert scheduler.config.timestep_spacing == "trailing"
        assert float(scheduler.timesteps[0]) == 999
    assert not scheduler.config.get("clip_sample", False)


def test_zero_snr_without_v_prediction_is_refused(small: BaseModel):
    wrong = type(small.scheduler).from_config(small.scheduler.config, prediction_type="epsilon")
    with pytest.raises(UserError, match="zero terminal SNR"):
        make_scheduler(wrong, "ddim")


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width should be a multiple of 8 pixels, not 100; use 96 or 104"),
        ({"height": 4}, "height should be a multiple of 8"),
        ({"height": 0}, "height"),
        ({"steps": 0}, "number of steps"),
        ({"steps": 1001}, "number of steps"),
        ({"seeds": (1,)}, "a prompt and a seed"),
        ({"seeds": (1, 2, -3)}, "not -3"),
        ({"seeds": (1, 2, 2**63)}, "seed"),
        ({"prompts": (), "seeds": ()}, "nothing to draw"),
        ({"scheduler": "Euler A"}, "Did you mean 'euler_a'"),
        ({"scheduler": "dpm"}, "Did you mean 'dpm"),
        ({"scheduler": "xyz"}, "Choose one of"),
    ],
)
def test_a_request_that_cannot_be_drawn_is_one_sentence(small: BaseModel, changes: dict[str, object], message: str):
    with pytest.raises(UserError) as caught:
        generate(small, request_of(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
