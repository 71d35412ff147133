"""`studio eval composition`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studio.cli.settings import assignments


class BudgetName(StrEnum):
    """How much is drawn."""

    quick = "quick"
    full = "full"


def composition_command(
    budget: Annotated[
        BudgetName,
        typer.Option(
            help="'quick': 12 prompts of two concepts and 10 of three and four, two seeds; some 30 CPU-minutes of drawing. "
            "'full': 36 and 24 prompts, four seeds; hours on a CPU. Both train 15 adapters first, half an hour of CPU time, once."
        ),
    ] = BudgetName.quick,
    strategies: Annotated[str | None, typer.Option(help="Names with commas between them.", show_default="every strategy")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of records, tables and pictures. Trainings are kept beside it, in 'trained', and are shared by the "
            "budgets.",
            show_default="outputs/eval/composition-BUDGET",
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="The base model; it has to know the toy world, since the judge knows nothing else.")
    ] = "embedded",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Any setting of docs/training-config.md, for all trainings. May be repeated.",
        ),
    ] = None,
) -> None:
    """Every way to put several adapters into one picture: is each thing there, in its place, and itself?

    Twelve trained individuals of four classes and three styles; prompts of two different things, of two of one class, of a thing
    in a style, of three and of four; with boxes and without. Stopped at any time, the same command goes on.
    docs/composition.md tells how to read the tables.

    **Example:** studio eval composition --strategies merge,composite,clora
    """
    from studio.evals.composition import evaluate_composition
    from studio.evals.composition_plan import BUDGETS

    folder = output if output is not None else Path("outputs/eval") / f"composition-{budget.value}"
    names = None if strategies is None else [name.strip() for name in strategies.split(",") if name.strip()]
    found = evaluate_composition(
        BUDGETS[budget.value], folder, strategies=names, base=base, settings=dict(assignments(settings or []))
    )
    for table in found.tables.values():
        typer.echo(table.text())
    typer.echo(f"CPU minutes of drawing: {found.minutes:.1f}")
    typer.echo(f"tables and grids: {folder}")
