"""Tiny base models on disk, in the diffusers layout, for everything that starts from `load_base`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from studio.pipelines.base_files.loading import quiet_libraries
from studio.pipelines.base_model import BaseModel, embedded_base_dir, load_base
from tests.support.tiny_models import TinyModel, tiny_embedded, tiny_sd15, tiny_sdxl


def write_base(model: TinyModel, folder: Path, scheduler: DDIMScheduler | None = None) -> Path:
    """Save `model` as a diffusers folder of safetensors files, and return `folder`."""
    with quiet_libraries():
        pipeline = model.pipeline()
        if scheduler is not None:
            pipeline.scheduler = scheduler
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_embedded_dir(folder: Path, seed: int = 0) -> Path:
    """A random model with the embedded base's structure and its scheduler: v-prediction, zero terminal SNR, trailing."""
    return write_base(tiny_embedded(seed), folder, embedded_scheduler())


def tiny_world_dir(folder: Path, seed: int = 0) -> Path:
    """The same, but with the embedded base's own tokenizer: it reads whole prompts of the toy world."""
    tokenizer = CLIPTokenizer.from_pretrained(embedded_base_dir() / "tokenizer")
    config = CLIPTextConfig.from_pretrained(embedded_base_dir() / "text_encoder")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads = 20, 40, 2, 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(config).requires_grad_(False).eval()
    model = replace(tiny_embedded(seed), text_encoders=(text_encoder,), tokenizers=(tokenizer,))
    return write_base(model, folder, embedded_scheduler())


def tiny_sd15_dir(folder: Path, seed: int = 0) -> Path:
    """A random model with SD1.5's structure."""
    return write_base(tiny_sd15(seed), folder)


def tiny_sdxl_dir(folder: Path, seed: int = 0) -> Path:
    """A random model with SDXL's structure: two text encoders, pooled text and size conditioning."""
    return write_base(tiny_sdxl(seed), folder)


def tiny_base(name: str, folder: Path, seed: int = 0) -> BaseModel:
    """Write and load a tiny base model; `name` is "embedded", "sd15" or "sdxl"."""
    writers = {"embedded": tiny_embedded_dir, "sd15": tiny_sd15_dir, "sdxl": tiny_sdxl_dir}
    return load_base(writers[name](folder, seed))


def embedded_scheduler() -> DDIMScheduler:
    """The embedded base's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
