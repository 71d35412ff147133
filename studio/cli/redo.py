"""`studio redo`: a picture again from what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli import drawing_options
from studio.cli.drawing import Precision, placement, say


def redo(
    picture: Annotated[Path, typer.Argument(help="A picture that says how it was made.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new picture.")] = Path("outputs/redone"),
    base: drawing_options.Base = None,
    adapters_dir: Annotated[
        list[Path] | None,
        typer.Option(help="A folder to look for adapters in, also further down; besides the picture's, this one and outputs."),
    ] = None,
    device: drawing_options.Device = "auto",
) -> None:
    """Draw a picture again.

    A picture of 'studio batch' is drawn in a forward of the shape that it was drawn in, with as many threads, and is the same to
    the bit on the same kind of machine. Adapters are found by their hashes, whatever they are called now. Pictures of other
    tools are drawn from their words and numbers; another tool's noise differs, and so does the picture.

    **Example:** studio redo outputs/grid/00012-7-a-cat-1a2b3c4d.png
    """
    from studio.batch.redo import redo_picture
    from studio.pipelines.pictures import save_png

    place, _ = placement(device, Precision.AUTO)
    folders = [*(adapters_dir or []), picture.parent, Path(), Path("outputs")]
    redone = redo_picture(picture, folders, base=base, device=str(place))
    for note in redone.notes:
        say(f"note: {note}")
    path = output / f"{picture.stem}.png"
    save_png(path, redone.drawn.data, redone.drawn.record)
    if redone.max_difference is None:
        say("it has another size than the old one")
    else:
        say("the same pixels" if redone.max_difference == 0 else f"pixels differ by at most {redone.max_difference} of 255")
    typer.echo(path)
