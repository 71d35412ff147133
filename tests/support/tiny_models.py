"""Tiny models of the real classes, structured like SD1.5, SDXL and the embedded base model.

They are built in well under a second, have random weights from a fixed seed, and every block, layer and name that an
adapter file can speak of: cross-attention, feed-forwards, projections, resnet convolutions, time embeddings, and one or
two text encoders. What they draw means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TEXT_LENGTH = 16


@dataclass(frozen=True)
class TinyModel:
    """The components of one tiny model.

    Attributes:
        family: `sd15`, `sdxl` or `embedded`.
        text_encoders: one for SD1.5 and the embedded model, two for SDXL.
        tokenizers: as many as text encoders.
    """

    family: str
    unet: UNet2DConditionModel
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    scheduler: DDIMScheduler

    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters can change, by component name: `unet`, `text_encoder`, `text_encoder_2`."""
        names = ("text_encoder", "text_encoder_2")
        return {"unet": self.unet, **dict(zip(names, self.text_encoders, strict=False))}

    def pipeline(self) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """A real diffusers pipeline that shares these modules."""
        if self.family == "sdxl":
            return StableDiffusionXLPipeline(
                vae=self.vae,
                text_encoder=self.text_encoders[0],
                text_encoder_2=self.text_encoders[1],
                tokenizer=self.tokenizers[0],
                tokenizer_2=self.tokenizers[1],
                unet=self.unet,
                scheduler=self.scheduler,
                add_watermarker=False,
            )
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoders[0],
            tokenizer=self.tokenizers[0],
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def token_ids(self, batch: int = 2, seed: int = 0) -> torch.Tensor:
        """Random token ids `[batch, TEXT_LENGTH]` that end with the end-of-text token."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 256, (batch, TEXT_LENGTH), generator=generator)
        ids[:, -1] = self.tokenizers[0].eos_token_id
        return ids

    def unet_inputs(self, batch: int = 2, height: int = 8, width: int = 8, seed: int = 0) -> dict[str, Any]:
        """Arguments for `unet(**inputs)`: a sample `[batch, C, height, width]`, a timestep, text states and SDXL's extras."""
        generator = torch.Generator().manual_seed(seed)
        config = self.unet.config
        inputs: dict[str, Any] = {
            "sample": torch.randn(batch, config.in_channels, height, width, generator=generator),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, config.cross_attention_dim, generator=generator),
        }
        if self.family == "sdxl":
            pooled = torch.randn(batch, self.text_encoders[1].config.projection_dim, generator=generator)
            inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(batch, 6)}
        return inputs


def tiny_sd15(seed: int = 0, prediction_type: str = "epsilon") -> TinyModel:
    """A model with Stable Diffusion 1.5's structure: four blocks, convolutional projections, 16 + 1 text dimensions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=2,
            cross_attention_dim=24,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        text_encoder = CLIPTextModel(_text_config(hidden_size=24))
        vae = _kl_autoencoder()
    return TinyModel("sd15", _frozen(unet), _frozen(vae), (_frozen(text_encoder),), (_tokenizer(),), _scheduler(prediction_type))


def tiny_sdxl(seed: int = 0) -> TinyModel:
    """A model with SDXL's structure: three blocks, linear projections, two text encoders, pooled text and size inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 3),
            cross_attention_dim=24 + 32,
            attention_head_dim=(2, 4, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
        first = CLIPTextModel(_text_config(hidden_size=24))
        second = CLIPTextModelWithProjection(_text_config(hidden_size=32, projection_dim=16, hidden_act="gelu"))
        vae = _kl_autoencoder()
    encoders = (_frozen(first), _frozen(second))
    return TinyModel("sdxl", _frozen(unet), _frozen(vae), encoders, (_tokenizer(), _tokenizer()), _scheduler("epsilon"))


def tiny_embedded(seed: int = 0) -> TinyModel:
    """A model with the embedded base model's structure: three blocks of one layer, 16 latent channels, AutoencoderTiny."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            block_out_channels=(16, 32, 32),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=20,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        text_encoder = CLIPTextModel(_text_config(hidden_size=20))
        vae = AutoencoderTiny(
            latent_channels=16,
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            scaling_factor=1.0,
        )
    scheduler = _scheduler("v_prediction")
    return TinyModel("embedded", _frozen(unet), _frozen(vae), (_frozen(text_encoder),), (_tokenizer(),), scheduler)


def sd15_unet_config() -> dict[str, Any]:
    """The structure of Stable Diffusion 1.5's UNet at full size; build it under `torch.device("meta")`."""
    return {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }


def sdxl_unet_config() -> dict[str, Any]:
    """The structure of SDXL's UNet at full size; build it under `torch.device("meta")`."""
    return {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }


def _text_config(hidden_size: int, projection_dim: int = 16, hidden_act: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=projection_dim,
        hidden_act=hidden_act,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer without merges: every byte, and every byte that ends a word, is a token."""
    byte_symbols = list(_bytes_to_unicode().values())
    words = [*byte_symbols, *(symbol + "</w>" for symbol in byte_symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)


def _bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _kl_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).eval()
