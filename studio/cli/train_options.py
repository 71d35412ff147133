"""The options that the training commands share, each with its help text. A method's own options stand in its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    Path | None,
    typer.Option(help="Folder with 3 to 10 photos of the one thing, each from another side or in another place."),
]
ClassNoun = Annotated[
    str | None,
    typer.Option(
        help="What the thing is, in one everyday word: dog, backpack, robot. The model knows dogs already; with the "
        "right word it only has to learn what makes this one special. Nothing else matters as much."
    ),
]
Token = Annotated[str | None, typer.Option(help="The new, rare word for it; prompts then say 'a ohwx dog'.", show_default="ohwx")]
Base = Annotated[
    str | None,
    typer.Option(
        help="Base model: 'embedded', a diffusers folder, a hub id, or a .safetensors checkpoint.", show_default="embedded"
    ),
]
Output = Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="outputs/<class noun>")]
Steps = Annotated[int | None, typer.Option(help="Training steps.", show_default="by number of photos")]
LearningRate = Annotated[
    float | None, typer.Option(help="Halve it when the photos are learned by heart.", show_default="by base model")
]
Rank = Annotated[int | None, typer.Option(help="Size of the adapter.", show_default="by base model")]
BatchSize = Annotated[int | None, typer.Option(help="Photos per step.", show_default="by base model")]
Resolution = Annotated[int | None, typer.Option(help="Side of the training pictures in pixels.", show_default="by base model")]
Prior = Annotated[
    str | None,
    typer.Option(
        help="What keeps other dogs as they were: 'class-images' (pictures of dogs the base model draws), "
        "'base-output' (its own answers) or 'none'.",
        show_default="by base model",
    ),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same run.", show_default="0")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="auto")]
Attention = Annotated[
    str | None,
    typer.Option(
        help="What computes the attention: auto, sdpa (torch's own), flex or xformers; what cannot here says so.",
        show_default="STUDIO_ATTENTION, or auto",
    ),
]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings; flags are stronger.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Any setting of docs/training-config.md, such as optimizer.name=prodigy. May be repeated.",
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Insist on going on with the run in the output folder, or start over.",
        show_default="go on when there is one",
    ),
]
Redact = Annotated[
    str, typer.Option(help="What to leave out of the adapter files: 'none', 'private' (folders, captions) or 'minimal'.")
]
