"""Stable Diffusion 1.x and its many relatives."""

from __future__ import annotations

from studio.pipelines.families.b_lora import b_lora_defaults
from studio.pipelines.families.diffusekrona import diffusekrona_defaults
from studio.pipelines.families.family import ModelFamily, TextEncoderFacts, TrainDefaults
from studio.pipelines.families.sara import sara_defaults
from studio.pipelines.families.targets import ATTENTION, TEXT_ATTENTION

SD15 = ModelFamily(
    name="sd15",
    title="Stable Diffusion 1.5",
    modelspec_architecture="stable-diffusion-v1",
    ss_base_model_version="sd_v1",
    pipeline_class="StableDiffusionPipeline",
    text_encoders=(
        TextEncoderFacts(
            component="text_encoder",
            tokenizer="tokenizer",
            kohya_prefix="lora_te",
            file_prefix="text_encoder",
            projection=False,
            penultimate=False,
        ),
    ),
    cross_attention_dim=768,
    latent_channels=4,
    vae_scale_factor=8,
    default_size=512,
    size_multiple=8,
    prediction_type="epsilon",
    default_scheduler="ddim",
    default_steps=30,
    default_guidance_scale=7.5,
    attention_targets=ATTENTION,
    adapter_targets=ATTENTION,
    text_encoder_targets=TEXT_ATTENTION,
    train=TrainDefaults(resolution=512),
    method_train={
        "b-lora": b_lora_defaults(512),
        "diffusekrona": diffusekrona_defaults(512),
        "sara": sara_defaults(512),
    },
)
