"""The training loop of a referee: resumable at its checkpoints, deterministic from the recipe's seed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from studio.assets import world
from studio.pipelines.files import atomic_save_safetensors
from studio.pipelines.scoring.network import RefereeNetwork
from studio.pipelines.scoring.regions import boxes_from_distances
from studio.training.referees.augment import augment
from studio.training.referees.batches import batch_indices, individual_of, step_generator
from studio.training.referees.losses import (
    box_loss,
    focal_heat_loss,
    joint_loss,
    label_loss,
    remember,
    rival_loss,
    supervised_contrastive_loss,
)
from studio.training.referees.recipe import RefereeRecipe
from studio.training.referees.renders import draw_scene, open_renders
from studio.training.referees.targets import UNKNOWN, box_targets, heat_target, jitter, make_targets
from studio.training.state_tree import pack_tree, unpack_tree

STATE_FILE = "state.safetensors"


@dataclass
class RefereeRun:
    """Everything that changes while a referee trains."""

    network: RefereeNetwork
    memory: Tensor  # [individuals, D], the last seen identity of each
    optimizer: torch.optim.Optimizer
    step: int = 0
    cpu_seconds: float = 0.0


def start_run(recipe: RefereeRecipe) -> RefereeRun:
    """A fresh run; the initial weights depend on the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = RefereeNetwork(recipe.network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    memory = torch.zeros(recipe.renders.num_individuals, recipe.network.identity_dim)
    return RefereeRun(network, memory, torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True))


def train_referee(
    recipe: RefereeRecipe, renders_dir: Path, run_dir: Path, *, bfloat16: bool, until: int | None = None
) -> RefereeRun:
    """Train to the recipe's last step (or to step `until`), going on from the run folder's checkpoint when there is one."""
    last = recipe.steps if until is None else min(until, recipe.steps)
    clean, decoded = open_renders(recipe.renders, renders_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    run = start_run(recipe)
    _load(run, run_dir)
    run.network.train()
    began = time.process_time() - run.cpu_seconds
    while run.step < last:
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(recipe, run.step)
        indices = batch_indices(recipe, run.step)
        rng = step_generator(recipe, run.step)
        pixels = augment(clean[indices], decoded[indices], rng)
        losses = step_losses(run, recipe, pixels, indices.tolist(), rng, bfloat16=bfloat16)
        total = torch.stack(list(losses.values())).sum()
        run.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 20.0)
        run.optimizer.step()
        run.step += 1
        run.cpu_seconds = time.process_time() - began
        if run.step % 50 == 0:
            figures = {name: round(loss.item(), 4) for name, loss in losses.items()}
            line = json.dumps({"step": run.step, "cpu_seconds": round(run.cpu_seconds, 1), **figures})
            with (run_dir / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)
        if run.step % recipe.checkpoint_every == 0 or run.step == last:
            _save(run, run_dir)
    return run


def step_losses(
    run: RefereeRun, recipe: RefereeRecipe, pixels: Tensor, indices: list[int], rng: np.random.Generator, *, bfloat16: bool
) -> dict[str, Tensor]:
    """The weighted losses of one batch of pixels `[N, 3, S, S]`, by name."""
    config, num = recipe.network, len(indices)
    scenes = [draw_scene(recipe.renders, index) for index in indices]
    targets = make_targets(scenes, [individual_of(recipe, index) for index in indices], config)
    captions = [world.caption(scene, rng) for scene in scenes]
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        reading = run.network(pixels)
        region = run.network.regions(
            pixels, reading._replace(fine=reading.fine.float()), targets.picture, jitter(targets.boxes, rng)
        )
    texts = run.network.embed_text(captions)
    grid = reading.heat.shape[-1]
    in_second = run.step >= recipe.second_cycle_at
    identity_weight = recipe.second_cycle_identity_weight if in_second else recipe.identity_weight
    heat = heat_target(targets, num, len(config.classes), grid)
    boxes, inside = box_targets(targets, num, grid)
    shown = targets.individual != UNKNOWN
    identity, individual = region.identity.float()[shown], targets.individual[shown]
    losses = {
        "heat": focal_heat_loss(reading.heat.float(), heat, len(targets.picture)),
        "box": box_loss(boxes_from_distances(reading.distances.float()), boxes, inside),
        "class": label_loss(region.class_name.float(), targets.class_name),
        "colour": label_loss(region.colour.float(), targets.colour),
        "pattern": recipe.pattern_weight * label_loss(region.pattern.float(), targets.pattern),
        "background": 0.3 * label_loss(reading.background.float(), targets.background),
        "style": 0.5 * label_loss(reading.style.float(), targets.style),
        "views": identity_weight * supervised_contrastive_loss(identity, individual),
        "rivals": identity_weight * rival_loss(identity, individual, run.memory, len(config.classes)),
        "joint": recipe.joint_weight * joint_loss(reading.joint.float(), texts, run.network.log_temperature),
    }
    remember(run.memory, identity, individual)
    return losses


def learning_rate_share(recipe: RefereeRecipe, step: int) -> float:
    """Linear warm-up, a cosine to zero, and from `second_cycle_at` a lower cosine to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    second = step >= recipe.second_cycle_at
    first_step, last_step, peak = (
        (recipe.second_cycle_at, recipe.steps, recipe.second_cycle_rate)
        if second
        else (recipe.warmup_steps, recipe.second_cycle_at, 1.0)
    )
    return peak * 0.5 * (1 + cos(pi * (step - first_step) / max(last_step - first_step, 1)))


def _save(run: RefereeRun, run_dir: Path) -> None:
    """One file holds the whole state, so that it is either the old or the new one."""
    optimizer, tensors = pack_tree(run.optimizer.state_dict(), "optimizer")
    tensors |= {f"network.{name}": value.contiguous() for name, value in run.network.state_dict().items()}
    tensors["memory"] = run.memory
    state = {"step": run.step, "cpu_seconds": run.cpu_seconds, "optimizer": optimizer}
    atomic_save_safetensors(run_dir / STATE_FILE, tensors, {"state": json.dumps(state)})


def _load(run: RefereeRun, run_dir: Path) -> None:
    if not (run_dir / STATE_FILE).exists():
        return
    with safe_open(run_dir / STATE_FILE, "pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    run.network.load_state_dict(
        {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    )
    run.memory = tensors["memory"]
    run.optimizer.load_state_dict(unpack_tree(state["optimizer"], tensors))
    for parameter, moments in run.optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):  # the fused step reads moments in the weights' own memory order
            moments[name] = torch.empty_like(parameter).copy_(moments[name])
    run.step, run.cpu_seconds = state["step"], state["cpu_seconds"]
