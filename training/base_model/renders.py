"""Scenes of the toy world rendered once into shards: pictures as uint8 memory maps, descriptions as JSON lines."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from studio.assets.world import Scene, random_scene, render

SHARD = 2048


def render_shard(folder: Path, index: int, seed: int, size: int) -> Path:
    """Render shard `index` ([SHARD, size, size, 3] uint8) and its scenes; a finished shard is left as it is."""
    pictures_path = folder / f"pictures-{index:04d}.npy"
    if pictures_path.exists():
        return pictures_path
    rng = np.random.default_rng([seed, index])
    scenes = [random_scene(rng) for _ in range(SHARD)]
    lines = "\n".join(json.dumps(scene.to_dict(), separators=(",", ":")) for scene in scenes)
    (folder / f"scenes-{index:04d}.jsonl").write_text(lines + "\n", encoding="utf-8")
    pictures = np.stack([render(scene, size) for scene in scenes])
    part = pictures_path.with_suffix(".part.npy")
    np.save(part, pictures)
    os.replace(part, pictures_path)
    return pictures_path


def render_shards(folder: Path, *, num_shards: int, seed: int, size: int, workers: int = 1) -> None:
    """Render `num_shards` shards with `workers` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(render_shard, folder, index, seed, size) for index in range(num_shards)]
        for index, job in enumerate(jobs):
            job.result()
            print(f"renders: {(index + 1) * SHARD} of {num_shards * SHARD}", flush=True)


def finished_shards(folder: Path) -> list[int]:
    """Indices of the shards that are complete."""
    return sorted(int(p.stem.split("-")[1]) for p in folder.glob("pictures-????.npy"))


def load_pictures(folder: Path, index: int) -> np.ndarray:
    """Shard as a memory map, [SHARD, size, size, 3] uint8."""
    return np.load(folder / f"pictures-{index:04d}.npy", mmap_mode="r")


def load_scenes(folder: Path, index: int) -> list[Scene]:
    """Scenes of a shard, in the order of its pictures."""
    lines = (folder / f"scenes-{index:04d}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Scene.from_dict(json.loads(line)) for line in lines]
