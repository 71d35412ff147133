"""`studio calibrate`: how strongly adapters act, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli import drawing_options as options
from studio.cli.drawing import Precision, check_files, placement, progress, say

WISHES = (0.5, 0.8, 1.0)


def calibrate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Adapter files of any type.")],
    base: options.Base = None,
    scorer: Annotated[str, typer.Option(help="Who measures: guide, or a folder with a CLIP model.")] = "guide",
    seeds: Annotated[int, typer.Option(min=2, help="Pictures of each of four prompts, at each strength.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of what was found before.", show_default="calibrations in the studio's home")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = Precision.AUTO,
) -> None:
    """Measure how far adapters move pictures, and say which strength has which effect.

    A strength of 0.8 does much with one adapter and little with another. The effect is measured: 1 is as far from the base
    model's picture as two of its own pictures of the same words are from each other. 'studio compose --strength-unit
    calibrated' and a plan's strength_unit: calibrated then take strengths as effects. Each adapter is measured once on a base
    model; what was found is kept by the contents of both.

    Example: studio calibrate cat.safetensors robot.safetensors
    """
    check_files(files)
    from studio.composition.calibration import UNIT, Measuring
    from studio.evals.tables import Cell, Table
    from studio.pipelines.adapters import load_adapter
    from studio.pipelines.base_model import load_base
    from studio.pipelines.scoring import load_scorer
    from studio.workflows.calibrate import Calibrator, calibrations_dir

    judge = load_scorer(scorer)
    adapters = [load_adapter(path) for path in files]
    place, weights = placement(device, dtype)
    measuring = Measuring(num_seeds=seeds, steps=steps)
    folder = calibrations_dir() if cache is None else cache
    rows: list[tuple[Cell, ...]] = []
    with progress() as on_step:
        model = load_base(base, dtype=weights, device=place)
        calibrator = Calibrator(model, judge, folder, measuring, say=say, on_step=on_step)
        for path, adapter in zip(files, adapters, strict=True):
            curve = calibrator.curve(adapter)
            effects = [curve.effect_of(strength) for strength in measuring.strengths]
            wished = [curve.strength_for(wish * UNIT) for wish in WISHES]
            rows.append((path.name, adapter.type, *effects, *wished))
    columns = ("file", "type", *(f"at {strength:g}" for strength in measuring.strengths), *(f"for {wish:g}" for wish in WISHES))
    most = f"{measuring.strengths[-1]:g}"
    note = f"at S: effect of the strength S. for C: the strength that a calibrated C stands for; – if none up to {most} does it"
    typer.echo(Table(f"Effects by {judge.name}", columns, tuple(rows), (note,)).text())
