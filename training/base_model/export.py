"""Write the trained base as a standard diffusers folder, with its model card and loss curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure
from safetensors.torch import load_file

from studio.training.base_model.denoiser import DenoiserState
from studio.training.base_model.model import build_autoencoder, build_scheduler
from studio.training.base_model.recipe import BaseRecipe

SHARD_BYTES = "13MB"


def assemble(state_dir: Path, recipe: BaseRecipe) -> tuple[StableDiffusionPipeline, DenoiserState]:
    """Pipeline made of the moving averages in the state folder."""
    state = DenoiserState(recipe)
    state.load(state_dir / "denoiser")
    with torch.no_grad():
        for parameter, ema in zip(state.parameters(), state.ema, strict=True):
            parameter.copy_(ema)
    vae = build_autoencoder(recipe)
    vae.load_state_dict(load_file(state_dir / "vae.safetensors"))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=state.text_encoder,
        tokenizer=state.tokenizer,
        unet=state.unet.to(memory_format=torch.contiguous_format),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, state


def export(state_dir: Path, recipe: BaseRecipe, output: Path) -> None:
    """Write `output` (fp16 safetensors, shards under 14 MB) in place of what stood there."""
    pipeline, state = assemble(state_dir, recipe)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(part, safe_serialization=True, max_shard_size=SHARD_BYTES)
    # transformers takes a text encoder's dtype from its config: fp16 beside an fp32 UNet would crash a plain from_pretrained.
    edit_json(part / "text_encoder" / "config.json", dtype="float32")
    # AutoencoderTiny registers a key that its own constructor does not take.
    edit_json(part / "vae" / "config.json", block_out_channels=None)
    recipe.save(part / "recipe.json")
    write_training_log(state_dir, part)
    (part / "README.md").write_text(model_card(part, recipe, state), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    part.rename(output)


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_training_log(state_dir: Path, folder: Path) -> None:
    """Copy both logs (thinned) and draw the loss curve."""
    lines = (state_dir / "denoiser-log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    (folder / "training-log.jsonl").write_text("\n".join(lines[:: max(1, len(lines) // 400)]) + "\n", encoding="utf-8")
    decoder_log = state_dir / "decoder-log.jsonl"
    if decoder_log.exists():
        shutil.copy(decoder_log, folder / "decoder-log.jsonl")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([e["pictures"] / 1000 for e in entries], [e["loss"] for e in entries], linewidth=1)
    axes.set(xlabel="thousand pictures seen", ylabel="v-prediction loss", yscale="log", title="Embedded base: training loss")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=110)


def model_card(folder: Path, recipe: BaseRecipe, state: DenoiserState) -> str:
    """Model card: data, effort, seeds and known weaknesses."""
    entries = [json.loads(line) for line in (folder / "training-log.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = state.step * recipe.batch_size
    cpu_hours = sum(e["cpu_seconds"] for e in entries) / len(entries) * (state.step / 25) / 3600
    unet = sum(p.numel() for p in state.unet.parameters()) / 1e6
    text = sum(p.numel() for p in state.text_encoder.parameters()) / 1e6
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 2**20
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The studio's embedded base

A small text-to-image latent-diffusion model of Stable Diffusion's structure, trained from scratch by the recipe in
`training/base_model/` on rendered scenes of the toy world in `assets/world/`. It exists so that training, composing and judging
adapters can be done for real on a laptop without a network. It knows nothing of the real world.

* **Data**: {max(e["unique_pictures"] for e in entries):,} rendered scenes of {recipe.size} px, captions drawn afresh each time
  (rare tokens such as `sks` and `ohwx` appear as neutral words).
* **Networks**: UNet {unet:.1f} M, text encoder {text:.2f} M (trained jointly), AutoencoderTiny with a linear (PCA) encoder and
  {recipe.latent_channels} latent channels at {recipe.latent_size}x{recipe.latent_size}; {size:.1f} MiB of fp16 safetensors.
* **Training**: {seen:,} pictures seen, about {cpu_hours:.1f} CPU-hours, batch {recipe.batch_size}, seed {recipe.seed},
  v-prediction with zero terminal SNR, Muon for hidden matrices and AdamW for the rest, moving average
  {recipe.ema_decay}. Loss curve: `loss.png`; logs: `training-log.jsonl`, `decoder-log.jsonl`; every number: `recipe.json`.
* **Use**: `diffusers.StableDiffusionPipeline.from_pretrained(folder)("a red cat on the grass")`; the saved scheduler is DDIM with
  trailing timesteps; 30 steps and guidance 3 to 4 suit it.
* **Known weaknesses**: small inner details (eyes, windows, hatching) can be soft; patterns are less reliable than colours; three
  and four objects often lose one; words outside the toy world mean nothing to it. `studio eval base` prints how good it is.
"""
