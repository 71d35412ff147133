"""Joint training of the UNet and the text encoder of the embedded base on cached latents.

The learning rate is constant after a short warm-up until an annealing phase is asked for, so that the run can be stopped,
looked at and continued at any time. Randomness is a function of (seed, step): a resumed run draws what an unbroken one would.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from studio.assets.world import Scene, caption, words
from studio.pipelines.errors import Interrupted
from studio.training.base_model.autoencoder import encode_shard, fit_encoder
from studio.training.base_model.model import build_scheduler, build_text_encoder, build_unet, velocity
from studio.training.base_model.optimizer import MatrixOptimizer
from studio.training.base_model.recipe import BaseRecipe
from studio.training.base_model.renders import finished_shards, load_pictures, load_scenes
from studio.training.base_model.replicas import Replica, replicas
from studio.training.base_model.tokenizer import build_tokenizer
from studio.training.signals import catch_stop_signals

HARD_PATTERNS = ("dotted", "zigzag")
"""Learned last: after 314,000 pictures right in .47 and .18 of the prompts, where stripes and checks were in .9."""


class LatentPool:
    """All finished shards as latents [N, z, s, s] fp16 and their scenes; grows while rendering goes on."""

    def __init__(self, state_dir: Path, recipe: BaseRecipe) -> None:
        self.folder = state_dir / "renders"
        self.cache = state_dir / "latents"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.vae = fit_encoder(state_dir, recipe)
        self.shards: list[tuple[torch.Tensor, list[Scene]]] = []
        self.hard: list[tuple[int, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that were finished since the last look."""
        for index in finished_shards(self.folder)[len(self.shards) :]:
            path = self.cache / f"latents-{index:04d}.safetensors"
            if not path.exists():
                save_file({"latents": encode_shard(self.vae, load_pictures(self.folder, index))}, path)
            scenes = load_scenes(self.folder, index)
            hard = [row for row, scene in enumerate(scenes) if any(thing.pattern in HARD_PATTERNS for thing in scene.objects)]
            self.hard += [(len(self.shards), row) for row in hard]
            self.shards.append((load_file(path)["latents"], scenes))

    def draw(self, rng: np.random.Generator, recipe: BaseRecipe) -> tuple[torch.Tensor, list[str]]:
        """Random latents [B, z, s, s] fp32 with captions drawn afresh; a share of them of scenes with hard patterns."""
        latents, captions = [], []
        num_hard = round(recipe.hard_pattern_share * recipe.batch_size) if self.hard else 0
        for place in range(recipe.batch_size):
            if place % 2 == 0 and place < 2 * num_hard:  # every other one: processes share a batch by halves
                index, row = self.hard[int(rng.integers(len(self.hard)))]
            else:
                index = int(rng.integers(len(self.shards)))
                row = int(rng.integers(len(self.shards[index][1])))
            shard, scenes = self.shards[index]
            latents.append(shard[row])
            captions.append("" if rng.random() < recipe.caption_dropout else caption(scenes[row], rng))
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
        self.optimizer = MatrixOptimizer(
            self,
            muon_learning_rate=recipe.muon_learning_rate,
            learning_rate=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            ends=("embedding", "conv_in", "conv_out"),
        )
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
        tensors |= self.optimizer.state()
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
        self.optimizer.load_state(tensors)


@dataclass(frozen=True)
class RunPlan:
    """How far to go: `pictures` in all, the last `anneal` of them with the rate falling linearly to zero.

    `peak` is the full rate's share of the recipe's. `processes` share each batch. `rewarm_from` is the step from which the
    warm-up runs: that of a start from weights without moments.
    """

    pictures: int
    anneal: int = 0
    save_every_steps: int = 250
    compile: bool = False
    peak: float = 1.0
    processes: int = 1
    rewarm_from: int = 0

    def rate(self, step: int, recipe: BaseRecipe) -> float:
        """Share of the full learning rate at a step."""
        left = self.pictures - step * recipe.batch_size
        warm = min(1.0, (step - self.rewarm_from + 1) / recipe.warmup_steps)
        return self.peak * warm * (min(1.0, max(0.0, left / self.anneal)) if self.anneal else 1.0)


def draw_timesteps(rng: np.random.Generator, count: int, recipe: BaseRecipe) -> torch.Tensor:
    """Timesteps [count] in 0..999: mostly sigmoid(N(mean, std)), the rest uniform."""
    peaked = 1 / (1 + np.exp(-(recipe.timestep_mean + recipe.timestep_std * rng.standard_normal(count))))
    uniform = rng.random(count)
    fraction = np.where(rng.random(count) < recipe.timestep_uniform_share, uniform, peaked)
    return torch.from_numpy(np.minimum((fraction * 1000).astype(np.int64), 999))


def train_denoiser(state_dir: Path, recipe: BaseRecipe, plan: RunPlan) -> DenoiserState:
    """Train until `plan.pictures`; resumes from the state folder; SIGTERM and Ctrl-C save and raise Interrupted."""
    folder = state_dir / "denoiser"
    pool = LatentPool(state_dir, recipe)  # encodes what is not encoded yet, before others look
    helper = partial(_train_beside, state_dir, recipe, plan)
    with replicas(plan.processes, state_dir / "replicas", helper) as replica, catch_stop_signals() as stop:
        state = _open_state(folder, recipe)
        with (state_dir / "denoiser-log.jsonl").open("a", encoding="utf-8") as log:
            meter = Meter(log, recipe.batch_size)
            for loss in _steps(state, pool, recipe, plan, replica, stop):
                if meter.count(state.step, loss, plan.rate(state.step, recipe), pool) and replica.count == 1:
                    pool.refresh()  # several processes must draw from the same shards: they keep those of the start
                state.update_ema(recipe.ema_decay)
                if state.step % plan.save_every_steps == 0:
                    state.save(folder)
    state.save(folder)
    if stop:
        raise Interrupted(f"stopped after {state.step * recipe.batch_size:,} pictures; all is saved", stop.signal_number or 15)
    return state


def _train_beside(state_dir: Path, recipe: BaseRecipe, plan: RunPlan, replica: Replica) -> None:
    """The same steps in another process, which saves nothing and leaves stopping to the first one."""
    pool = LatentPool(state_dir, recipe)
    state = _open_state(state_dir / "denoiser", recipe)
    with catch_stop_signals():
        for _ in _steps(state, pool, recipe, plan, replica, stop=False):
            pass


def _open_state(folder: Path, recipe: BaseRecipe) -> DenoiserState:
    state = DenoiserState(recipe)
    if (folder / "state.safetensors").exists():
        state.load(folder)
    return state


def _steps(
    state: DenoiserState, pool: LatentPool, recipe: BaseRecipe, plan: RunPlan, replica: Replica, stop: object
) -> Iterator[float]:
    """Train to the end of the plan or until somebody wants to stop; yields the loss after each step."""
    alphas = build_scheduler().alphas_cumprod
    unet: Callable[..., Any] = torch.compile(state.unet) if plan.compile else state.unet
    stopping = False
    while state.step * recipe.batch_size < plan.pictures and not stopping:
        loss = accumulate_gradients(state, unet, pool, alphas, recipe, replica)
        loss, stopping = replica.average(state.optimizer.parameters, loss, bool(stop))
        state.optimizer.step(plan.rate(state.step, recipe), recipe.max_grad_norm)
        state.step += 1
        yield loss


def accumulate_gradients(
    state: DenoiserState,
    unet: Callable[..., Any],
    pool: LatentPool,
    alphas: torch.Tensor,
    recipe: BaseRecipe,
    replica: Replica,
) -> float:
    """Gradients of the v-prediction loss on this process's share of a batch drawn from (seed, step); returns that loss."""
    rng = np.random.default_rng([recipe.seed, 1, state.step])
    latents, captions = pool.draw(rng, recipe)
    timesteps = draw_timesteps(rng, recipe.batch_size, recipe)
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    rows = replica.rows(recipe.batch_size)
    latents, captions, timesteps, noise = latents[rows], captions[rows], timesteps[rows], noise[rows]
    tokens = state.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    noisy, target = velocity(latents, noise, alphas[timesteps])
    text = state.text_encoder(tokens).last_hidden_state
    prediction = unet(noisy.contiguous(memory_format=torch.channels_last), timesteps, text, return_dict=False)[0]
    loss = (prediction - target).square().mean()
    loss.backward()
    return float(loss.detach())


class Meter:
    """Means of `every` steps, to the log and to the screen."""

    every: ClassVar[int] = 25

    def __init__(self, log: TextIO, batch_size: int) -> None:
        self.log, self.batch_size = log, batch_size
        self.losses: list[float] = []
        self.clock, self.cpu = time.time(), time.process_time()

    def count(self, step: int, loss: float, rate: float, pool: LatentPool) -> bool:
        """Take a step's loss; every so often write a line and say so."""
        self.losses.append(loss)
        if step % self.every:
            return False
        entry = {
            "step": step,
            "pictures": step * self.batch_size,
            "loss": round(float(np.mean(self.losses)), 5),
            "rate": round(rate, 4),
            "pictures_per_second": round(len(self.losses) * self.batch_size / (time.time() - self.clock), 1),
            "cpu_seconds": round(time.process_time() - self.cpu, 1),
            "unique_pictures": sum(len(scenes) for _, scenes in pool.shards),
        }
        self.log.write(json.dumps(entry) + "\n")
        self.log.flush()
        print(json.dumps(entry), flush=True)
        self.losses.clear()
        self.clock, self.cpu = time.time(), time.process_time()
        return True


def start_from_weights(state_dir: Path, recipe: BaseRecipe, folder: Path) -> int:
    """Make a state from an exported fp16 folder: weights, autoencoder and log, but no moments; returns the step it stands at."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel

    state = DenoiserState(recipe)
    state.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).state_dict())
    state.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).state_dict())
    state.ema = [p.detach().clone() for p in state.parameters()]
    log = (folder / "training-log.jsonl").read_text(encoding="utf-8")
    state.step = json.loads(log.splitlines()[-1])["step"]
    state.save(state_dir / "denoiser")
    (state_dir / "denoiser-log.jsonl").write_text(log, encoding="utf-8")
    vae = AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    save_file(vae.state_dict(), state_dir / "vae.safetensors")
    return state.step
