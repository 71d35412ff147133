"""`studio eval stylize`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BudgetName(StrEnum):
    """How much is trained and drawn."""

    quick = "quick"
    full = "full"


def stylize_command(
    budget: Annotated[
        BudgetName,
        typer.Option(help="'quick': 9 pairs of pictures, short trainings. 'full': 48 pairs, whole trainings, 3 random pairs."),
    ] = BudgetName.quick,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of adapters, records, pictures and the table; what is there already is not done again.",
            show_default="outputs/eval/stylize-BUDGET",
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="The base model; it has to know the toy world, since the judge knows nothing else.")
    ] = "embedded",
) -> None:
    """The content of one picture in the style of another: the probed blocks, a plain merge, random blocks, and words.

    For held-out pairs of pictures the judge tells how often it sees the one's content and the other's style. Stopped at any
    time, the same command goes on.
    """
    from studio.evals.stylize import evaluate_stylize
    from studio.evals.stylize_plan import BUDGETS
    from studio.pipelines.base_model import load_base
    from studio.pipelines.errors import UserError
    from studio.pipelines.scoring import embedded_referee
    from studio.training.progress import progress_for_terminal

    model = load_base(base)
    if model.family.name != "embedded":
        raise UserError(f"The judge reads the embedded model's pictures only, and {base} is {model.family.title}.")
    folder = output if output is not None else Path("outputs/eval") / f"stylize-{budget.value}"
    table = evaluate_stylize(model, embedded_referee("judge"), folder, BUDGETS[budget.value], progress_for_terminal())
    typer.echo(table.text())
