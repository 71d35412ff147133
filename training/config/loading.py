"""Read a configuration from a TOML file and `section.key` overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from studio.pipelines.errors import ConfigError
from studio.training.config.schema import SECTIONS, TrainConfig
from studio.training.config.sentences import sentences, unknown_key

DEFAULT_WORD = "default"
"""As an override's text: the setting's own default again."""


def load_config(toml_path: Path | str | None = None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read the configuration of a run.

    Args:
        toml_path: a TOML file with the sections of `TrainConfig`, or None for defaults only.
        overrides: settings by `section.key`, stronger than the file. A text is read as the setting's type
            (`"1e-4"`, `"true"`, `"[0.9, 0.99]"`); `"default"` takes the setting's default; other values are taken as
            they are.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; says all that is wrong, a line each.
    """
    tables = {} if toml_path is None else read_toml(Path(toml_path))
    for name, value in ({} if overrides is None else overrides).items():
        _override(tables, name, value)
    return validate(tables, source=None if toml_path is None else str(toml_path))


def validate(tables: Mapping[str, Any], source: str | None = None) -> TrainConfig:
    """Make a `TrainConfig` of plain tables; `source` names the file in the error.

    Raises:
        ConfigError: a key or value is wrong; says all that is wrong, a line each.
    """
    try:
        return TrainConfig.model_validate(tables)
    except ValidationError as error:
        found = sentences(error.errors(include_url=False))
    where = "" if source is None else f"{source}: "
    raise ConfigError("\n".join(f"{where}{text}" for text in found))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: no such file, not UTF-8, or no TOML; with line and column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the TOML file with the settings of the run") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a UTF-8 text file; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = "; write paths with backslashes in 'single quotes'" if "'\\\\'" in str(error) or "hex" in str(error) else ""
        raise ConfigError(f"{path}: not valid TOML: {error}{hint}") from error


def _override(tables: dict[str, Any], name: str, value: Any) -> None:
    section, dot, key = name.partition(".")
    if not dot:
        raise ConfigError(unknown_key("", name))
    if section not in SECTIONS or key not in SECTIONS[section].model_fields:
        raise ConfigError(unknown_key(section, key) if section in SECTIONS else unknown_key("", section))
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section} must be a section: write [{section}] on a line of its own and the keys below it")
    if isinstance(value, str) and value.strip().lower() == DEFAULT_WORD:
        table.pop(key, None)
    else:
        table[key] = parse_text(section, key, value) if isinstance(value, str) else value


def parse_text(section: str, key: str, text: str) -> Any:
    """Read an override's text as the value the setting holds; a text that is no such value is returned as it is."""
    annotation = str(SECTIONS[section].model_fields[key].annotation)
    if "tuple" in annotation:
        parsed = _toml_value(text)
        return parsed if isinstance(parsed, list) else [text]
    if "int" in annotation or "float" in annotation or "bool" in annotation:
        return _toml_value(text.strip().lower())
    return text


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        try:
            return float(text)  # TOML does not know 1. and .5
        except ValueError:
            return text
