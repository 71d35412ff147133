"""`studio inspect`: what an adapter file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from studio.pipelines.adapters.summary import AdapterSummary


_SHORT_NAMES = {
    "self-attention": "self-attn",
    "cross-attention": "cross-attn",
    "feed-forward": "feed-fwd",
    "projection": "proj",
    "convolution": "conv",
}


def inspect(
    file: Annotated[Path, typer.Argument(help="An adapter file (.safetensors), whichever tool wrote it.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for scripts.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Also print the file's metadata as it is.")] = False,
) -> None:
    """Tell what an adapter file is: its type and rank, the base model it was made for, its trigger words, what it changes.

    Reads LoRA, DoRA, LoKr, LoHa and full-difference files of PEFT, diffusers, kohya and LyCORIS, DiffuseKronA's own, and the
    studio's. A file that is damaged, or of another kind, is refused with a sentence that says why (exit code 2; 3 if there is
    no file).

    Example: studio inspect ohwx-dog.safetensors
    """
    from studio.pipelines.adapters.summary import summarize

    summary = summarize(file)
    if as_json:
        import json

        typer.echo(json.dumps(_as_json(summary), indent=2, ensure_ascii=False))
        return
    _print(summary, metadata)


def _print(summary: AdapterSummary, with_metadata: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_facts(summary))
    console.print(_targets(summary))
    if with_metadata:
        console.print(_two_columns("Metadata", [(key, _short(value)) for key, value in sorted(summary.metadata.items())]))


def _facts(summary: AdapterSummary) -> Table:
    info = summary.info
    hint = None if info.trigger is None else f"{info.trigger}   (put it into the prompt)"
    rows = [
        ("file", f"{summary.path}, {_bytes(summary.file_bytes)}"),
        ("type", ", ".join(f"{kind} ({count} layers)" for kind, count in summary.kinds.items())),
        ("file format", f"{summary.dialect_title}, {', '.join(summary.dtypes)}, {summary.num_tensors} tensors"),
        ("first factor (out×in)", _counted(summary.factors)),
        ("rank", _counted(summary.ranks)),
        ("alpha", _counted(summary.alphas)),
        ("parameters", f"{summary.num_parameters:,}"),
        ("made for", _family_title(info.family)),
        ("base model", info.base_name),
        ("base model SHA-256", info.base_hash),
        ("trigger", hint),
        ("class", info.class_noun),
        ("role", ", ".join(info.roles)),
        ("trained at", None if info.resolution is None else f"{info.resolution[0]}×{info.resolution[1]} pixels"),
        ("created", info.created),
        ("description", info.description),
        ("author", info.author),
        ("licence", info.license),
        ("tags", ", ".join(info.tags)),
        ("thumbnail", "yes" if info.thumbnail else None),
        ("SHA-256", f"{summary.sha256}  (short: {summary.sha256[:10]})"),
    ]
    return _two_columns(info.name, [(name, value) for name, value in rows if value])


def _targets(summary: AdapterSummary) -> Table:
    from rich.table import Table

    from studio.pipelines.adapters.summary import PARTS

    parts = [part for part in PARTS if any(part in counts for counts in summary.targets.values())]
    table = Table(title="Layers it changes", title_justify="left")
    table.add_column("block", no_wrap=True)
    for part in parts:
        table.add_column(_SHORT_NAMES.get(part, part), justify="right", no_wrap=True)
    for block, counts in summary.targets.items():
        table.add_row(block, *(str(counts.get(part, "")) for part in parts))
    return table


def _two_columns(title: str, rows: list[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))  # a file's words are text, not markup
    return table


def _counted(counts: Any) -> str:
    """ "16", or "16 (300 layers), 4 (20 layers)"."""
    words = {value if isinstance(value, str) else f"{value:g}": count for value, count in counts.items()}
    if len(words) <= 1:
        return "".join(words)
    return ", ".join(f"{value} ({count} layers)" for value, count in words.items())


def _family_title(name: str | None) -> str:
    from studio.pipelines.families import family_named

    return "not known" if name is None else family_named(name).title


def _bytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else f"{number / 1e3:.1f} kB"


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


def _as_json(summary: AdapterSummary) -> dict[str, Any]:
    from dataclasses import asdict

    content = {name: getattr(summary, name) for name in summary.__dataclass_fields__}
    info = {**asdict(summary.info), "training": dict(summary.info.training)}
    return {**content, "path": str(summary.path), "info": info, "metadata": dict(summary.metadata)}
