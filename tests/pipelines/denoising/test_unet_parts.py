"""The explicit run of a UNet's parts is the UNet, bit for bit; it stops where it is told, and begins where a feature enters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from studio.pipelines.adapters import Route, patched
from studio.pipelines.denoising.unet_parts import ControlResiduals, check_structure, num_up_layers, part_names, run_unet
from studio.pipelines.errors import BaseModelError
from tests.support.adapters import TINY_MODELS, random_adapter
from tests.support.tiny_models import TinyModel

SIZES = [(8, 8), (9, 14)]


@pytest.fixture(scope="module", params=list(TINY_MODELS))
def model(request: pytest.FixtureRequest) -> TinyModel:
    return TINY_MODELS[request.param]()


def arguments(model: TinyModel, height: int = 8, width: int = 8, seed: int = 0) -> list[Any]:
    inputs = model.unet_inputs(height=height, width=width, seed=seed)
    return [inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], inputs.get("added_cond_kwargs")]


def plain(model: TinyModel, given: list[Any], **settings: Any) -> torch.Tensor:
    sample, timestep, text, added = given
    with torch.no_grad():
        return model.unet(sample, timestep, encoder_hidden_states=text, added_cond_kwargs=added, **settings).sample


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_all_parts_are_the_unet(model: TinyModel, size: tuple[int, int]):
    given = arguments(model, *size)
    run = run_unet(model.unet, *given)
    assert torch.equal(run.output, plain(model, given))
    assert run.deep_feature is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_also_with_patches_and_in_half_precision(dtype: torch.dtype):
    for name in ("sd15", "sdxl"):
        model = TINY_MODELS[name]()
        model.unet.to(dtype)
        given = arguments(model)
        given[0], given[2] = given[0].to(dtype), given[2].to(dtype)
        routes = [Route(random_adapter(model), 0.7, mask=torch.eye(16)), Route(random_adapter(model, seed=1, dora=True))]
        before = plain(model, given)
        with patched(model.components(), routes):
            expected = plain(model, given)
            assert torch.equal(run_unet(model.unet, *given).output, expected)
        assert not torch.equal(expected, before)


@torch.no_grad()
def test_with_controlnet_and_free_u(model: TinyModel):
    given = arguments(model, 8, 12)
    skips: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(1)
    for block in model.unet.down_blocks:
        handle = block.register_forward_hook(lambda module, inputs, output: skips.extend(output[1]))
        plain(model, given)
        handle.remove()
    channels = model.unet.config.block_out_channels
    first = torch.randn(2, channels[0], 8, 12, generator=generator)
    down = [first, *(torch.randn(skip.shape, generator=generator) for skip in skips)]
    middle = torch.randn(2, channels[-1], *skips[-1].shape[-2:], generator=generator)
    expected = plain(model, given, down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle)
    control = ControlResiduals(down, middle)
    run = run_unet(model.unet, *given, control=control, depth=2)
    assert torch.equal(run.output, expected)
    assert torch.equal(run_unet(model.unet, *given, control=control, depth=2, deep_feature=run.deep_feature).output, expected)
    model.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    try:
        everything = run_unet(model.unet, *given, depth=num_up_layers(model.unet))
        assert torch.equal(everything.output, plain(model, given))
        assert not torch.equal(everything.output, run_unet(model.unet, *given, control=control).output)
    finally:
        model.unet.disable_freeu()


def test_gradients_are_the_unets_also_with_checkpointing():
    model = TINY_MODELS["sdxl"]()
    sample, *others = arguments(model)
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.unet.enable_gradient_checkpointing()
            model.unet.train()
        for run in (lambda x: run_unet(model.unet, x, *others).output, lambda x: model.unet(x, *_positional(others)).sample):
            latents = sample.clone().requires_grad_()
            gradients.append(torch.autograd.grad(run(latents).square().sum(), latents)[0])
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients[1:])


def _positional(others: list[Any]) -> list[Any]:
    timestep, text, added = others
    return [timestep, text, None, None, None, None, added]


@torch.no_grad()
def test_it_stops_after_every_part(model: TinyModel):
    given = arguments(model)
    names = part_names(model.unet)
    seen: list[str] = []
    handles = [
        model.unet.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: seen.append(name))
        for name in names
    ]
    for last in (names[0], names[3], "mid_block.attentions.0", "up_blocks.0.resnets.1", names[-1]):
        seen.clear()
        run = run_unet(model.unet, *given, stop_after=last)
        assert run.output is None
        assert tuple(seen) == names[: names.index(last) + 1]
    for handle in handles:
        handle.remove()
    with pytest.raises(ValueError, match=r"no part 'mid_block\.attentions\.7'"):
        run_unet(model.unet, *given, stop_after="mid_block.attentions.7")


@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
@torch.no_grad()
def test_a_feature_that_enters_unchanged_changes_nothing(model: TinyModel, size: tuple[int, int]):
    given = arguments(model, *size)
    expected = plain(model, given)
    for depth in (1, 2, 3, num_up_layers(model.unet) - 1, num_up_layers(model.unet)):
        full = run_unet(model.unet, *given, depth=depth)
        assert torch.equal(full.output, expected)
        shallow = run_unet(model.unet, *given, depth=depth, deep_feature=full.deep_feature)
        assert torch.equal(shallow.output, expected), depth
        assert shallow.deep_feature is full.deep_feature


@torch.no_grad()
def test_with_a_feature_only_the_layers_around_input_and_output_run():
    model = TINY_MODELS["sd15"]()
    given, later = arguments(model, seed=0), arguments(model, seed=1)
    feature = run_unet(model.unet, *given, depth=2).deep_feature
    seen: list[str] = []
    handles = [
        model.unet.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: seen.append(name))
        for name in part_names(model.unet)
    ]
    shallow = run_unet(model.unet, *later, depth=2, deep_feature=feature).output
    for handle in handles:
        handle.remove()
    down = ["conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0"]  # as CMLoRA's cache_layer 0, cache_block 1
    up = [f"up_blocks.3.{kind}.{layer}" for layer in (1, 2) for kind in ("resnets", "attentions")]
    assert seen == [*down, *up, "conv_out"]
    assert not torch.equal(shallow, plain(model, later))
    assert not torch.equal(shallow, plain(model, given))


def test_wrong_depths_and_other_structures_are_refused():
    from diffusers import UNet2DConditionModel

    model = TINY_MODELS["embedded"]()
    given = arguments(model)
    for settings in ({"depth": 0}, {"depth": 99}, {"deep_feature": given[0]}):
        with pytest.raises(ValueError, match=r"deep feature"):
            run_unet(model.unet, *given, **settings)
    other = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    with pytest.raises(BaseModelError, match="SimpleCrossAttnDownBlock2D, UNetMidBlock2DSimpleCrossAttn"):
        check_structure(other)
