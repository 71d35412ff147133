"""The studio's denoising loop as diffusers pipelines, for code that speaks diffusers.

`ComposePipeline` and `ComposeXLPipeline` are their parents in all but the loop: `from_pretrained`, schedulers, offloading,
callbacks, and saved folders, which plain diffusers opens (they carry the parent's class name). A call takes a strategy, and
so may compose adapters; without one it draws its parent's picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import BaseModel, decode_latents, encode_images, encode_negative, encode_text
from studio.pipelines.denoising import (
    DenoiseRequest,
    GuidanceStrategy,
    Passes,
    PassOutput,
    Step,
    Strategy,
    UNetDenoiser,
    denoise,
)
from studio.pipelines.denoising.control_net import ControlNetSource
from studio.pipelines.errors import Cancelled, UserError
from studio.pipelines.families import detect_family
from studio.pipelines.generation import to_images
from studio.pipelines.steering import first_step

Generators = torch.Generator | Sequence[torch.Generator] | None
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True, eq=False)
class PipelineModel(BaseModel):
    """The base model that a pipeline holds; it runs where the pipeline says, wherever its weights wait."""

    execution_device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        return super().device if self.execution_device is None else self.execution_device


class _Composing:
    """What both pipelines add to their parents."""

    saved_as: ClassVar[str]

    def to_json_string(self: Any) -> str:
        """The pipeline's config, under the parent's class name: a saved folder opens without the studio."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        return json.dumps(config | {"_class_name": self.saved_as}, indent=2, sort_keys=True) + "\n"

    def base_model(self: Any) -> PipelineModel:
        """The pipeline's components as a base model, for making strategies: they share modules and scheduler."""
        encoders = [getattr(self, name, None) for name in ("text_encoder", "text_encoder_2")]
        tokenizers = [getattr(self, name, None) for name in ("tokenizer", "tokenizer_2")]
        return PipelineModel(
            family=detect_family(self.unet.config),
            unet=self.unet,
            vae=self.vae,
            text_encoders=tuple(encoder for encoder in encoders if encoder is not None),
            tokenizers=tuple(tokenizer for tokenizer in tokenizers if tokenizer is not None),
            scheduler=self.scheduler,
            source=str(self.config.get("_name_or_path") or type(self).__name__),
            size=int(self.unet.config.sample_size) * self.vae_scale_factor,
            zero_empty_negative=bool(self.config.get("force_zeros_for_empty_prompt", False)),
            execution_device=self._execution_device,
        )

    @torch.no_grad()
    def __call__(
        self: Any,
        prompt: str | Sequence[str] | None = None,
        *,
        strategy: Strategy | None = None,
        routes: Sequence[Route] = (),
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Any = None,
        strength: float = 0.8,
        mask_image: Any = None,
        controlnet: Any = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float = 1.0,
        eta: float = 0.0,
        max_rows: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Any:
        """Draw pictures. What diffusers also has means here what it means there.

        Args:
            strategy: how to compose; None follows the prompt. A strategy knows its own prompts; `prompt` then only says how
                many pictures there are (else as many as generators, or one).
            routes: adapters that act on everything: text encoders, and every pass.
            image: pictures to start from (img2img), and strength, from 0 to 1, how far to leave them. mask_image: white
                where they are to be drawn anew (inpainting with an ordinary model).
            controlnet, control_image: a `ControlNetModel` of diffusers, and what it looks at.
            max_rows: rows up to which passes with different adapters are one batch.
            callback_on_step_end: gets `(pipeline, step, timestep, {"latents": …})` and may return other latents. Setting the
                pipeline's `_interrupt` ends the loop with what there is.

        Raises:
            UserError: neither a prompt nor a strategy, or strength out of range.
        """
        base = self.base_model()
        device = base.device
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        prompts = [each for each in prompts for _ in range(num_images_per_prompt)]
        if strategy is None and not prompts:
            raise UserError("There is nothing to draw: give a prompt or a strategy.")
        count = len(prompts) or (len(generator) if isinstance(generator, Sequence) else num_images_per_prompt)
        height, width = height or base.size, width or base.size
        self._interrupt = False
        with _frozen(base.components().values()), patched(base.components(), routes):
            if strategy is None:
                negative = encode_negative(base, negative_prompt, count)
                strategy = GuidanceStrategy(encode_text(base, prompts), negative, guidance_scale, guidance_rescale)
            picture = None if image is None else _encoded(self, base, image, height, width, count, generator)
            shape = (count, base.family.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
            noise = latents
            if noise is None:
                generators = list(generator) if isinstance(generator, Sequence) else generator
                noise = randn_tensor(shape, generator=generators, device=device, dtype=base.dtype)
            denoiser = UNetDenoiser(base, device)
            control = None
            if controlnet is not None:
                pixels = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_convert_rgb=True)
                control = ControlNetSource(
                    controlnet, denoiser, pixels.preprocess(control_image, height, width), controlnet_conditioning_scale
                )
            request = DenoiseRequest(
                noise=noise,
                height=height,
                width=width,
                scheduler=self.scheduler,
                num_steps=num_inference_steps,
                generators=_per_picture(generator, count),
                eta=eta,
                picture=picture,
                first_step=0 if picture is None else first_step(num_inference_steps, strength) * self.scheduler.order,
                redraw=None if mask_image is None else _redraw(self, mask_image, height, width),
                control=control,
                max_rows=max_rows,
            )
            watched = _Watched(strategy, self, callback_on_step_end)
            with self.progress_bar(total=num_inference_steps) as bar:
                try:
                    drawn = denoise(
                        denoiser, request, watched, on_step=lambda done, total: bar.update(), should_stop=lambda: self._interrupt
                    )
                except Cancelled:
                    drawn = watched.latents
        images: Any = drawn
        if output_type != "latent":
            decoded = decode_latents(base, drawn)
            arrays = {"pt": lambda: decoded, "np": lambda: decoded.permute(0, 2, 3, 1).cpu().numpy()}
            images = arrays[output_type]() if output_type in arrays else to_images(decoded)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=None) if return_dict else (images, None)


class ComposePipeline(_Composing, StableDiffusionPipeline):
    """For bases with SD1.5's structure, SD2's and the embedded one's."""

    saved_as = "StableDiffusionPipeline"


class ComposeXLPipeline(_Composing, StableDiffusionXLPipeline):
    """For bases with SDXL's structure."""

    saved_as = "StableDiffusionXLPipeline"


class _Watched(Strategy):
    """A strategy with a callback after each step."""

    def __init__(self, strategy: Strategy, pipeline: Any, callback: OnStepEnd | None) -> None:
        self.strategy = strategy
        self.pipeline = pipeline
        self.callback = callback
        self.latents = torch.empty(0)

    def begin(self, passes: Passes) -> None:
        self.strategy.begin(passes)

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        self.latents = self.strategy.prepare(request, latents)
        return self.latents

    def branches(self, step: Step) -> Any:
        return self.strategy.branches(step)

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        return self.strategy.refine_latents(step, latents)

    def observe(self, step: Step, outputs: Sequence[PassOutput]) -> None:
        self.strategy.observe(step, outputs)

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        return self.strategy.combine(step, predictions)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        self.latents = self.strategy.after_step(step, latents)
        if self.callback is not None:
            answer = self.callback(self.pipeline, step.index, step.timestep, {"latents": self.latents})
            self.latents = self.latents if not answer else answer.get("latents", self.latents)
        return self.latents


@contextmanager
def _frozen(modules: Any) -> Iterator[None]:
    """No gradient for weights while a strategy asks for one of latents."""
    wanted = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _per_picture(generator: Generators, count: int) -> list[Any]:
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise UserError(f"There are {count} pictures and {len(generator)} generators; give one for each, or one for all.")
        return list(generator)
    return [generator] * count


def _encoded(pipeline: Any, base: BaseModel, image: Any, height: int, width: int, count: int, generator: Generators) -> Tensor:
    """Latents of the pictures to start from, one for each to be drawn."""
    pixels = pipeline.image_processor.preprocess(image, height, width)
    if count % len(pixels):
        raise UserError(f"{len(pixels)} pictures to start from cannot be shared out to {count}.")
    pixels = pixels.repeat_interleave(count // len(pixels), dim=0)
    if not isinstance(generator, Sequence):
        return encode_images(base, pixels, generator)
    return torch.cat([encode_images(base, each[None], one) for each, one in zip(pixels, generator, strict=True)])


def _redraw(pipeline: Any, mask: Any, height: int, width: int) -> Tensor:
    """`[1 or B, 1, h, w]`: 1 where the picture is drawn anew."""
    factor = pipeline.vae_scale_factor
    processor = VaeImageProcessor(vae_scale_factor=factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    pixels = processor.preprocess(mask, height, width)
    return nn.functional.interpolate(pixels, (height // factor, width // factor))
