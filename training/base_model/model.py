"""The networks of the embedded base, as plain diffusers and transformers classes."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from studio.training.base_model.recipe import BaseRecipe


def build_unet(recipe: BaseRecipe) -> UNet2DConditionModel:
    """SD-layout UNet: cross-attention at latent_size and latent_size / 2 and in the middle, none at the lowest resolution."""
    return UNet2DConditionModel(
        sample_size=recipe.latent_size,
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        transformer_layers_per_block=recipe.transformer_layers_per_block,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=recipe.text_width,
        # diffusers' historical name: this is the number of heads.
        attention_head_dim=recipe.num_heads,
        norm_num_groups=recipe.norm_num_groups,
    )


def build_text_encoder(recipe: BaseRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text transformer, small; trained jointly with the UNet."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_heads,
        max_position_embeddings=recipe.max_tokens,
        projection_dim=recipe.text_width,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_autoencoder(recipe: BaseRecipe) -> AutoencoderTiny:
    """AutoencoderTiny whose encoder has no nonlinearity, so that it can be a PCA."""
    encoder_channels = (3 * 16,) * 4  # a 4x4 patch of RGB passes whole
    return AutoencoderTiny(
        encoder_block_out_channels=encoder_channels,
        decoder_block_out_channels=(recipe.decoder_channels,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=recipe.decoder_blocks,
        latent_channels=recipe.latent_channels,
        scaling_factor=recipe.vae_scaling_factor,
    )


def build_scheduler() -> DDIMScheduler:
    """SD's betas rescaled to zero terminal SNR (Lin et al., 2023), which asks for v-prediction and trailing timesteps."""
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


def velocity(latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noised latents and the v target (Salimans and Ho, 2022): x_t = a x + s e, v = a e - s x; all [B, C, H, W], alphas [B]."""
    a = alphas_cumprod.sqrt().view(-1, 1, 1, 1)
    s = (1 - alphas_cumprod).sqrt().view(-1, 1, 1, 1)
    return a * latents + s * noise, a * noise - s * latents
