"""`studio export`: an adapter in another file format, or merged into a base model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What can be written."""

    PEFT = "peft"
    KOHYA = "kohya"
    MERGED = "merged"


class Role(StrEnum):
    """Halves of an adapter."""

    CONTENT = "content"
    STYLE = "style"


class Redact(StrEnum):
    """What metadata to leave out."""

    NONE = "none"
    PRIVATE = "private"
    MINIMAL = "minimal"


class Precision(StrEnum):
    """Types that weights can be stored in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def export(
    file: Annotated[Path, typer.Argument(help="An adapter file (.safetensors), whichever tool wrote it.", show_default=False)],
    format: Annotated[  # noqa: A002 - it is the option's name
        Format,
        typer.Option(
            help="peft: for diffusers and PEFT. kohya: for A1111, Forge, ComfyUI and InvokeAI. "
            "merged: a whole model with the adapter inside, as a diffusers folder."
        ),
    ] = Format.KOHYA,
    output: Annotated[
        Path | None, typer.Option(help="File, or folder for merged, to write. By default beside FILE.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="With merged: the base model, as a diffusers folder, .safetensors checkpoint or hub id. "
            "By default the embedded model.",
            show_default=False,
        ),
    ] = None,
    role: Annotated[
        Role | None,
        typer.Option(help="Only this half of a B-LoRA: what its picture shows, or how it is drawn.", show_default=False),
    ] = None,
    strength: Annotated[float, typer.Option(help="With merged: how strongly the adapter acts; 1 is as trained.")] = 1.0,
    redact: Annotated[
        Redact,
        typer.Option(
            help="Metadata to leave out. none: keep all. private: no folder names and captions. "
            "minimal: keep only what loading needs, not even the trigger words."
        ),
    ] = Redact.NONE,
    dtype: Annotated[Precision, typer.Option(help="Type of the stored weights.")] = Precision.FLOAT16,
) -> None:
    """Write an adapter in another file format, or merged into a base model.

    Every tensor of FILE, or of the half that --role names, is in the result, at the same strength. Nothing is overwritten
    halfway: the result appears whole or not at all.

    Example: studio export ohwx-dog.safetensors --format kohya --redact private
    """
    import torch

    from studio.pipelines.adapters import load_adapter, save_adapter
    from studio.pipelines.errors import UserError

    adapter = load_adapter(file)
    stem = file.stem
    if role is not None:
        from studio.pipelines.adapters.roles import select_roles

        adapter, stem = select_roles(adapter, [role.value]), f"{stem}.{role}"
    if output is None:
        output = file.with_name(f"{stem}-merged" if format is Format.MERGED else f"{stem}.{format}.safetensors")
    if output.exists() and output.samefile(file):
        raise UserError(f"{output} is the file that is read; choose another name with --output.")
    stored_type = {Precision.FLOAT16: torch.float16, Precision.BFLOAT16: torch.bfloat16}.get(dtype, torch.float32)
    if format is Format.MERGED:
        from studio.pipelines.adapters.merged_model import save_merged
        from studio.pipelines.base_model import load_base

        save_merged(load_base(base), [(adapter, strength)], output, dtype=stored_type)
    else:
        if base is not None or strength != 1.0:
            raise UserError("--base and --strength belong to --format merged; a file keeps the strength it has.")
        save_adapter(adapter, output, format.value, dtype=stored_type, redact=redact.value)
    typer.echo(str(output))
