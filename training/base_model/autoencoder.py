"""The embedded autoencoder: an encoder that *is* the linear PCA of 8x8 patches, and a small decoder trained on its latents.

Fixing the encoder in closed form gives latents at once, so the denoiser can train while the decoder does. The PCA of a patch
is written exactly into AutoencoderTiny's strided convolutions: two of them regroup pixels (4x4x3 = 48 channels), the third
applies the principal components, the last is the identity with the mean as bias.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from studio.training.base_model.model import build_autoencoder
from studio.training.base_model.optimizer import MatrixOptimizer
from studio.training.base_model.recipe import BaseRecipe
from studio.training.base_model.renders import finished_shards, load_pictures


def patch_pca(pictures: np.ndarray, recipe: BaseRecipe) -> tuple[torch.Tensor, torch.Tensor]:
    """PCA of 8x8 patches. `pictures` [N, S, S, 3] uint8 -> functionals [z, 3, 8, 8] and their means [z], such that
    latent = <functional, patch in 0..1> - mean has the recipe's partly whitened scale (overall std 1 / scaling factor)."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).double() / 255
    patches = F.unfold(x, 8, stride=8).transpose(1, 2).reshape(-1, 3 * 64)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    z = recipe.latent_channels
    values, vectors = values.flip(0)[:z], vectors.flip(1)[:, :z]
    # A fixed sign, so that the recipe gives the same latents on every machine.
    vectors = vectors * vectors[vectors.abs().argmax(0), torch.arange(z)].sign()
    scales = values.sqrt() ** -recipe.whitening
    scales = scales / (values * scales**2).mean().sqrt() / recipe.vae_scaling_factor
    functionals = (vectors * scales).T
    return functionals.reshape(z, 3, 8, 8).float(), (functionals @ mean).float()


@torch.no_grad()
def write_pca(vae: AutoencoderTiny, functionals: torch.Tensor, means: torch.Tensor) -> None:
    """Write the functionals into the encoder's convolutions. A stride-2 3x3 kernel with padding 1 sees pixels 2i and 2i+1 at its
    indices 1 and 2, so each one regroups 2x2 pixels into channels without touching the padding."""
    for parameter in vae.encoder.parameters():
        parameter.zero_()
    first, half, quarter, eighth, last = vae.encoder.layers
    for c in range(3):
        first.weight[c, c, 1, 1] = 1
    for channels, conv in ((3, half), (12, quarter)):
        for c in range(channels):
            for dy in range(2):
                for dx in range(2):
                    conv.weight[(dy * 2 + dx) * channels + c, c, 1 + dy, 1 + dx] = 1
    z = len(functionals)
    for y in range(8):
        for x in range(8):
            # outermost 4-pixel offset is the kernel index, then 2-pixel, then 1-pixel offsets are channels
            channel = ((y // 2 % 2) * 2 + x // 2 % 2) * 12
            inner = ((y % 2) * 2 + x % 2) * 3
            # `half` groups 1-pixel offsets (inner), `quarter` groups 2-pixel offsets (channel)
            eighth.weight[:z, channel + inner : channel + inner + 3, 1 + y // 4, 1 + x // 4] = functionals[:, :, y, x]
    last.weight[torch.arange(z), torch.arange(z), 1, 1] = 1
    last.bias.copy_(-means)


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [N, S, S, 3] -> float [N, 3, S, S] in -1..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_shard(vae: AutoencoderTiny, pictures: np.ndarray) -> torch.Tensor:
    """Scaled latents [N, z, s, s] in fp16 of uint8 pictures."""
    parts = [vae.encode(to_pixels(pictures[i : i + 256])).latents for i in range(0, len(pictures), 256)]
    return (torch.cat(parts) * vae.config.scaling_factor).half().contiguous()


def psnr(vae: AutoencoderTiny, pictures: np.ndarray) -> float:
    """Mean PSNR in dB of pictures through the autoencoder."""
    with torch.no_grad():
        x = to_pixels(pictures)
        y = vae.decode(vae.encode(x).latents).sample.clamp(-1, 1)
    return float((-10 * ((x - y).div(2) ** 2).mean((1, 2, 3)).log10()).mean())


def fit_encoder(state_dir: Path, recipe: BaseRecipe) -> AutoencoderTiny:
    """Autoencoder with the PCA encoder (decoder still random), or the saved one where it exists."""
    torch.manual_seed(recipe.seed)
    vae = build_autoencoder(recipe)
    path = state_dir / "vae.safetensors"
    if path.exists():
        vae.load_state_dict(load_file(path))
        return vae
    write_pca(vae, *patch_pca(load_pictures(state_dir / "renders", 0), recipe))
    save_file(vae.state_dict(), path)
    return vae


def train_decoder(state_dir: Path, recipe: BaseRecipe, *, cpu_seconds: float) -> AutoencoderTiny:
    """Train the decoder on fixed latents of whole pictures for `cpu_seconds`, annealing to zero; resumes its weights."""
    vae = fit_encoder(state_dir, recipe)
    renders = state_dir / "renders"
    shards = finished_shards(renders)
    held_out = load_pictures(renders, shards[-1])[-128:]
    decoder = vae.decoder.to(memory_format=torch.channels_last)
    optimizer = MatrixOptimizer(
        decoder,
        muon_learning_rate=recipe.decoder_learning_rate,
        learning_rate=recipe.decoder_learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        ends=("layers.0.", f"layers.{len(decoder.layers) - 1}."),
    )
    rng = np.random.default_rng(recipe.seed)
    start, step, log = time.process_time(), 0, []
    while (used := time.process_time() - start) < cpu_seconds:
        if step % 400 == 0:  # a fresh pool of pictures, encoded once
            shard = load_pictures(renders, shards[int(rng.integers(len(shards) - (len(shards) > 1)))])
            pool = shard[rng.permutation(len(shard))[:1024]]
            pixels = to_pixels(pool)
            latents = encode_shard(vae, pool).float() / recipe.vae_scaling_factor
        progress = used / cpu_seconds
        rows = torch.from_numpy(rng.integers(0, len(pool), recipe.decoder_batch_size))
        z, target = latents[rows], pixels[rows]
        noise = torch.randn_like(z) * torch.rand(len(z), 1, 1, 1) * recipe.decoder_noise / recipe.vae_scaling_factor
        with torch.autocast("cpu", torch.bfloat16):  # three times as fast where the processor multiplies bf16
            out = decoder((z + noise).contiguous(memory_format=torch.channels_last)).float()
        loss = (out - target).abs().mean() + 0.5 * edge_loss(out, target)
        loss.backward()
        optimizer.step(min(1.0, (step + 1) / 50, 2 * (1 - progress) + 0.01), recipe.max_grad_norm)
        step += 1
        if step % 100 == 0:
            log.append({"step": step, "cpu_seconds": round(used, 1), "loss": float(loss.detach()), "psnr": psnr(vae, held_out)})
            print(f"decoder: {json.dumps(log[-1])}", flush=True)
            save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, state_dir / "vae.safetensors")
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, state_dir / "vae.safetensors")
    with (state_dir / "decoder-log.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in log)
    return vae


def edge_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 between the pictures' first differences: keeps outlines crisp where plain L1 would blur them."""
    dy = (a[..., 1:, :] - a[..., :-1, :]) - (b[..., 1:, :] - b[..., :-1, :])
    dx = (a[..., :, 1:] - a[..., :, :-1]) - (b[..., :, 1:] - b[..., :, :-1])
    return dy.abs().mean() + dx.abs().mean()
