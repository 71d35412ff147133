"""Joint training of the UNet and the text encoder of the embedded base on cached latents.

Hidden matrices (linear and convolution weights) are trained with Muon (Jordan et al., 2024; torch.optim.Muon), the rest with
AdamW. The learning rate is constant after a short warm-up until an annealing phase is asked for, so that the run can be stopped,
looked at and continued at any time. Randomness is a function of (seed, step): a resumed run draws what an unbroken one would.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from studio.assets.world import caption, words
from studio.training.base_model.autoencoder import encode_shard, fit_encoder
from studio.training.base_model.model import build_scheduler, build_text_encoder, build_unet, velocity
from studio.training.base_model.recipe import BaseRecipe
from studio.training.base_model.renders import finished_shards, load_pictures, load_scenes
from studio.training.base_model.tokenizer import build_tokenizer


class LatentPool:
    """All finished shards as latents [N, z, s, s] fp16 and their scenes; grows while rendering goes on."""

    def __init__(self, state_dir: Path, recipe: BaseRecipe) -> None:
        self.folder = state_dir / "renders"
        self.cache = state_dir / "latents"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.vae = fit_encoder(state_dir, recipe)
        self.shards: list[tuple[torch.Tensor, list]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that were finished since the last look."""
        for index in finished_shards(self.folder)[len(self.shards) :]:
            path = self.cache / f"latents-{index:04d}.safetensors"
            if not path.exists():
                save_file({"latents": encode_shard(self.vae, load_pictures(self.folder, index))}, path)
            self.shards.append((load_file(path)["latents"], load_scenes(self.folder, index)))

    def draw(self, rng: np.random.Generator, batch_size: int, caption_dropout: float) -> tuple[torch.Tensor, list[str]]:
        """Random latents [B, z, s, s] fp32 with captions drawn afresh."""
        latents, captions = [], []
        for _ in range(batch_size):
            shard, scenes = self.shards[int(rng.integers(len(self.shards)))]
            row = int(rng.integers(len(scenes)))
            latents.append(shard[row])
            captions.append("" if rng.random() < caption_dropout else caption(scenes[row], rng))
        return torch.stack(latents).float(), captions


class DenoiserState(nn.Module):
    """The two trained networks and their moving average, saved and restored as one."""

    def __init__(self, recipe: BaseRecipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.tokenizer = build_tokenizer(words(), recipe.max_tokens)
        self.unet = build_unet(recipe).to(memory_format=torch.channels_last)
        self.text_encoder = build_text_encoder(recipe, self.tokenizer)
        self.ema = [p.detach().clone() for p in self.parameters()]
        self.optimizers = build_optimizers(self, recipe)
        self.step = 0

    def update_ema(self, decay: float) -> None:
        """Move the average towards the weights; young averages move faster."""
        weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters()], weight)

    def save(self, folder: Path) -> None:
        """Weights, moving average and moments as safetensors, counters as JSON, replaced together by a rename."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{n}": p.detach() for n, p in self.named_parameters()}
        tensors |= {f"ema.{n}": e for (n, _), e in zip(self.named_parameters(), self.ema, strict=True)}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": v for k, v in state.items() if torch.is_tensor(v)}
        part = folder / "state.part"
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"step": str(self.step)})
        part.replace(folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        from safetensors import safe_open

        path = folder / "state.safetensors"
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
        with torch.no_grad():
            for (name, parameter), ema in zip(self.named_parameters(), self.ema, strict=True):
                parameter.copy_(tensors[f"weight.{name}"])
                ema.copy_(tensors[f"ema.{name}"])
        for i, optimizer in enumerate(self.optimizers):
            packed = optimizer.state_dict()
            for key, value in tensors.items():
                kind, *rest = key.split(".")
                if kind == "optimizer" and rest[0] == str(i):
                    packed["state"].setdefault(int(rest[1]), {})[rest[2]] = value
            optimizer.load_state_dict(packed)


def build_optimizers(state: nn.Module, recipe: BaseRecipe) -> list[torch.optim.Optimizer]:
    """Muon over 2-D views of the hidden weights (a convolution is [out, kh*kw*in]), AdamW over everything else."""
    hidden, rest = [], []
    for name, parameter in state.named_parameters():
        inner = parameter.ndim in (2, 4) and not any(part in name for part in ("embedding", "conv_in", "conv_out"))
        (hidden if inner else rest).append(parameter)
    views = []
    for parameter in hidden:
        view = nn.Parameter(flat_view(parameter.data), requires_grad=True)
        view.owner = parameter  # type: ignore[attr-defined]
        views.append(view)
    return [
        torch.optim.Muon(views, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True),
    ]


def flat_view(tensor: torch.Tensor) -> torch.Tensor:
    """[out, in] as it is; [out, in, kh, kw] in channels_last memory as a view [out, kh*kw*in] of the same storage."""
    return tensor if tensor.ndim == 2 else tensor.permute(0, 2, 3, 1).flatten(1)


def optimizer_step(state: DenoiserState, factor: float, recipe: BaseRecipe) -> float:
    """Clip, set the rate, step both optimizers; returns the gradient norm."""
    norm = nn.utils.clip_grad_norm_(state.parameters(), recipe.max_grad_norm)
    muon, adamw = state.optimizers
    for view in muon.param_groups[0]["params"]:
        gradient = view.owner.grad
        view.grad = flat_view(gradient.contiguous(memory_format=torch.channels_last) if gradient.ndim == 4 else gradient)
    muon.param_groups[0]["lr"] = recipe.muon_learning_rate * factor
    adamw.param_groups[0]["lr"] = recipe.learning_rate * factor
    muon.step()
    adamw.step()
    for parameter in state.parameters():
        parameter.grad = None
    return float(norm)


@dataclass(frozen=True)
class RunPlan:
    """How far to go: `pictures` in all, the last `anneal` of them with the rate falling linearly to zero."""

    pictures: int
    anneal: int = 0
    save_every_steps: int = 250
    compile: bool = False

    def rate(self, step: int, recipe: BaseRecipe) -> float:
        """Share of the full learning rate at a step."""
        left = self.pictures - step * recipe.batch_size
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        return warm * min(1.0, max(0.0, left / self.anneal)) if self.anneal else warm


def draw_timesteps(rng: np.random.Generator, count: int, recipe: BaseRecipe) -> torch.Tensor:
    """Timesteps [count] in 0..999: mostly sigmoid(N(mean, std)), the rest uniform."""
    peaked = 1 / (1 + np.exp(-(recipe.timestep_mean + recipe.timestep_std * rng.standard_normal(count))))
    uniform = rng.random(count)
    fraction = np.where(rng.random(count) < recipe.timestep_uniform_share, uniform, peaked)
    return torch.from_numpy(np.minimum((fraction * 1000).astype(np.int64), 999))


def train_denoiser(state_dir: Path, recipe: BaseRecipe, plan: RunPlan) -> DenoiserState:
    """Train until `plan.pictures`; resumes from the state folder; SIGTERM and Ctrl-C save and return."""
    pool, state = LatentPool(state_dir, recipe), DenoiserState(recipe)
    folder = state_dir / "denoiser"
    if (folder / "state.safetensors").exists():
        state.load(folder)
    alphas = build_scheduler().alphas_cumprod
    unet = torch.compile(state.unet) if plan.compile else state.unet
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stopped.append(n))
    losses: list[float] = []
    clock, cpu = time.time(), time.process_time()
    while state.step * recipe.batch_size < plan.pictures and not stopped:
        rng = np.random.default_rng([recipe.seed, 1, state.step])
        latents, captions = pool.draw(rng, recipe.batch_size, recipe.caption_dropout)
        tokens = state.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        timesteps = draw_timesteps(rng, recipe.batch_size, recipe)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        noisy, target = velocity(latents, noise, alphas[timesteps])
        text = state.text_encoder(tokens).last_hidden_state
        prediction = unet(noisy.contiguous(memory_format=torch.channels_last), timesteps, text, return_dict=False)[0]
        loss = (prediction - target).square().mean()
        loss.backward()
        optimizer_step(state, plan.rate(state.step, recipe), recipe)
        state.step += 1
        state.update_ema(recipe.ema_decay)
        losses.append(float(loss))
        if state.step % 25 == 0:
            entry = {
                "step": state.step,
                "pictures": state.step * recipe.batch_size,
                "loss": round(float(np.mean(losses)), 5),
                "rate": round(plan.rate(state.step, recipe), 4),
                "pictures_per_second": round(len(losses) * recipe.batch_size / (time.time() - clock), 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "unique_pictures": sum(len(scenes) for _, scenes in pool.shards),
            }
            with (state_dir / "denoiser-log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
            losses.clear()
            clock, cpu = time.time(), time.process_time()
            pool.refresh()
        if state.step % plan.save_every_steps == 0:
            state.save(folder)
    state.save(folder)
    return state


def start_from_weights(state_dir: Path, recipe: BaseRecipe, folder: Path) -> None:
    """Make a state from an exported fp16 folder (moments empty: the warm-up runs again from its step count)."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    state = DenoiserState(recipe)
    state.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).state_dict())
    state.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).state_dict())
    state.ema = [p.detach().clone() for p in state.parameters()]
    state.save(state_dir / "denoiser")
