"""`studio eval concept`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studio.cli.settings import assignments


class Split(StrEnum):
    """Which individuals: those that settings were chosen on, or those that were never looked at."""

    tune = "tune"
    report = "report"


def concept_command(
    split: Annotated[
        Split, typer.Option(help="Individuals to train on: 'tune' to choose settings, 'report' to report.")
    ] = Split.report,
    output: Annotated[
        Path | None, typer.Option(help="Folder of runs, records and tables. Default: outputs/eval/concept-SPLIT.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting of docs/training-config.md. May be repeated."),
    ] = None,
) -> None:
    """How well a thing is learned from five photos: identity, prompt fidelity, the right one of twenty."""
    from studio.evals.concept_eval import evaluate_concepts
    from studio.training.progress import progress_for_terminal

    chosen = assignments(settings or [])
    folder = output if output is not None else Path("outputs/eval") / f"concept-{split.value}"
    typer.echo(evaluate_concepts(split.value, folder, progress_for_terminal(), chosen).text())
