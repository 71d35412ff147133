"""A thousand adapters served from one machine: pictures per second of grouped requests against one request after another.

`python -m studio.proofs.adapter_serving` writes the adapters, draws 64 requests over 64 of them on the embedded base both
ways, in turns, and prints the table. Time is that of the processor, so that other processes on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from studio.pipelines.adapters import AdapterInfo, Route, load_adapter, new_lora, save_adapter
from studio.pipelines.adapters.store import MEBIBYTE, AdapterStore, StoreCounts
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.files import atomic_write_json
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.mixed_batch import MixedRow, SharedShape, draw_mixed

WORDS = ("a red cat", "a blue robot", "a green mug", "a yellow boat", "a purple dog", "an orange house")


@dataclass
class Arm:
    """One way to serve: seconds of the processor and of the clock, per block of requests."""

    name: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, draw: Callable[[], list[Image.Image]]) -> list[Image.Image]:
        """Time one block."""
        cpu, wall = time.process_time(), time.perf_counter()
        images = draw()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return images


def write_adapters(base: BaseModel, folder: Path, count: int, rank: int) -> list[Path]:
    """`count` adapter files of one size with values of chance, of which each changes pictures visibly."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    adapter = new_lora(
        base.components(),
        {"unet": base.family.adapter_targets},
        rank,
        float(rank),
        generator=generator,
        info=AdapterInfo(name="served", family=base.family.name),
    )
    tensors = adapter.named_tensors()
    paths = []
    for number in range(count):
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.normal_(0.0, 0.02 if name.endswith(".up") else 0.05, generator=generator)
        paths.append(folder / f"{number:04d}.safetensors")
        save_adapter(adapter, paths[-1])
    return paths


def draw_one_by_one(base: BaseModel, orders: Sequence[tuple[Path, str, int]], steps: int) -> list[Image.Image]:
    """Every request by itself: its adapter is read, its picture drawn."""
    images = []
    for path, prompt, seed in orders:
        request = GenerationRequest(prompts=(prompt,), seeds=(seed,), steps=steps)
        images += generate(base, request, [Route(load_adapter(path).to(base.device, base.dtype), 1.0)])
    return images


def draw_grouped(base: BaseModel, store: AdapterStore, orders: Sequence[tuple[Path, str, int]], steps: int) -> list[Image.Image]:
    """All requests in one pass, adapters from the store."""
    rows = [
        MixedRow(prompt=prompt, seed=seed, routes=(Route(store.get(path, file_sha256(path)), 1.0),))
        for path, prompt, seed in orders
    ]
    return draw_mixed(base, rows, SharedShape(steps=steps)).images


def compare(
    base: BaseModel, paths: Sequence[Path], *, requests: int, rows: int, steps: int, device_mib: int
) -> tuple[Arm, Arm, float, StoreCounts]:
    """Both ways in turns over the same requests; also the share of pixels that are the same within 1/255."""
    dice = random.Random(1)
    chosen = dice.sample(list(paths), requests)
    orders = [(path, dice.choice(WORDS), dice.randrange(2**31)) for path in chosen]
    store = AdapterStore(base.device, base.dtype, device_bytes=device_mib * MEBIBYTE)
    alone, grouped = Arm("one at a time"), Arm(f"{rows} in a pass")
    draw_one_by_one(base, orders[:1], 2)
    draw_grouped(base, AdapterStore(base.device, base.dtype), orders[:rows], 2)
    same = []
    for number, start in enumerate(range(0, requests, rows)):
        block = orders[start : start + rows]
        ways = [
            (alone, lambda block=block: draw_one_by_one(base, block, steps)),
            (grouped, lambda block=block: draw_grouped(base, store, block, steps)),
        ]
        found = {arm.name: arm.add(draw) for arm, draw in (ways if number % 2 == 0 else reversed(ways))}
        for one, other in zip(found[alone.name], found[grouped.name], strict=True):
            difference = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))
            same.append(float((difference <= 1).mean()))
    return alone, grouped, min(same), store.counts()


def main() -> None:
    """Print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000, help="files on the disk")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8, help="pictures in a pass")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--device-mib", type=int, default=1024, help="budget of the store's level on the device")
    parser.add_argument("--folder", type=Path, default=None, help="for the adapters; by default one that is removed afterwards")
    parser.add_argument("--record", type=Path, default=None, help="JSON file for the figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base()
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        paths = write_adapters(base, chosen.folder or Path(temporary), chosen.adapters, chosen.rank)
        print(f"{len(paths)} adapters of {paths[0].stat().st_size / 1e6:.2f} MB written in {time.perf_counter() - started:.0f} s")
        alone, grouped, same, counts = compare(
            base, paths, requests=chosen.requests, rows=chosen.rows, steps=chosen.steps, device_mib=chosen.device_mib
        )
    ratios = [one / other for one, other in zip(alone.cpu, grouped.cpu, strict=True)]
    figures = {
        "adapters_on_disk": chosen.adapters,
        "requests": chosen.requests,
        "steps": chosen.steps,
        "rank": chosen.rank,
        "rows": chosen.rows,
        "pictures_per_cpu_second_one_at_a_time": round(chosen.requests / sum(alone.cpu), 3),
        "pictures_per_cpu_second_grouped": round(chosen.requests / sum(grouped.cpu), 3),
        "ratio": round(sum(alone.cpu) / sum(grouped.cpu), 3),
        "ratio_per_block": [round(ratio, 3) for ratio in sorted(ratios)],
        "median_ratio": round(statistics.median(ratios), 3),
        "least_share_of_pixels_within_1": round(same, 5),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "store": vars(counts),
    }
    for arm in (alone, grouped):
        cpu, wall = chosen.requests / sum(arm.cpu), chosen.requests / sum(arm.wall)
        print(f"{arm.name:<16} {cpu:7.3f} pictures per second of the processor, {wall:7.3f} of the clock")
    print(json.dumps(figures))
    if chosen.record is not None:
        atomic_write_json(chosen.record, figures)


if __name__ == "__main__":
    main()
