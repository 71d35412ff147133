"""What a job needs to know, from a file and from KEY=VALUE texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from studio.jobs.specs import SPECS, JobSpec
from studio.pipelines.errors import ConfigError, MissingFileError

_PLANS = ("compose", "compare")


def read_spec(kind: str, file: Path | None, settings: Sequence[str]) -> JobSpec:
    """The spec of a job.

    Raises:
        ConfigError: there is no such kind, or something is wrong; says all that is. MissingFileError: there is no file.
    """
    if kind not in SPECS:
        raise ConfigError(f"There is no kind of job {kind!r}; there are {', '.join(SPECS)}.")
    values = {} if file is None else _from_file(kind, file)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write it as key=value, for example --set num_images=4.")
        _put(values, key.strip().split("."), _plain(value, text))
    try:
        return SPECS[kind].model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(each) for each in error.errors(include_url=False))) from error


def _from_file(kind: str, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MissingFileError(f"There is no file {file}.")
    if kind == "batch":
        return {"file": str(file)}
    if kind == "train" and file.suffix.lower() == ".toml":
        from studio.training.config import read_toml

        return {"settings": read_toml(file)}
    values = _table(file)
    is_plan = kind in _PLANS and "plan" not in values
    return {"plan": values} if is_plan else values


def _table(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file} should hold a table of keys and values.")
    return dict(values)


def _plain(value: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value cannot be read; put quotes around a text.") from error


def _put(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key} holds no further keys.")
        values = inner
    values[keys[-1]] = value


def _sentence(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such setting."
    if error["type"] == "missing":
        return f"{where}: it is needed."
    return f"{where}: {str(error['msg'])[:1].lower()}{str(error['msg'])[1:]}."
