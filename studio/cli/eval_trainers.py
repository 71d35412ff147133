"""`studio eval trainers`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studio.cli.settings import assignments


class BudgetName(StrEnum):
    """How much is trained."""

    quick = "quick"
    full = "full"


def trainers_command(
    budget: Annotated[
        BudgetName,
        typer.Option(
            help="'quick': 3 individuals and 1 style, one seed, at most 25 CPU-minutes. 'full': 6 individuals, 4 styles, "
            "3 seeds, and a grid of learning rate and size for every method; many hours on a CPU."
        ),
    ] = BudgetName.quick,
    methods: Annotated[
        str | None, typer.Option(help="Names with commas between them.", show_default="every training method")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of records, tables, pictures and the page. Trainings are kept beside it, in 'trained', and are shared "
            "by the budgets.",
            show_default="outputs/eval/trainers-BUDGET",
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
    """The same concepts through every training method: what each learned, what it forgot, and what it cost.

    Stopped at any time, the same command goes on; what was trained already is not trained again. docs/trainers.md tells how to
    read the tables.

    **Example:** studio eval trainers --budget quick --methods dreambooth-lora,diffusekrona
    """
    from studio.evals.trainers import evaluate_trainers
    from studio.evals.trainers_plan import BUDGETS

    folder = output if output is not None else Path("outputs/eval") / f"trainers-{budget.value}"
    names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    found = evaluate_trainers(BUDGETS[budget.value], folder, methods=names, base=base, settings=dict(assignments(settings or [])))
    for table in found.tables.values():
        typer.echo(table.text())
    typer.echo(f"page: {folder / 'index.html'}")
