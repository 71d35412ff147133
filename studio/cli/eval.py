"""`studio eval`: measure, print the table, and keep the raw records beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli.eval_composition import composition_command
from studio.cli.eval_concept import concept_command
from studio.cli.eval_selma import selma_command
from studio.cli.eval_stylize import stylize_command
from studio.cli.eval_trainers import trainers_command

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure the base model or a training method, and print the table."
)

app.command("concept")(concept_command)
app.command("trainers")(trainers_command)
app.command("stylize")(stylize_command)
app.command("composition")(composition_command)
app.command("selma")(selma_command)

Output = Annotated[
    Path, typer.Option(help="Folder of tables, raw records and pictures; what is there already is not done again.")
]
BaseOption = Annotated[
    str, typer.Option("--base", help="The base model: embedded, a diffusers folder, a hub id or a checkpoint.")
]


@app.command("base")
def base_command(
    output: Output = Path("outputs/eval/base"),
    base: BaseOption = "embedded",
    limit: Annotated[int | None, typer.Option(help="Prompts of each group at most, for a quick look.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at once.")] = 20,
    sheet: Annotated[
        int, typer.Option(help="Also write contact sheets and a label file of this many pictures, to label by eye.")
    ] = 0,
) -> None:
    """Draw the fixed prompts and let the judge read the pictures: objects, colours, patterns, styles, relations, distances."""
    from studio.evals.base import evaluate_base, write_label_sheets
    from studio.pipelines.base_model import load_base
    from studio.pipelines.scoring import embedded_referee

    model, judge = load_base(base), embedded_referee("judge")
    tables = evaluate_base(
        model, judge, output, round_trip=_round_trip(base), limit=limit, steps=steps, batch_size=batch_size, report=typer.echo
    )
    for table in tables:
        typer.echo("\n" + table.text())
    if sheet:
        typer.echo("Label by eye: " + ", ".join(map(str, write_label_sheets(model, judge, output, num=sheet, steps=steps))))


@app.command("labels")
def labels_command(
    labels: Annotated[Path, typer.Argument(help="JSON file of what a person sees in the pictures.")],
    records: Annotated[Path, typer.Option(help="Folder that `studio eval base` wrote.")] = Path("outputs/eval/base"),
    output: Annotated[Path | None, typer.Option(help="Folder for the table; the labels' folder when not given.")] = None,
) -> None:
    """The judge's error on sampled pictures, against a person's labels."""
    from studio.evals.labels import label_table
    from studio.evals.records import read_log
    from studio.evals.tables import write_table
    from studio.pipelines.errors import MissingFileError

    for path in (labels, records / "records.jsonl"):
        if not path.is_file():
            raise MissingFileError(
                f"There is no file {path}; `studio eval base --sheet 200` writes both records and a label file."
            )
    table = label_table(labels, *read_log(records / "records.jsonl"))
    write_table(table, labels.parent if output is None else output, "judge-error")
    typer.echo(table.text())


@app.command("referees")
def referees_command(
    output: Output = Path("outputs/eval/referees"),
    scenes: Annotated[int, typer.Option(help="Held-out renders to read.")] = 1000,
    queries: Annotated[int, typer.Option(help="Pictures of each of the 50 individuals to recognise, for every class.")] = 2,
) -> None:
    """How often guide and judge are right on held-out renders that went through the autoencoder."""
    from studio.evals.referees import evaluate_referees
    from studio.pipelines.scoring import embedded_referee

    scorers = [embedded_referee(name) for name in ("guide", "judge")]
    round_trip = _round_trip("embedded")
    assert round_trip is not None
    typer.echo(evaluate_referees(scorers, round_trip, output, num_scenes=scenes, num_queries=queries).text())


def _round_trip(base: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - importing the type would import torch
    """The embedded base's autoencoder; None for another base, whose renders we do not compare with."""
    from studio.pipelines.base_model import embedded_base_dir
    from studio.training.referees.renders import load_round_trip

    return load_round_trip(embedded_base_dir() / "vae") if base == "embedded" else None
