"""What the command line does better in a process of its own: writing adapters in other formats, and merging them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from studio.library.files import file_name
from studio.library.item import Item
from studio.pipelines.errors import StudioError, UserError
from studio.service import Studio
from studio.storage.home import HOME_VARIABLE

FORMATS = ("kohya", "peft", "lokr", "lora", "merged")
_SECONDS = 900


def exports_folder(studio: Studio, item: Item) -> Path:
    """Where an adapter's exports lie."""
    return studio.home.root / "exports" / item.id[:16]


def exports_of(studio: Studio, item: Item) -> list[Path]:
    """Files that were exported earlier."""
    folder = exports_folder(studio, item)
    return sorted(path for path in folder.glob("*.safetensors")) if folder.is_dir() else []


def export_adapter(studio: Studio, item: Item, form: str) -> Path:
    """Write an adapter in another format.

    Raises:
        UserError: there is no such format. StudioError: it cannot be written so; the command's own sentence.
    """
    if form not in FORMATS:
        raise UserError(f"There is no format {form!r}; there are {', '.join(FORMATS)}.")
    folder = exports_folder(studio, item)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if form == "merged" else ".safetensors"
    target = folder / file_name(f"{item.name}-{form}", item.id, suffix)
    source, _ = studio.library.resolve(item.id)
    _run(studio, ["export", str(source), "--format", form, "--output", str(target)])
    return target if target.is_file() else target / "model_index.json"


def merge_adapters(studio: Studio, items: Sequence[Item]) -> Item:
    """Make one adapter of several, by an exact sum, and put it into the library.

    Raises:
        StudioError: they do not go together; the command's own sentence.
    """
    folder = exports_folder(studio, items[0])
    folder.mkdir(parents=True, exist_ok=True)
    name = " + ".join(item.name for item in items)
    target = folder / file_name(name, items[0].id, ".safetensors")
    adapters = [word for item in items for word in ("--adapter", str(studio.library.resolve(item.id)[0]))]
    _run(studio, ["compose", "--prompt", "all of them", *adapters, "--strategy", "merge", "--export", str(target)])
    done = studio.import_adapter(target, name=name, tags=["merged"])
    assert done.item is not None
    return done.item


def _run(studio: Studio, arguments: Sequence[str]) -> None:
    environment = {**os.environ, HOME_VARIABLE: str(studio.home.root), "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "studio", *arguments],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StudioError(f"This took more than {_SECONDS // 60} minutes and was stopped.") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise StudioError(lines[-1].removeprefix("studio: ") if lines else f"It ended with exit code {done.returncode}.")
