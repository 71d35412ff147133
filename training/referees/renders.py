"""Renders on disk: every picture once as drawn and once through the autoencoder. Resumable and deterministic."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.assets import world
from studio.assets.world import Individual, Scene, SceneObject
from studio.training.referees.recipe import INDIVIDUAL_SEEDS_FROM, RenderPlan

Pixels: TypeAlias = NDArray[np.uint8]
RoundTrip: TypeAlias = Callable[[Tensor, torch.Generator | None], Tensor]
CHUNK = 256
LATENT_NOISE = 0.3


def draw_scene(plan: RenderPlan, index: int) -> Scene:
    """The scene of a picture of the plan; depends on nothing but the plan's seed and the index."""
    rng = np.random.default_rng([plan.seed, index])
    if index < plan.num_scenes:
        return world.random_scene(rng)
    number = (index - plan.num_scenes) // plan.views
    class_name = world.CLASSES[number % len(world.CLASSES)]
    individual = world.random_individual(class_name, INDIVIDUAL_SEEDS_FROM + plan.seed + number)
    return view_of(individual, rng)


def view_of(individual: Individual, rng: np.random.Generator, style: str | None = None) -> Scene:
    """An individual somewhere, in any style, in one picture of three beside another object of another class."""
    if style is None:
        style = world.STYLES[int(rng.integers(len(world.STYLES)))]
    background = world.BACKGROUNDS[int(rng.integers(len(world.BACKGROUNDS)))]
    other: SceneObject | None = None
    if rng.random() < 1 / 3:
        others = [name for name in world.CLASSES if name != individual.class_name]
        other = world.random_scene(rng, num_objects=1, class_names=others).objects[0]
    return world.place(individual, background=background, style=style, rng=rng, other=other)


def load_round_trip(vae_dir: Path) -> RoundTrip:
    """A function that sends pixels `[N, 3, H, W]` in 0..1 through the autoencoder in `vae_dir` (AutoencoderTiny).

    In bfloat16 where the processor has a matrix unit for it: three times as fast, and half a level of 255 from float32.
    """
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(str(vae_dir), torch_dtype=torch.float32).eval().requires_grad_(False)
    vae.to(memory_format=torch.channels_last)

    def round_trip(pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_matrix_unit()):
            return through_autoencoder(vae, pixels.contiguous(memory_format=torch.channels_last), generator)

    return round_trip


def has_matrix_unit() -> bool:
    """Whether bfloat16 is fast here (AMX); without the unit it is emulated and slower than float32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


@torch.no_grad()
def through_autoencoder(vae: Any, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
    """Encode and decode pixels `[N, 3, H, W]` in 0..1.

    With a generator every second picture on average gets noise on its latents, up to `LATENT_NOISE` of their deviation: a
    decoder's answer to latents that no encoder made is a little like sampled pictures, without sampling any.
    """
    latents = vae.encode(pixels * 2 - 1).latents.float()
    if generator is not None:
        strength = (torch.rand(len(pixels), 1, 1, 1, generator=generator) - 0.5).clamp(min=0) * 2 * LATENT_NOISE
        latents = latents + strength * latents.std() * torch.randn(latents.shape, generator=generator)
    decoded: Tensor = vae.decode(latents).sample
    return ((decoded.float() + 1) / 2).clamp(0, 1)


def prepare_renders(plan: RenderPlan, folder: Path, round_trip: RoundTrip) -> None:
    """Draw what the folder does not hold yet, chunk by chunk; a killed run goes on at its last whole chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, bytes_each = asdict(plan), plan.size * plan.size * 3
    plan_path = folder / "plan.json"
    if not plan_path.exists() or json.loads(plan_path.read_text(encoding="utf-8")) != settings:
        for name in ("clean.bin", "decoded.bin"):
            (folder / name).unlink(missing_ok=True)
        plan_path.write_text(json.dumps(settings), encoding="utf-8")
    clean_path, decoded_path = folder / "clean.bin", folder / "decoded.bin"
    num_done = min((path.stat().st_size // bytes_each if path.exists() else 0) for path in (clean_path, decoded_path))
    num_done = min(num_done // CHUNK * CHUNK, plan.num_pictures) if num_done < plan.num_pictures else plan.num_pictures
    for path in (clean_path, decoded_path):
        with path.open("ab") as file:
            file.truncate(num_done * bytes_each)
    for first in range(num_done, plan.num_pictures, CHUNK):
        indices = range(first, min(first + CHUNK, plan.num_pictures))
        clean = np.stack([world.render(draw_scene(plan, index), plan.size) for index in indices])
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + first)
        pixels = torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255
        decoded = (round_trip(pixels, generator) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for path, pictures in ((clean_path, clean), (decoded_path, decoded)):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(pictures).tobytes())


def open_renders(plan: RenderPlan, folder: Path) -> tuple[Pixels, Pixels]:
    """Both copies of all pictures, memory-mapped, uint8 `[N, size, size, 3]`: as drawn, and decoded."""
    shape = (plan.num_pictures, plan.size, plan.size, 3)
    clean, decoded = (np.memmap(folder / name, dtype=np.uint8, mode="r", shape=shape) for name in ("clean.bin", "decoded.bin"))
    return clean, decoded
