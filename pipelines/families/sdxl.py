"""Stable Diffusion XL base: two text encoders, picture-size conditioning, no attention at full resolution."""

from __future__ import annotations

from studio.pipelines.families.b_lora import b_lora_defaults
from studio.pipelines.families.diffusekrona import diffusekrona_defaults
from studio.pipelines.families.family import ModelFamily, TextEncoderFacts, TrainDefaults
from studio.pipelines.families.ldm_names import ldm_block_names
from studio.pipelines.families.sara import sara_defaults
from studio.pipelines.families.targets import ATTENTION, TEXT_ATTENTION

SDXL = ModelFamily(
    name="sdxl",
    title="Stable Diffusion XL",
    modelspec_architecture="stable-diffusion-xl-v1-base",
    ss_base_model_version="sdxl_base_v1-0",
    pipeline_class="StableDiffusionXLPipeline",
    text_encoders=(
        TextEncoderFacts(
            component="text_encoder",
            tokenizer="tokenizer",
            kohya_prefix="lora_te1",
            file_prefix="text_encoder",
            projection=False,
            penultimate=True,
        ),
        TextEncoderFacts(
            component="text_encoder_2",
            tokenizer="tokenizer_2",
            kohya_prefix="lora_te2",
            file_prefix="text_encoder_2",
            projection=True,
            penultimate=True,
        ),
    ),
    cross_attention_dim=2048,
    latent_channels=4,
    vae_scale_factor=8,
    default_size=1024,
    size_multiple=8,
    prediction_type="epsilon",
    default_scheduler="euler",
    default_steps=30,
    default_guidance_scale=5.0,
    attention_targets=ATTENTION,
    adapter_targets=ATTENTION,
    text_encoder_targets=TEXT_ATTENTION,
    content_block="up_blocks.0.attentions.0",
    style_block="up_blocks.0.attentions.1",
    kohya_names=ldm_block_names(num_levels=3, layers_per_block=2, attention_levels=(1, 2)),
    train=TrainDefaults(resolution=1024, steps_per_image=120, min_steps=500),
    method_train={
        "b-lora": b_lora_defaults(1024),
        "diffusekrona": diffusekrona_defaults(1024),
        "sara": sara_defaults(1024),
    },
)
