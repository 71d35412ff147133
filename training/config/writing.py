"""Write a configuration as TOML that reads back as the same configuration."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from studio.training.config.methods import foreign_sections
from studio.training.config.schema import TrainConfig


def dump_toml(config: TrainConfig) -> str:
    """`config` as TOML; settings that are None are left out, because TOML has no word for them."""
    blocks = []
    foreign = foreign_sections(config.adapter.method)
    for section, values in config:
        if section in foreign:
            continue
        lines = [f"{key} = {_value(value)}" for key, value in values if value is not None]
        if lines:
            blocks.append("\n".join([f"[{section}]", *lines]) + "\n")
    return "\n".join(blocks)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        # JSON's escapes are TOML's, but for DEL; without ensure_ascii, because TOML knows no surrogate pairs.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    assert isinstance(value, tuple), value
    return "[" + ", ".join(_value(item) for item in value) + "]"
