"""What each strategy costs at SD1.5's and SDXL's full size, counted: `python -m studio.evals.composition_cost`.

Beside it the same strategy put together of whole pipelines, as published code does it: N copies of the model with the adapters
merged into them, every pass by itself and to its end, all attention scores in memory, text encoded anew at each step, no cached
features, and for `regional` a pass for each region. Nothing is drawn: the UNets are on the meta device.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from studio.composition.drawing import Compiled, batch_request, compile_scene
from studio.composition.plan_files import plan_from_values
from studio.composition.scene import make_scene
from studio.composition.strategies import STRATEGIES, strategy_named
from studio.composition.thrift import Thrift
from studio.evals.full_size_bases import FullSize, full_size
from studio.evals.tables import Cell, Table
from studio.pipelines.adapters import Adapter
from studio.pipelines.denoising.dry_run import DryModel, DryRun, dry_run
from studio.pipelines.errors import StudioError
from studio.pipelines.families import SD15, SDXL, ModelFamily

NAMES = ("cat", "dog", "robot", "house")
FAMILIES: Mapping[str, ModelFamily] = {"sd15": SD15, "sdxl": SDXL}
REGION_BY_REGION = ("regional",)
"""Strategies whose counterpart draws every region by a pass of its own."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is counted: so many adapters of a rank, in a picture of so many steps."""

    num_adapters: int = 2
    rank: int = 16
    steps: int = 10


def cost_table(model: FullSize, setting: Setting, names: Sequence[str]) -> Table:
    """A row for each strategy, per denoising step of one picture with guidance."""
    family = model.narrow.family
    rows: list[tuple[Cell, ...]] = []
    left_out: list[str] = []
    for name in names:
        try:
            compiled = compiled_for(model, setting, name)
            ours, theirs = counted(model, compiled, setting), counted(model, compiled, setting, whole_pipelines=True)
        except (StudioError, NotImplementedError, RuntimeError) as error:
            left_out.append(f"{name} is left out: {' '.join(str(error).split())[:160]}")
            continue
        rows.append((name, *_cells(ours), *_cells(theirs), f"{theirs.total.flops / max(ours.total.flops, 1):.2f}"))
    size, count = model.full.size, setting.num_adapters
    columns = ("evaluations", "TFLOP", "operations", "GB moved", "peak GB")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.full.unet.parameters()) / 1e9
    notes = (
        f"one picture with guidance, {setting.steps} steps, means over the steps; bfloat16",
        "evaluations: rows that the UNet runs on. peak: activations and what is kept; weights do not count",
        f"whole: of whole pipelines, which hold {count} UNets of {weights:.2f} GB instead of one",
    )
    return Table(
        f"{family.title}, {size}×{size}, {count} LoRAs of rank {setting.rank}: cost of one denoising step",
        ("strategy", *columns, *(f"whole: {column}" for column in columns), "FLOP ratio"),
        tuple(rows),
        (*notes, *left_out),
    )


def compiled_for(model: FullSize, setting: Setting, name: str) -> Compiled:
    """The strategy, ready to draw a plan that it accepts: concepts bound to words, in regions where it wants them, or roles.

    Raises:
        StudioError: it accepts none of these plans; the error of the first.
    """
    first: StudioError | None = None
    small, _ = model.adapters(setting.num_adapters, setting.rank)
    for entries in _entries(setting.num_adapters, strategy_named(name).uses_regions and name != "clora"):
        plan = plan_from_values(
            {
                "base": model.narrow.source,
                "prompt": " and ".join(f"a {noun}" for noun in NAMES[: setting.num_adapters]),
                "entries": entries,
                "strategy": {"name": name},
                "steps": setting.steps,
                "scheduler": "ddim",
            }
        )
        try:
            return compile_scene(make_scene(plan, model.narrow, small))
        except StudioError as error:
            first = error if first is None else first
    assert first is not None
    raise first


def counted(model: FullSize, compiled: Compiled, setting: Setting, *, whole_pipelines: bool = False) -> DryRun:
    """The dry run of a compiled plan at full size."""
    _, large = model.adapters(setting.num_adapters, setting.rank)

    def full(adapter: Adapter) -> Adapter:
        stand_in = large[adapter.info.name]
        patches = {} if whole_pipelines else {path: stand_in.patches[path] for path in adapter.patches}
        return replace(stand_in, patches=patches)

    name = compiled.scene.plan.strategy.name
    dry = DryModel(
        base=model.full,
        adapter=full,
        whole_pipelines=whole_pipelines,
        region_passes=whole_pipelines and name in REGION_BY_REGION,
    )
    return dry_run(dry, batch_request(compiled.scene, (0,), Thrift(batch_size=1)), compiled.strategy)


def _entries(count: int, with_regions: bool) -> list[list[dict[str, Any]]]:
    words: list[dict[str, Any]] = [{"adapter": f"{noun}.safetensors", "words": noun} for noun in NAMES[:count]]
    placed = [entry | {"region": {"box": [n / count, 0.0, (n + 1) / count, 1.0]}} for n, entry in enumerate(words)]
    roles = [entry | {"role": "subject" if n == 0 else "style"} for n, entry in enumerate(words)]
    return [placed, words, roles] if with_regions else [words, placed, roles]


def _cells(run: DryRun) -> tuple[Cell, ...]:
    steps, total = len(run.steps), run.total
    return (
        f"{total.evaluations / steps:.1f}",
        f"{total.flops / steps / 1e12:.2f}",
        f"{total.ops // steps:,}",
        f"{total.moved_bytes / steps / 1e9:.1f}",
        f"{run.peak_bytes / 1e9:.2f}",
    )


def main(arguments: list[str] | None = None) -> None:
    """Print a table for each family."""
    parser = argparse.ArgumentParser(prog="python -m studio.evals.composition_cost", description=__doc__)
    parser.add_argument("--families", default="sd15,sdxl", help="sd15, sdxl, or both with a comma between")
    parser.add_argument("--strategies", default=",".join(kind.name for kind in STRATEGIES), help="names with commas between")
    parser.add_argument("--adapters", type=int, default=2, choices=range(1, len(NAMES) + 1))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    setting = Setting(num_adapters=options.adapters, rank=options.rank, steps=options.steps)
    for name in options.families.split(","):
        with torch.no_grad():
            print(cost_table(full_size(FAMILIES[name]), setting, options.strategies.split(",")).text(), flush=True)


if __name__ == "__main__":
    main()
