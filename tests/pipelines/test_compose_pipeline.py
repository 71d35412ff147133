"""ComposePipeline and ComposeXLPipeline: diffusers pipelines in all but the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from studio.pipelines.adapters import Route
from studio.pipelines.base_files.loading import quiet_libraries
from studio.pipelines.compose_pipeline import ComposePipeline, ComposeXLPipeline
from studio.pipelines.denoising import Branch, GuidanceStrategy, Step
from studio.pipelines.errors import UserError
from tests.support.adapters import random_adapter
from tests.support.passes import text_of
from tests.support.tiny_bases import tiny_sd15_dir, tiny_sdxl_dir
from tests.support.tiny_models import TinyModel

MADE = {"sd15": (ComposePipeline, tiny_sd15_dir), "sdxl": (ComposeXLPipeline, tiny_sdxl_dir)}


@pytest.fixture(scope="module", params=list(MADE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MADE[request.param][1](tmp_path_factory.mktemp("bases") / request.param)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    with quiet_libraries():
        loaded = MADE[folder.name][0].from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 64, "width": 96, "output_type": "np"}


def stock(pipeline: Any, made: Any, **extra: Any) -> Any:
    """A stock pipeline of the same modules."""
    with quiet_libraries():
        stock = made(**pipeline.components, **extra)
    stock.set_progress_bar_config(disable=True)
    return stock


def parent(pipeline: Any) -> Any:
    return type(pipeline).__mro__[2]


def extras(pipeline: Any) -> dict[str, Any]:
    return {"add_watermarker": False} if isinstance(pipeline, ComposeXLPipeline) else {"requires_safety_checker": False}


@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler])
def test_without_a_strategy_it_is_its_parent(pipeline: Any, scheduler: Any):
    before = pipeline.scheduler
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(before.config)
    prompts = ["a cat", "two dogs", "a boat"]
    ours = pipeline(prompts, negative_prompt="bad", generator=generators(1, 2, 3), **SETTINGS).images
    theirs = stock(pipeline, parent(pipeline), **extras(pipeline))(
        prompts, negative_prompt=["bad"] * 3, generator=generators(1, 2, 3), **SETTINGS
    ).images
    pipeline.scheduler = before
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_a_saved_folder_is_the_parents(pipeline: Any, tmp_path: Path):
    with quiet_libraries():
        pipeline.save_pretrained(tmp_path)
        opened = DiffusionPipeline.from_pretrained(tmp_path)
        again = type(pipeline).from_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == parent(pipeline).__name__
    assert type(opened) is parent(pipeline)
    assert type(again) is type(pipeline)


def test_a_strategy_draws_with_its_own_words_and_adapters(pipeline: Any):
    base = pipeline.base_model()
    model = TinyModel(base.family.name, base.unet, base.vae, base.text_encoders, base.tokenizers, base.scheduler)
    route = Route(random_adapter(model, targets={"unet": ".*attn2.*"}))
    guided = GuidanceStrategy(text_of(base, "a cat"), text_of(base, ""), 4.0)

    class Routed(GuidanceStrategy):
        def branches(self, step: Step) -> list[Branch]:
            return [Branch(branch.condition, [route]) for branch in super().branches(step)]

    plain = pipeline(strategy=guided, generator=generators(1), **SETTINGS).images
    routed = pipeline(strategy=Routed(guided.condition, guided.negative, 4.0), generator=generators(1), **SETTINGS).images
    outside = pipeline(strategy=guided, routes=[route], generator=generators(1), **SETTINGS).images
    np.testing.assert_allclose(routed, outside, atol=1e-4)
    assert np.abs(routed - plain).max() > 1e-3
    assert all(parameter.requires_grad for parameter in pipeline.unet.parameters())  # as it was loaded


def test_callbacks_latents_and_interruption(pipeline: Any):
    seen: list[tuple[int, tuple[int, ...]]] = []

    def look(pipe: Any, index: int, timestep: torch.Tensor, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((index, tuple(values["latents"].shape)))
        pipe._interrupt = index == 1
        return {"latents": torch.zeros_like(values["latents"])}

    shape = (1, 4, 8, 12)
    settings = SETTINGS | {"output_type": "latent"}
    drawn = pipeline("a cat", latents=torch.ones(shape), callback_on_step_end=look, **settings).images
    assert seen == [(0, shape), (1, shape)]
    assert torch.equal(drawn, torch.zeros(shape))
    start = torch.randn(shape, generator=generators(0)[0])
    assert torch.equal(*(pipeline("a cat", latents=start, **settings).images for _ in range(2)))


def photo(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    return Image.fromarray(values).resize((96, 64))


def test_pictures_to_start_from(pipeline: Any):
    made = StableDiffusionXLImg2ImgPipeline if "XL" in type(pipeline).__name__ else StableDiffusionImg2ImgPipeline
    settings = {name: value for name, value in SETTINGS.items() if name not in ("height", "width")}
    theirs = stock(pipeline, made, **extras(pipeline))(
        "a cat", image=photo(), strength=0.7, generator=generators(1), **settings
    ).images
    ours = pipeline("a cat", image=photo(), strength=0.7, generator=generators(1), **SETTINGS).images
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    with pytest.raises(UserError, match="strength should be above 0"):
        pipeline("a cat", image=photo(), strength=1.5, **SETTINGS)


def test_what_is_not_to_be_redrawn_is_kept(pipeline: Any):
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))
    settings = SETTINGS | {"output_type": "latent", "strength": 1.0, "image": photo(), "mask_image": mask}
    one, other = (pipeline(words, generator=generators(1), **settings).images for words in ("a cat", "two dogs"))
    assert torch.equal(one[..., :6], other[..., :6])
    assert not torch.allclose(one[..., 6:], other[..., 6:], atol=1e-3)


def test_a_controlnet_steers_it(pipeline: Any):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        controlnet = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, 0.0, 0.1)  # they start as zeros
    made = StableDiffusionXLControlNetPipeline if "XL" in type(pipeline).__name__ else StableDiffusionControlNetPipeline
    theirs = stock(pipeline, made, controlnet=controlnet, **extras(pipeline))(
        "a cat", image=photo(), controlnet_conditioning_scale=0.7, generator=generators(1), **SETTINGS
    ).images
    control = {"controlnet": controlnet, "control_image": photo(), "controlnet_conditioning_scale": 0.7}
    ours = pipeline("a cat", generator=generators(1), **control, **SETTINGS).images
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(ours - pipeline("a cat", generator=generators(1), **SETTINGS).images).max() > 1e-3


def test_nothing_to_draw_and_too_few_generators_are_sentences(pipeline: Any):
    with pytest.raises(UserError, match="prompt or a strategy"):
        pipeline()
    with pytest.raises(UserError, match="2 pictures and 1 generators"):
        pipeline(["a", "b"], generator=generators(1), latents=torch.zeros(2, 4, 8, 12), **SETTINGS)
