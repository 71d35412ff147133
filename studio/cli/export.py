"""`studio export`: an adapter in another file format, or merged into a base model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from studio.pipelines.adapters import Adapter
    from studio.pipelines.adapters.conversion import Conversion


class Format(StrEnum):
    """What can be written."""

    PEFT = "peft"
    KOHYA = "kohya"
    LOKR = "lokr"
    LYCORIS = "lycoris"
    LORA = "lora"
    DIFF = "diff"
    SPARSE = "sparse"
    SPARSE_VALUES = "sparse-values"
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
        Format | None,
        typer.Option(
            help="peft: for diffusers and PEFT. kohya: for A1111, Forge, ComfyUI and InvokeAI. lokr: a Kronecker adapter for "
            "A1111 and ComfyUI; lycoris: the same for LoHa and others. lora: any adapter as a LoRA, exactly or with --rank or "
            "--energy. diff: any adapter as full differences, for A1111 and ComfyUI; large. sparse, sparse-values: the studio's "
            "for SaRA. merged: a whole model with the adapter inside, as a diffusers folder.",
            show_default="kohya, or what holds the adapter as it is",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File, or folder for merged, to write. By default beside FILE.", show_default=False)
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="With lora: at most this rank in every layer; the relative error is printed.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="With lora: in each layer the smallest rank that keeps this share of the change, such as 0.9."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With lora: write it however little of a sparse adapter it keeps.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="With merged: the base model, as a diffusers folder, .safetensors checkpoint or hub id. "
            "By default the embedded model. With lora, diff and sparse: the same, where the adapter's change depends on it "
            "(DoRA, sparse-values).",
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
    """Write an adapter in another file format, as a LoRA, or merged into a base model.

    Every tensor of FILE, or of the half that --role names, is in the result, at the same strength. Nothing is overwritten
    halfway: the result appears whole or not at all.

    Example: studio export ohwx-dog.safetensors --format kohya --redact private

    A Kronecker adapter for a tool that loads LoRA only: studio export ohwx-dog.safetensors --format lora --energy 0.95
    """
    import torch

    from studio.pipelines.adapters import load_adapter, save_adapter
    from studio.pipelines.errors import UserError

    adapter = load_adapter(file)
    stem = file.stem
    if role is not None:
        from studio.pipelines.adapters.roles import select_roles

        adapter, stem = select_roles(adapter, [role.value]), f"{stem}.{role}"
    chosen = _natural_format(adapter) if format is None else format
    if (rank is not None or energy is not None or force) and chosen is not Format.LORA:
        raise UserError("--rank, --energy and --force belong to --format lora.")
    if base is not None and chosen not in (Format.MERGED, Format.LORA, Format.DIFF, Format.SPARSE):
        raise UserError("--base belongs to --format merged, lora, diff and sparse; other files do not depend on it.")
    if strength != 1.0 and chosen is not Format.MERGED:
        raise UserError("--strength belongs to --format merged; a file keeps the strength it has.")
    if output is None:
        output = file.with_name(f"{stem}-merged" if chosen is Format.MERGED else f"{stem}.{chosen}.safetensors")
    if output.exists() and output.samefile(file):
        raise UserError(f"{output} is the file that is read; choose another name with --output.")
    stored_type = {Precision.FLOAT16: torch.float16, Precision.BFLOAT16: torch.bfloat16}.get(dtype, torch.float32)
    if chosen is Format.MERGED:
        from studio.pipelines.adapters.merged_model import save_merged
        from studio.pipelines.base_model import load_base

        save_merged(load_base(base), [(adapter, strength)], output, dtype=stored_type)
    else:
        adapter, dialect = _in_form(adapter, chosen, base, rank, energy, force)
        save_adapter(adapter, output, dialect, dtype=stored_type, redact=redact.value)
    typer.echo(str(output))


def _natural_format(adapter: Adapter) -> Format:
    """Without --format: what other tools read and holds the adapter as it is; a LoRA or differences where there is none."""
    kinds = adapter.kinds().keys()
    if kinds <= {"lora", "dora"}:
        return Format.KOHYA
    if kinds == {"lokr"}:
        shuffled = any(getattr(patch, "interleaved", False) for patch in adapter.patches.values())
        return Format.LORA if shuffled else Format.LOKR
    return Format.DIFF if "sparse" in kinds else Format.LYCORIS


def _in_form(
    adapter: Adapter, chosen: Format, base: str | None, rank: int | None, energy: float | None, force: bool
) -> tuple[Adapter, str]:
    """The adapter as what `chosen` says, and the dialect to write it in."""
    from studio.pipelines.adapters.conversion import to_full, to_lora
    from studio.pipelines.adapters.sparse_export import require_faithful, with_positions
    from studio.pipelines.errors import UserError

    if chosen in (Format.LORA, Format.DIFF):
        components = None
        if base is not None:
            from studio.pipelines.adapters.merged_model import require_family
            from studio.pipelines.base_model import load_base

            model = load_base(base)
            require_family(adapter, model.family)
            components = model.components()
        if chosen is Format.DIFF:
            return to_full(adapter, components=components), "lycoris"
        converted = to_lora(adapter, rank=rank, energy=energy, components=components)
        _report(converted)
        if not force:
            require_faithful(converted, adapter)
        return converted.adapter, "kohya"
    if chosen is Format.SPARSE and base is not None:
        from studio.pipelines.base_model import load_base

        return with_positions(adapter, load_base(base).components()), "sparse"
    if chosen is Format.LOKR and adapter.kinds().keys() != {"lokr"}:
        kinds = " and ".join(adapter.kinds())
        raise UserError(f"--format lokr is for Kronecker adapters, and this one is {kinds}; export --format lycoris or lora.")
    return adapter, "lycoris" if chosen is Format.LOKR else chosen.value


def _report(converted: Conversion) -> None:
    """Say on standard error what a LoRA keeps, and what it weighs."""
    ranks = sorted(fit.rank for fit in converted.layers.values())
    worst = max(converted.layers, key=lambda path: converted.layers[path].relative_error)
    spread = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    typer.echo(
        f"{spread}, relative error {converted.relative_error:.3g}, energy kept {converted.energy:.2%}; "
        f"worst layer {worst.module}: {converted.layers[worst].relative_error:.3g}",
        err=True,
    )
    factors = [patch.parameters() for patch in converted.adapter.patches.values()]
    dense = sum(len(tensors["up"]) * tensors["down"][0].numel() for tensors in factors)
    numbers = converted.adapter.num_parameters()
    if numbers > dense:
        typer.echo(
            f"It has {numbers:,} numbers, more than the {dense:,} of full differences (--format diff); "
            f"--rank or --energy make it smaller.",
            err=True,
        )
