"""`studio compare`: the same plan by every strategy, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli import composing, drawing_options
from studio.cli.compose import save_pictures
from studio.cli.composing import Flags, note, open_plan_here, plan_of
from studio.cli.drawing import Precision, progress, use_attention


def compare(
    plan: composing.PlanFile = None,
    strategies: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    prompt: composing.Prompt = None,
    adapter: composing.Adapter = None,
    words: composing.Words = None,
    box: composing.Box = None,
    negative: composing.Negative = None,
    num_images: composing.NumImages = None,
    seed: composing.Seed = None,
    steps: composing.Steps = None,
    guidance: drawing_options.Guidance = None,
    size: drawing_options.Size = None,
    scheduler: drawing_options.Scheduler = None,
    base: composing.Base = None,
    adapters_dir: composing.AdaptersDir = None,
    scorer: Annotated[str, typer.Option(help="Who scores the pictures: guide, a folder with a CLIP model, or none.")] = "guide",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures, the grid and the figures.")] = Path(
        "outputs/comparison"
    ),
    batch_size: drawing_options.BatchSize = 4,
    device: drawing_options.Device = "auto",
    dtype: drawing_options.Dtype = Precision.AUTO,
    attention: drawing_options.Attention = None,
) -> None:
    """Draw a plan by every strategy: same seeds, same words, one grid, a score for each.

    The first row is the base model without adapters. The score says how far a picture shows what the prompt says; the embedded
    guide knows the words of the embedded base's world. A strategy that cannot draw the plan is listed with the reason.

    Example: studio compare plan.yaml --strategies merge,switch,composite -n 4
    """
    flags = Flags(
        prompt=prompt,
        adapters=adapter or [],
        words=words or [],
        boxes=box or [],
        negative=negative,
        num_images=num_images,
        seed=seed,
        steps=steps,
        guidance=guidance,
        size=size,
        scheduler=scheduler,
        base=base,
    )
    wanted = plan_of(plan, flags)
    from studio.composition.drawing import check_strategy
    from studio.pipelines.files import atomic_write_json
    from studio.pipelines.pictures import save_picture
    from studio.pipelines.scoring import load_scorer
    from studio.workflows.compare import compare as compare_plan
    from studio.workflows.compare import grid, strategy_names

    check_strategy(wanted.strategy.name, dict(wanted.strategy.settings))
    names = strategy_names(strategies)
    judge = None if scorer == "none" else load_scorer(scorer)
    use_attention(attention)
    opened = open_plan_here(wanted, plan, adapters_dir or [], device, dtype)
    note(opened.scene.notes)
    with progress() as on_step:
        rows = compare_plan(opened, names, judge, batch_size=batch_size, on_step=on_step)
    for row in rows:
        save_pictures(row.pictures, output / row.strategy.replace(" ", "-"), 0)
        if row.refused:
            note([f"{row.strategy} was left out: {row.refused}"])
    save_picture(output / "grid.png", grid(rows, wanted.prompt), None)
    atomic_write_json(output / "comparison.json", {"scorer": scorer, "rows": [row.to_json() for row in rows]})
    width = max(len(row.strategy) for row in rows)
    typer.echo(f"{'strategy':<{width}}  score  passes  seconds")
    for row in rows:
        if not row.refused:
            score = "–" if row.score is None else f"{row.score:.3f}"
            typer.echo(f"{row.strategy:<{width}}  {score:>5}  {row.passes:>6}  {row.seconds:>7.1f}")
    typer.echo(output / "grid.png")
