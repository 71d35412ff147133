"""`studio train b-lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli import train_options as options
from studio.cli.train_run import run_method


def b_lora(
    images: Annotated[
        Path | None, typer.Option(help="One picture: a file, or a folder with one. For a style, crop it to the thing drawn.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="The new word for it; give the content and the style picture different ones.", show_default="ohwx"),
    ] = None,
    base: options.Base = None,
    content_block: Annotated[
        str | None,
        typer.Option(
            help="The attention stack that shall hold the content, as up_blocks.0.attentions.0. SDXL and probed base models "
            "need no such option; see 'studio probe-blocks'.",
            show_default="by base model",
        ),
    ] = None,
    style_block: Annotated[
        str | None, typer.Option(help="The one that shall hold the style.", show_default="by base model")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="outputs/<picture's name>")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="1000 on SDXL")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="5e-5 on SDXL")] = None,
    rank: Annotated[int | None, typer.Option(help="Size of the adapter.", show_default="64 on SDXL")] = None,
    resolution: options.Resolution = None,
    seed: options.Seed = None,
    device: options.Device = None,
    config: options.Config = None,
    settings: options.Settings = None,
    resume: options.Resume = None,
    redact: options.Redact = "none",
    attention: options.Attention = None,
) -> None:
    """Split one picture into what it shows (content) and how it is drawn (style).

    Two small blocks of the model learn the picture together; afterwards one holds the content, the other the style. The
    adapter file has both halves. 'studio stylize' puts the content of one picture into the style of another, or either of
    them together with words.

    No class noun is needed: the picture's words are 'a ohwx' and nothing else, because a noun would pull the content out of
    the halves. One picture is enough; several blur what belongs to each.

    **Example:** studio train b-lora --images cat.png --token ohwx --output outputs/cat

    Then: studio train b-lora --images ink.png --token zwx --output outputs/ink, and
    studio stylize --content outputs/cat/adapter.safetensors --style outputs/ink/adapter.safetensors

    Ctrl-C saves everything; the same command goes on where it stopped.
    """
    named = images is not None and config is None
    overrides = {
        "concept.images": images,
        "concept.token": token,
        "model.base": base,
        "b_lora.content_block": content_block,
        "b_lora.style_block": style_block,
        "run.output_dir": Path("outputs") / images.stem if named and output is None and images is not None else output,
        "run.name": images.stem if named and images is not None else None,
        "schedule.steps": steps,
        "optimizer.learning_rate": learning_rate,
        "adapter.rank": rank,
        "data.resolution": resolution,
        "run.seed": seed,
        "run.device": device,
    }
    run_method("b-lora", config, overrides, settings, resume, redact, attention)
