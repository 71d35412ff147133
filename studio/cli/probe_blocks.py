"""`studio probe-blocks`: find the blocks of a base model that hold content and style."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studio.cli.drawing import Precision, placement, progress


class BudgetName(StrEnum):
    """How much is drawn."""

    quick = "quick"
    full = "full"


def probe_blocks(
    base: Annotated[
        str, typer.Option(help="Base model: embedded, a diffusers folder, a hub id or a .safetensors checkpoint.")
    ] = "embedded",
    scorer: Annotated[
        str,
        typer.Option(
            help="Who reads the pictures: 'guide' (knows the embedded model's world only), or a folder with a CLIP model for "
            "any other base."
        ),
    ] = "guide",
    budget: Annotated[
        BudgetName,
        typer.Option(
            help="'quick' for a first look, 'full' for a finding to rely on. On the embedded model about one and five "
            "CPU-minutes; a model with more attention stacks needs somewhat more."
        ),
    ] = BudgetName.full,
    output: Annotated[
        Path, typer.Option(help="Folder of the raw records, tables, plot and finding; what is there is not drawn again.")
    ] = Path("outputs/probe"),
    install: Annotated[
        bool,
        typer.Option(
            "--install/--no-install",
            help="Write the finding beside the base model too, where 'studio train b-lora' and 'studio stylize' look for it.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at once. Smaller needs less memory.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    dtype: Annotated[Precision, typer.Option(help="Type of the weights. auto: float32, and on CUDA bfloat16.")] = Precision.AUTO,
) -> None:
    """Find which blocks of a base model hold content and which style.

    One attention stack is told "a pencil sketch of a mug" and the rest of the model "pixel art of a house", for many such
    pairs of prompts: what does the one stack decide? Then pairs of stacks, as B-LoRA uses them. The best pair is measured again
    on fresh prompts, against 20 pairs drawn at random; where it is not better than those, the finding is "no separation", and
    'studio stylize' says so.

    SDXL's blocks are known and need no probe; SD 1.5 has no published split.

    **Example:** studio probe-blocks --base my-model --scorer models/clip --install

    Ctrl-C loses nothing: the same command goes on.
    """
    from studio.evals.block_probe import probe_blocks as run_probe
    from studio.evals.block_probe_plan import BUDGETS
    from studio.evals.block_probe_plot import plot_probe
    from studio.evals.block_probe_result import probe_tables
    from studio.evals.tables import write_table
    from studio.pipelines.base_model import load_base
    from studio.pipelines.block_roles import PROBE_NAME, probe_path, write_block_probe
    from studio.pipelines.errors import UserError
    from studio.pipelines.scoring import load_scorer

    reader = load_scorer(scorer)
    place, weights = placement(device, dtype)
    model = load_base(base, dtype=weights, device=place)
    if scorer == "guide" and model.family.name != "embedded":
        raise UserError(
            f"The guide reads the embedded model's pictures only, and {base} is {model.family.title}: give --scorer a folder "
            "with a CLIP model."
        )
    with progress() as on_progress:
        result = run_probe(model, reader, output, BUDGETS[budget], batch_size=batch_size, on_progress=on_progress)
    for name, table in zip(("singles", "pairs"), probe_tables(result), strict=True):
        write_table(table, output, name)
        typer.echo(table.text())
    plot_probe(result, output / "probe.png")
    details = {"budget": budget.value, "scorer": [reader.name, reader.content_hash], **result.details()}
    record = result.record(model.content_hash)
    for path in (output / PROBE_NAME, *((probe_path(model),) if install else ())):
        write_block_probe(path, record, details)
        typer.echo(path)
