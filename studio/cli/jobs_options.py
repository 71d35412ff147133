"""The options that the commands about jobs and the library share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option(
        help="The studio's home folder.", envvar="STUDIO_HOME", show_default="STUDIO_HOME, or this system's folder for data"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
