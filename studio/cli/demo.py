"""`studio demo`: the whole main job on a sample concept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli.settings import assignments


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the result; open its index.html.")] = Path("outputs/demo"),
    concept: Annotated[str, typer.Option(help="Sample concept to learn: a folder of assets/concepts.")] = "robot",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting of docs/training-config.md. May be repeated."),
    ] = None,
) -> None:
    """Teach the embedded model a sample concept from five photos, and show it in eight new scenes and styles.

    Takes some minutes on two cores and needs no network. The page shows the photos, what the base model makes of the same
    prompts, the new pictures, how the thing truly looks there, and what an independent judge says.
    """
    from studio.training.progress import progress_for_terminal
    from studio.workflows.demo import run_demo

    chosen = assignments(settings or [])
    result = run_demo(output, concept, progress_for_terminal(), settings=chosen)
    found = result.verdict
    for name, (wall, cpu) in result.seconds.items():
        typer.echo(f"{name:10} {wall:6.0f} s wall {cpu:6.0f} s CPU")
    typer.echo(f"identity   {100 * found.identity_gain.estimate:.0f} % of the way from the base model to the truth")
    ours, floor = (100 * found.right[arm].estimate for arm in ("ours", "base"))
    typer.echo(f"right one  {ours:.0f} % of the pictures (base model {floor:.0f} %)")
    typer.echo(f"fidelity   {found.fidelity['ours']:.3f} (base model {found.fidelity['base']:.3f})")
    typer.echo(f"learned    {'yes' if found.learned else 'not fully'}")
    typer.echo(f"page       {result.page}")
