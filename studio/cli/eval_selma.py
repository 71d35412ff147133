"""`studio eval selma`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BudgetName(StrEnum):
    """How much is trained and drawn."""

    quick = "quick"
    full = "full"


class Split(StrEnum):
    """Which prompts: those that settings were chosen on, or those that nothing was chosen on."""

    tune = "tune"
    report = "report"


def selma_command(
    budget: Annotated[
        BudgetName,
        typer.Option(
            help="'quick': 96 prompts, short trainings. 'full': 360 prompts, whole trainings, also from unseen pictures."
        ),
    ] = BudgetName.quick,
    split: Annotated[Split, typer.Option(help="Prompts that are drawn: 'tune' to choose settings, 'report' to report.")] = (
        Split.report
    ),
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of adapters, records, pictures and tables; what is there already is not done again.",
            show_default="outputs/eval/selma-BUDGET-SPLIT",
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="The base model; it has to know the toy world, since the judge knows nothing else.")
    ] = "embedded",
) -> None:
    """Do merged skill experts follow hard prompts better than the base, or than one adapter trained on everything?

    The experts learn from the base's own pictures, those in which the guide sees all that the prompt says. The judge, which
    had no part in that, reads the results. Stopped at any time, the same command goes on.
    """
    from studio.evals.selma import evaluate_selma
    from studio.evals.selma_plan import BUDGETS
    from studio.pipelines.base_model import load_base
    from studio.pipelines.errors import UserError
    from studio.pipelines.scoring import embedded_referee
    from studio.training.progress import progress_for_terminal

    model = load_base(base)
    if model.family.name != "embedded":
        raise UserError(f"The judge reads the embedded model's pictures only, and {base} is {model.family.title}.")
    folder = output if output is not None else Path("outputs/eval") / f"selma-{budget.value}-{split.value}"
    tables, sentences = evaluate_selma(
        model,
        embedded_referee("guide"),
        embedded_referee("judge"),
        folder,
        BUDGETS[budget.value],
        split=split.value,
        progress=progress_for_terminal(),
    )
    for table in tables:
        typer.echo("\n" + table.text())
    for sentence in sentences:
        typer.echo(sentence)
