"""Every denoiser, whatever it is inside: the loop draws stock diffusers' latents with it, and switch, composite and merge run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from studio.pipelines.adapters import Adapter, AdapterInfo, LoRAPatch, ParameterPath, Route, new_kronecker
from studio.pipelines.denoising import (
    Branch,
    Capture,
    Denoiser,
    DenoiseRequest,
    GuidanceStrategy,
    Isolation,
    Region,
    Step,
    UNetDenoiser,
    as_denoiser,
    convert_prediction,
    denoise,
    noise_level,
    split_prediction,
)
from studio.pipelines.denoising.transformers import FluxDenoiser, SD3Denoiser, pack, unpack
from studio.pipelines.encoding import TextCondition
from studio.pipelines.errors import BaseModelError, UserError
from tests.support.tiny_bases import tiny_base

HEIGHT, WIDTH = 64, 96


def flow_scheduler(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **settings)


def sd3() -> SD3Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            out_channels=4,
            pos_embed_max_size=16,
        )
    return SD3Denoiser(_alive(transformer), flow_scheduler(shift=3.0))


def flux(guidance_embeds: bool = True) -> FluxDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance_embeds,
        )
    return FluxDenoiser(_alive(transformer), flow_scheduler(use_dynamic_shifting=True))


def _alive(transformer: Any) -> Any:
    """Output layers that start as zeros get numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return transformer.requires_grad_(False).eval()


MADE: dict[str, Callable[[], Any]] = {"sd3": sd3, "flux-dev": flux, "flux-schnell": lambda: flux(guidance_embeds=False)}


@pytest.fixture(scope="module", params=list(MADE))
def denoiser(request: pytest.FixtureRequest) -> Any:
    return MADE[request.param]()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int, count: int = 2) -> TextCondition:
    return TextCondition(numbers(count, 6, 12, seed=seed), numbers(count, 10, seed=seed + 100))


def request_of(denoiser: Any, noise: Tensor, steps: int = 3, **settings: Any) -> DenoiseRequest:
    scheduler = type(denoiser.scheduler).from_config(denoiser.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(noise))]
    return DenoiseRequest(
        noise=noise, height=HEIGHT, width=WIDTH, scheduler=scheduler, num_steps=steps, generators=generators, **settings
    )


NOISE = numbers(2, 4, 8, 12)


def stock_latents(denoiser: Any, positive: TextCondition, negative: TextCondition, scale: float) -> Tensor:
    """What diffusers' own pipeline of this transformer draws."""
    kind = StableDiffusion3Pipeline if isinstance(denoiser, SD3Denoiser) else FluxPipeline
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    if kind is StableDiffusion3Pipeline:
        parts |= dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    pipeline = kind(transformer=denoiser.network, scheduler=denoiser.scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 3, "height": HEIGHT, "width": WIDTH, "output_type": "latent"}
    prompts = {"prompt_embeds": positive.prompt_embeds, "pooled_prompt_embeds": positive.pooled}
    if kind is StableDiffusion3Pipeline:
        prompts |= {"negative_prompt_embeds": negative.prompt_embeds, "negative_pooled_prompt_embeds": negative.pooled}
        return pipeline(latents=NOISE, guidance_scale=scale, **prompts, **common).images
    drawn = pipeline(latents=pack(NOISE), guidance_scale=denoiser.guidance_scale, **prompts, **common).images
    return unpack(drawn, 8, 12)


def test_the_loop_draws_what_stock_diffusers_draws(denoiser: Any):
    positive, negative = text(0), text(1)
    scale = 4.0 if denoiser.num_guidance_branches == 2 else 1.0
    ours = denoise(denoiser, request_of(denoiser, NOISE), GuidanceStrategy(positive, negative, scale))
    torch.testing.assert_close(ours, stock_latents(denoiser, positive, negative, scale), atol=1e-4, rtol=1e-4)


class Composed(GuidanceStrategy):
    """Each group of adapters in a pass of its own; which, and what weight it has, depends on the step."""

    def __init__(self, groups: Sequence[Sequence[Route]], at: Callable[[int], Sequence[int]], scale: float) -> None:
        super().__init__(text(0), text(1), scale)
        self.groups = groups
        self.at = at

    def branches(self, step: Step) -> list[Branch]:
        plain = super().branches(step)
        return [Branch(branch.condition, self.groups[index]) for index in self.at(step.index) for branch in plain]

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        each = len(super().branches(step))
        guided = [super(Composed, self).combine(step, predictions[i : i + each]) for i in range(0, len(predictions), each)]
        return torch.stack(guided).mean(dim=0)


def adapters_for(denoiser: Any) -> tuple[Adapter, Adapter]:
    """A LoRA, and a Kronecker adapter."""
    targets = r"(transformer_blocks|single_transformer_blocks)\..*\.(to_q|to_v)"
    patches = {}
    for index, (name, module) in enumerate(denoiser.network.named_modules()):
        if name.endswith(("to_q", "to_v")):
            up, down = numbers(module.out_features, 2, seed=index), numbers(2, module.in_features, seed=index + 50)
            patches[ParameterPath("transformer", name)] = LoRAPatch(0.3 * down, 0.3 * up, 2.0)
    kronecker = new_kronecker(
        {"transformer": denoiser.network},
        {"transformer": targets},
        (4, 4),
        generator=torch.Generator().manual_seed(0),
        info=AdapterInfo(name="kronecker", type="lokr"),
    )
    for name, tensor in kronecker.named_tensors().items():
        tensor.requires_grad_(False)
        if name.endswith(".second"):
            tensor.copy_(0.2 * numbers(*tensor.shape, seed=9))
    return Adapter(AdapterInfo(name="lora"), patches), kronecker


def test_merge_switch_and_composite(denoiser: Any):
    first, second = ([Route(adapter)] for adapter in adapters_for(denoiser))
    scale = 3.0 if denoiser.num_guidance_branches == 2 else 1.0

    def draw(groups: Sequence[Sequence[Route]], at: Callable[[int], Sequence[int]], **settings: Any) -> Tensor:
        return denoise(denoiser, request_of(denoiser, NOISE, **settings), Composed(groups, at, scale))

    alone = draw([first], lambda step: [0])
    drawn = {
        "plain": draw([[]], lambda step: [0]),
        "first": alone,
        "merge": draw([[*first, *second]], lambda step: [0]),
        "switch": draw([first, second], lambda step: [step % 2]),
        "composite": draw([first, second], lambda step: [0, 1]),
    }
    names = list(drawn)
    assert all(
        not torch.allclose(drawn[one], drawn[other], atol=1e-4) for index, one in enumerate(names) for other in names[index + 1 :]
    )
    assert torch.equal(draw([first, second], lambda step: [0]), alone)
    # Two bindings of one adapter lie elsewhere in memory, and matrix products may round by that.
    torch.testing.assert_close(draw([first, list(first)], lambda step: [0, 0]), alone, atol=2e-6, rtol=2e-6)
    together = draw([first, second], lambda step: [0, 1], max_rows=16)
    torch.testing.assert_close(together, drawn["composite"], atol=1e-4, rtol=1e-4)


def test_what_only_unets_have_is_refused_by_name(denoiser: Any):
    capture, everywhere = Capture(()), torch.ones(8, 12)
    wishes = {
        "attention maps": Branch(text(0), capture=capture),
        "regions": Branch(text(0), regions=(Region(everywhere),), isolation=Isolation()),
        "adapters with a mask": Branch(text(0), [Route(adapters_for(denoiser)[0], mask=everywhere)]),
    }
    for sentence, branch in wishes.items():

        class One(GuidanceStrategy):
            def branches(self, step: Step, branch: Branch = branch) -> list[Branch]:
                return [branch]

        with pytest.raises(UserError, match=f"{type(denoiser.network).__name__} .*{sentence} cannot"):
            denoise(denoiser, request_of(denoiser, NOISE), One(text(0), text(1), 1.0))


def test_they_are_denoisers(denoiser: Any, tmp_path: Path):
    assert isinstance(denoiser, Denoiser)
    assert as_denoiser(denoiser) is denoiser
    unet = as_denoiser(tiny_base("embedded", tmp_path))
    assert isinstance(unet, UNetDenoiser)
    assert (unet.prediction_type, denoiser.prediction_type) == ("v_prediction", "flow")


def test_packing():
    assert torch.equal(unpack(pack(NOISE), 8, 12), NOISE)
    with pytest.raises(BaseModelError, match="7 × 12"):
        pack(NOISE[:, :, :7])


# ---------------------------------------------------------------------------------------------- kinds of predictions

KINDS = ("epsilon", "sample", "v_prediction", "flow")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (0.3, 0.7)])
def test_every_kind_says_the_same_picture_and_noise(kind: str, alpha: float, sigma: float):
    picture, noise = numbers(1, 4, 2, 2).double(), numbers(1, 4, 2, 2, seed=1).double()
    latents = alpha * picture + sigma * noise
    said = convert_prediction(noise, "epsilon", kind, latents, alpha, sigma)
    for other in KINDS:
        there = convert_prediction(said, kind, other, latents, alpha, sigma)
        for ours, truth in zip(split_prediction(there, other, latents, alpha, sigma), (picture, noise), strict=True):
            torch.testing.assert_close(ours, truth)
        torch.testing.assert_close(convert_prediction(there, other, kind, latents, alpha, sigma), said)


def test_noise_levels_are_the_schedulers(tmp_path: Path):
    from studio.pipelines.denoising import make_scheduler

    base = tiny_base("sd15", tmp_path)
    euler = make_scheduler(base.scheduler, "euler")
    euler.set_timesteps(7)
    for timestep, sigma in zip(euler.timesteps, euler.sigmas, strict=False):  # its σ is σ/α, and there is one more
        alpha, ours = noise_level(euler, timestep)
        assert ours / alpha == pytest.approx(float(sigma), rel=1e-3)
        assert alpha**2 + ours**2 == pytest.approx(1.0)
    flow = flow_scheduler()
    flow.set_timesteps(4)
    assert noise_level(flow, flow.timesteps[1]) == pytest.approx((1 - float(flow.sigmas[1]), float(flow.sigmas[1])))
    ends = make_scheduler(tiny_base("embedded", tmp_path / "embedded").scheduler, "ddim")
    assert noise_level(ends, torch.tensor(999)) == pytest.approx((0.0, 1.0), abs=1e-6)
    with pytest.raises(ValueError, match="α = 0"):
        split_prediction(NOISE, "epsilon", NOISE, 0.0, 1.0)
