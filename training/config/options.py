"""The settings as command line options and as a reference table, made from the schema."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from studio.training.config.schema import SECTIONS
from studio.training.config.sentences import known_keys

REQUIRED = inspect.Parameter.empty
"""The default of a setting that has none."""


@dataclass(frozen=True)
class Option:
    """One setting as a command line option.

    Attributes:
        key: `section.key`, as overrides name it. flag: `--learning-rate`. parameter: the same as a Python name.
        kind: type of one value: int, float, bool, str or Path. multiple: whether it may be given several times.
        choices: the values allowed, if they are a fixed set. default: `REQUIRED`, None for the family's, or the value.
        help: what it is.
    """

    key: str
    flag: str
    kind: type
    multiple: bool
    choices: tuple[str, ...]
    default: Any
    help: str

    @property
    def section(self) -> str:
        """The section the setting stands in."""
        return self.key.partition(".")[0]

    @property
    def parameter(self) -> str:
        """The flag as a Python name."""
        return self.flag.removeprefix("--").replace("-", "_")


def options() -> tuple[Option, ...]:
    """All settings, in the schema's order; every flag is unique."""
    return tuple(_option(*key.split(".")) for key in known_keys())


def option_named(key: str) -> Option:
    """The option of `section.key`."""
    return _option(*key.split("."))


def _option(section: str, key: str) -> Option:
    field = SECTIONS[section].model_fields[key]
    extra = field.json_schema_extra
    flag = extra["flag"] if isinstance(extra, dict) and "flag" in extra else None
    kind, multiple, choices = _kind(field.annotation)
    return Option(
        key=f"{section}.{key}",
        flag=str(flag) if flag is not None else "--" + key.replace("_", "-"),
        kind=kind,
        multiple=multiple,
        choices=choices,
        default=REQUIRED if field.is_required() else field.default,
        help=str(field.description),
    )


def _kind(annotation: Any) -> tuple[type, bool, tuple[str, ...]]:
    """Type of one value, whether there are several, and the fixed choices."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in arguments if part is not type(None)))
    if origin is tuple:
        return _kind(arguments[0])[0], True, ()
    if origin is Literal:
        return str, False, tuple(str(choice) for choice in arguments)
    assert annotation in (int, float, bool, str, Path), annotation
    return annotation, False, ()


def reference_table() -> str:
    """The settings as Markdown: a table for each section."""
    lines = []
    for section, model in SECTIONS.items():
        lines += [f"## [{section}]", "", str(inspect.getdoc(model)), "", "| key | default | what it is |", "|---|---|---|"]
        for option in options():
            if option.section == section:
                choices = f" One of {', '.join(option.choices)}." if option.choices else ""
                lines.append(f"| `{option.key.partition('.')[2]}` | {_default(option.default)} | {option.help}{choices} |")
        lines.append("")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "required"
    if value is None:
        return "by family"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
