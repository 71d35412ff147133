"""`studio show`: what a picture says of how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer


def show(
    picture: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Tell how a picture was made: prompt, seed, model, adapters, and how a batch drew it.

    Reads pictures of the studio, of AUTOMATIC1111 and its kin, of ComfyUI and of InvokeAI.

    **Example:** studio show outputs/pictures/00000-7-a-cat-1a2b3c4d.png
    """
    from studio.pipelines.pictures.foreign import read_picture

    facts = read_picture(picture)
    if as_json:
        values = asdict(facts) if facts.record is None else facts.record.to_json()
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        return
    if facts.tool is None:
        typer.echo(f"{picture} ({facts.width}x{facts.height}) does not say how it was made.")
        return
    lines: dict[str, Any] = {
        "made with": facts.tool,
        "prompt": facts.prompt,
        "negative": facts.negative_prompt,
        "seed": facts.seed,
        "steps": facts.steps,
        "sampler": facts.sampler,
        "guidance": facts.guidance_scale,
        "size": f"{facts.width}x{facts.height}",
        "model": _with_hash(facts.model, facts.model_hash),
    }
    for name, strength in facts.adapters:
        lines[f"adapter {name}"] = _with_hash(f"{strength:g}", facts.adapter_hashes.get(name))
    if facts.record is not None and facts.record.recipe:
        lines["composition"] = facts.record.recipe.get("strategy", {}).get("name", "")
    if facts.record is not None and facts.record.drawn:
        shape = facts.record.drawn
        lines["drawn"] = f"row {shape.get('row')} of {shape.get('rows')}, {shape.get('kernels')}, {shape.get('processor')}"
    lines |= facts.settings
    width = max(len(key) for key in lines)
    for key, value in lines.items():
        if value not in (None, ""):
            typer.echo(f"{key:{width}}  {value}")


def _with_hash(name: str | None, value: str | None) -> str:
    return " ".join(part for part in (name, f"({value[:12]})" if value else "") if part)
