"""Stable Diffusion 2.x: SD1's UNet with linear projections and OpenCLIP ViT-H as its text encoder."""

from __future__ import annotations

from studio.pipelines.families.b_lora import b_lora_defaults
from studio.pipelines.families.diffusekrona import diffusekrona_defaults
from studio.pipelines.families.family import ModelFamily, TextEncoderFacts, TrainDefaults
from studio.pipelines.families.sara import sara_defaults
from studio.pipelines.families.targets import ATTENTION, TEXT_ATTENTION

SD2 = ModelFamily(
    name="sd2",
    title="Stable Diffusion 2",
    modelspec_architecture="stable-diffusion-v2-768-v",
    ss_base_model_version="sd_v2_v",
    pipeline_class="StableDiffusionPipeline",
    text_encoders=(
        TextEncoderFacts(
            component="text_encoder",
            tokenizer="tokenizer",
            kohya_prefix="lora_te",
            file_prefix="text_encoder",
            projection=False,
            # SD2 was trained on the last layer but one too; its published text encoder simply lacks the last layer.
            penultimate=False,
        ),
    ),
    cross_attention_dim=1024,
    latent_channels=4,
    vae_scale_factor=8,
    default_size=768,
    size_multiple=8,
    prediction_type="v_prediction",
    default_scheduler="ddim",
    default_steps=30,
    default_guidance_scale=7.5,
    attention_targets=ATTENTION,
    adapter_targets=ATTENTION,
    text_encoder_targets=TEXT_ATTENTION,
    train=TrainDefaults(resolution=768),
    method_train={
        "b-lora": b_lora_defaults(768),
        "diffusekrona": diffusekrona_defaults(768),
        "sara": sara_defaults(768),
    },
)
