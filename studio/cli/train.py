"""`studio train`: teach the model a concept from a folder of pictures. One sub-command per training method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from studio.cli.settings import assignments

if TYPE_CHECKING:
    from studio.pipelines.adapters import Redaction

train = typer.Typer(
    name="train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Teach the model a concept from a folder of pictures.",
)

_OVERRIDES = (
    ("images", "concept.images"),
    ("class_noun", "concept.class_noun"),
    ("token", "concept.token"),
    ("base", "model.base"),
    ("output", "run.output_dir"),
    ("steps", "schedule.steps"),
    ("learning_rate", "optimizer.learning_rate"),
    ("rank", "adapter.rank"),
    ("batch_size", "data.batch_size"),
    ("resolution", "data.resolution"),
    ("prior", "loss.prior"),
    ("seed", "run.seed"),
    ("device", "run.device"),
)
"""Flags that are settings, by their key in the schema."""


@train.callback()
def _methods() -> None:
    """Teach the model a concept from a folder of pictures. Choose how with a sub-command."""


@train.command("dreambooth-lora")
def dreambooth_lora(
    images: Annotated[
        Path | None,
        typer.Option(help="Folder with 3 to 10 photos of the one thing, each from another side or in another place."),
    ] = None,
    class_noun: Annotated[
        str | None,
        typer.Option(
            help="What the thing is, in one everyday word: dog, backpack, robot. The model knows dogs already; with the "
            "right word it only has to learn what makes this one special. Nothing else matters as much."
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The new, rare word for it; prompts then say 'a ohwx dog'.", show_default="ohwx")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: 'embedded', a diffusers folder, a hub id, or a .safetensors checkpoint.",
            show_default="embedded",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="outputs/<class noun>")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="by number of photos")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Halve it when the photos are learned by heart.", show_default="by base model")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Size of the adapter.", show_default="by base model")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photos per step.", show_default="by base model")] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side of the training pictures in pixels.", show_default="by base model")
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            help="What keeps other dogs as they were: 'class-images' (pictures of dogs the base model draws), "
            "'base-output' (its own answers) or 'none'.",
            show_default="by base model",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same run.", show_default="0")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="auto")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; flags are stronger.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Any setting of docs/training-config.md, such as optimizer.name=prodigy. May be repeated.",
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Insist on going on with the run in the output folder, or start over.",
            show_default="go on when there is one",
        ),
    ] = None,
    redact: Annotated[
        str,
        typer.Option(help="What to leave out of the adapter files: 'none', 'private' (folders, captions) or 'minimal'."),
    ] = "none",
) -> None:
    """Learn one particular thing (your dog, your mug) from a few photos.

    The result is a small adapter file that works with the base model it was trained on, and a report with samples,
    curves and the reason why that checkpoint was chosen.

    **Example:** studio train dreambooth-lora --images photos/rex --class-noun dog

    Then: studio generate --adapter outputs/dog/adapter.safetensors --prompt "a ohwx dog in the snow"

    Ctrl-C saves everything; the same command goes on where it stopped.
    """
    flags = {
        "images": images,
        "class_noun": class_noun,
        "token": token,
        "base": base,
        "output": output,
        "steps": steps,
        "learning_rate": learning_rate,
        "rank": rank,
        "batch_size": batch_size,
        "resolution": resolution,
        "prior": prior,
        "seed": seed,
        "device": device,
    }
    overrides = {key: flags[flag] for flag, key in _OVERRIDES if flags[flag] is not None}
    _run("dreambooth-lora", config, overrides, settings or [], resume, redact)


def _run(
    method: str,
    config_file: Path | None,
    overrides: Mapping[str, object],
    settings: list[str],
    resume: bool | None,
    redact: str,
) -> None:
    """Read the settings, train, and say where the result lies."""
    from studio.training.config import load_config
    from studio.training.progress import progress_for_terminal
    from studio.training.trainer import train as run_training

    config = load_config(config_file, {**assignments(settings), **overrides, "adapter.method": method})
    result = run_training(config, resume=resume, progress=progress_for_terminal(), redact=_redaction(redact))
    typer.echo(f"adapter: {result.adapter_path}")
    typer.echo(f"         {result.kohya_path}")
    typer.echo(f"report:  {result.report_path}")
    typer.echo(f'next:    studio generate --adapter {result.adapter_path} --prompt "a {result.trigger} in the snow"')


def _redaction(text: str) -> Redaction:
    from studio.pipelines.adapters import Redaction
    from studio.pipelines.errors import ConfigError

    for level in get_args(Redaction):
        if level == text:
            return cast("Redaction", level)
    raise ConfigError(f"--redact {text}: choose none, private or minimal")
