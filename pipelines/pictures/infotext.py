"""The `parameters` text that AUTOMATIC1111's web UI writes into pictures, and most tools read.

    <prompt, any number of lines, with <lora:name:strength> for every LoRA>
    Negative prompt: <any number of lines>
    Steps: 30, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 0123456789, Model: name, …

A value with a comma, a colon or a line break is quoted as JSON. The last line counts as settings if it has three or more
`Key: value` pairs; readers take it for part of the prompt otherwise.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from studio.pipelines.pictures.record import PictureRecord

_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_MIN_SETTINGS = 3
_NAME_BREAKERS = re.compile(r'[<>:,"\r\n]+')


@dataclass(frozen=True)
class Infotext:
    """A `parameters` text, taken apart. `settings` has the last line's values as they stand, unquoted."""

    prompt: str
    negative_prompt: str = ""
    settings: dict[str, str] = field(default_factory=dict)


def infotext(record: PictureRecord) -> str:
    """The `parameters` text of a picture."""
    from studio.pipelines.denoising import scheduler_title  # torch: whoever only reads what pictures say does without

    # A tag would make other tools load the whole file, so halves are named apart.
    tags = "".join(f" <lora:{_tag_name(use.name)}:{use.strength:g}>" for use in record.adapters if use.role is None)
    halves = [f"{use.role} of {_tag_name(use.name)}: {use.strength:g}" for use in record.adapters if use.role is not None]
    settings: dict[str, str] = {
        "Steps": str(record.steps),
        "Sampler": scheduler_title(record.scheduler),
        "Schedule type": "Automatic",
        "CFG scale": f"{record.guidance_scale:g}",
        "Seed": str(record.seed),
        "Size": f"{record.width}x{record.height}",
        "Model hash": record.base_hash[:10],
        "Model": record.base,
        "Lora hashes": ", ".join(f"{_tag_name(use.name)}: {use.short_hash}" for use in record.adapters),
        "Adapter halves": ", ".join(halves),
        "Block prompts": ", ".join(f"{stack}: {text}" for stack, text in record.block_prompts.items()),
        "Composition": _strategy_name(record),
        "Version": f"studio {record.version}",
    }
    lines = [record.prompt + tags]
    if record.negative_prompt:
        lines.append(f"{_NEGATIVE} {record.negative_prompt}")
    lines.append(", ".join(f"{key}: {quote(value)}" for key, value in settings.items() if value))
    return "\n".join(lines)


def _strategy_name(record: PictureRecord) -> str:
    """How several adapters came together; other tools can only add them up."""
    strategy = record.recipe.get("strategy", {})
    return str(strategy.get("name", "")) if isinstance(strategy, dict) else ""


def read_infotext(text: str) -> Infotext:
    """Take a `parameters` text apart; what has no settings line is all prompt."""
    lines = text.strip().split("\n")
    found = _SETTING.findall(lines[-1])
    settings: dict[str, str] = {}
    if len(found) >= _MIN_SETTINGS:
        settings = {key: unquote(value) for key, value in found}
        lines = lines[:-1]
    start = next((n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE).strip()
    return Infotext("\n".join(lines[:start]).strip(), negative, settings)


def quote(value: str) -> str:
    """`value` as it stands in the settings line: as JSON if it has a comma, a colon or a line break."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def unquote(value: str) -> str:
    """The inverse of `quote`; a value that only looks quoted is left as it is."""
    if not (value.startswith('"') and value.endswith('"') and len(value) > 1):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _tag_name(name: str) -> str:
    """A LoRA's name without the characters that would end its tag or its entry."""
    return _NAME_BREAKERS.sub("_", name)
