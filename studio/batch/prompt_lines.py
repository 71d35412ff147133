"""Prompt files: a request a line, with the flags that AUTOMATIC1111's script and kohya's sample prompts know.

a red cat in the snow
a ohwx robot --n blurry --w 96 --h 96 --d 7 --l 4.5 --s 20 --am 0.8
--prompt "a boat" --negative_prompt "text" --seed 3 --sampler_name "Euler a" --cfg_scale 7 --adapter boat.safetensors:0.8
# a comment
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

from studio.pipelines.errors import ConfigError

_KOHYA = {
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "steps",
    "l": "guidance_scale",
    "g": "guidance_scale",
    "am": "strength",
    "ss": "scheduler",
}
_A1111 = {
    "cfg_scale": "guidance_scale",
    "sampler_name": "scheduler",
    "sampler_index": "scheduler",
    "sd_model": "base",
    "n_iter": "num_images",
}
_OWN = (
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "width",
    "height",
    "size",
    "scheduler",
    "base",
    "adapter",
    "strength",
    "num_images",
    "name",
)
_PASSED_OVER = ("outpath_samples", "outpath_grids", "batch_size", "do_not_save_samples", "do_not_save_grid", "prompt_for_display")
"""Of A1111's flags, those about places and batches, which the command line decides here."""

_UNKNOWN_THERE = ("styles", "subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w", "restore_faces", "tiling")
_NUMBERS = ("seed", "steps", "width", "height", "num_images")
_FLAG = re.compile(r"(?:^|\s)--(?=[A-Za-z])")


def requests_of_lines(text: str, source: str) -> list[tuple[dict[str, Any], str]]:
    """Each line's fields, and where it stands; empty lines and those that begin with # are left out.

    Raises:
        ConfigError: a flag is unknown or has no value that fits; names the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            where = f"{source}, line {number}"
            found.append((_fields(line.strip(), where), where))
    return found


def _fields(line: str, where: str) -> dict[str, Any]:
    match = _FLAG.search(line)
    if match is None:
        return {"prompt": line}
    prompt, flags = line[: match.start()].strip(), line[match.start() :]
    fields: dict[str, Any] = {"prompt": prompt} if prompt else {}
    for part in _FLAG.split(flags):
        name, _, value = part.strip().partition(" ")
        if not name:
            continue
        key = _key(name, where)
        if key is not None:
            read = _value(key, value.strip(), where)
            if key == "adapter":
                fields.setdefault("adapters", []).append(read)
            else:
                fields[key] = read
    if "prompt" not in fields:
        raise ConfigError(f"{where}: there is no prompt; write it first, or as --prompt.")
    return fields


def _key(name: str, where: str) -> str | None:
    key = _KOHYA.get(name) or _A1111.get(name) or (name if name in _OWN else None)
    if key is not None or name in _PASSED_OVER:
        return key
    if name in _UNKNOWN_THERE:
        raise ConfigError(f"{where}: --{name} is something that the studio does not do; leave it out.")
    names = [*_OWN, *_A1111, *_KOHYA]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean --{near[0]}?" if near else f"there are: {', '.join(f'--{each}' for each in names)}."
    raise ConfigError(f"{where}: there is no flag --{name}; {hint}")


def _value(key: str, text: str, where: str) -> Any:
    if text[:1] in ("'", '"'):
        try:
            text = " ".join(shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"{where}: the quotes of {text[:40]!r} do not close.") from error
    if not text:
        raise ConfigError(f"{where}: the flag for {key} has no value.")
    try:
        if key in _NUMBERS:
            return int(text)
        if key in ("guidance_scale", "strength"):
            return float(text.split(",")[0])
    except ValueError as error:
        raise ConfigError(f"{where}: {key} should be a number, not {text!r}.") from error
    return text
