"""Batch files of every encoding as one structure: requests with their place in the file, and what multiplies them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from studio.batch.axes import Axis, axes_of
from studio.batch.fields import canonical_keys
from studio.batch.prompt_lines import requests_of_lines
from studio.batch.prompts import Wildcards, WildcardSettings
from studio.composition.plan_files import plan_values, read_plan, yaml_values
from studio.pipelines.errors import ConfigError, MissingFileError

MAX_BYTES = 64 * 2**20
SUFFIXES = (".txt", ".csv", ".jsonl", ".yaml", ".yml", ".json")

_TOP = ("defaults", "training", "jobs", "matrix", "zip", "exclude", "wildcards", "wildcards_dir", "wildcard_count",
        "wildcard_seed", "grid", "name")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One request of the file before its axes are applied. `plan_dir`: of the plan file it names."""

    values: Mapping[str, Any]
    axes: tuple[Axis, ...]
    exclude: tuple[Mapping[str, Any], ...]
    where: str
    plan_dir: Path | None = None


@dataclass(frozen=True)
class BatchFile:
    """A batch file, read.

    Attributes:
        folder: where relative paths start. grid: which axes are a sheet's columns, rows and pages, as far as it says.
        defaults: of requests for pictures; `training`: of trainings.
    """

    name: str
    folder: Path
    entries: tuple[Entry, ...]
    wildcards: WildcardSettings = field(default_factory=WildcardSettings)
    grid: Mapping[str, str] = field(default_factory=dict)


def read_batch(path: Path, overrides: Mapping[str, Any] | None = None) -> BatchFile:
    """Read a batch file; its ending says how.

    Args:
        overrides: fields that are stronger than what the file says.

    Raises:
        MissingFileError: there is no file. ConfigError: it cannot be read; says where and why.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no batch file {path}.")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a batch file ends in {', '.join(SUFFIXES)}.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} is too large for a batch file: {path.stat().st_size / 2**20:.0f} MB.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a UTF-8 text file.") from error
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return batch_of(_parsed(text, path), path, overrides)
    values, wheres = flat_values(text, path.suffix.lower(), path.name)
    return batch_of(values, path, overrides, wheres=wheres)


def flat_values(text: str, suffix: str, source: str) -> tuple[dict[str, Any], list[str]]:
    """A text of the encoding that `suffix` names, .txt, .csv or .jsonl, as the table that YAML would hold.

    Args:
        source: names it in errors.

    Returns:
        The table, and the place in the text of each of its jobs.

    Raises:
        ConfigError: it cannot be read; says where and why.
    """
    flat = {".txt": requests_of_lines, ".csv": _csv, ".jsonl": _jsonl}[suffix](text, source)
    return {"jobs": [dict(fields) for fields, _ in flat]}, [where for _, where in flat]


def batch_of(
    values: Any,
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    wheres: Sequence[str] | None = None,
    opens_files: bool = True,
) -> BatchFile:
    """A batch of plain values: what YAML and JSON hold.

    Args:
        path: names it in errors; relative paths start in its folder. wheres: the places of its jobs, for errors.
        opens_files: whether it may name plans and cards that are read here.

    Raises:
        ConfigError: something is wrong; says where and what.
    """
    if isinstance(values, list):
        values = {"jobs": values}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: a batch file is a table with jobs, or a list of them.")
    unknown = [key for key in values if key not in _TOP]
    if unknown and "jobs" not in values:
        values = {"jobs": [{key: value for key, value in values.items() if key not in _TOP}]} | {
            key: value for key, value in values.items() if key in _TOP
        }
    elif unknown:
        raise ConfigError(f"{path}: there is no key {unknown[0]!r} beside jobs; there are: {', '.join(_TOP)}.")
    jobs = values.get("jobs")
    if not isinstance(jobs, list) or not jobs:
        raise ConfigError(f"{path}: jobs should be a list with at least one request.")
    if not opens_files and values.get("wildcards_dir") is not None:
        raise ConfigError(f"{path}: wildcards_dir names a folder, which cannot be here; write {{a|b}} into the prompts.")
    entries = []
    for number, job in enumerate(jobs, start=1):
        where = f"{path.name}, job {number}" if wheres is None else wheres[number - 1]
        if isinstance(job, str):
            job = {"prompt": job}
        if not isinstance(job, Mapping):
            raise ConfigError(f"{where}: a request is a table of fields, or a prompt.")
        entries.append(_entry(job, values, overrides, where, path.parent if opens_files else None))
    grid = values.get("grid") or {}
    if not isinstance(grid, Mapping) or any(key not in ("x", "y", "z") for key in grid):
        raise ConfigError(f"{path}: grid says which axes are columns, rows and pages, as in {{x: seed, y: strength}}.")
    return BatchFile(
        name=str(values.get("name", path.stem)),
        folder=path.parent,
        entries=tuple(entries),
        wildcards=_wildcards(values, path),
        grid={str(key): str(value) for key, value in grid.items()},
    )


def _entry(
    job: Mapping[str, Any], top: Mapping[str, Any], overrides: Mapping[str, Any] | None, where: str, folder: Path | None
) -> Entry:
    own = {key: value for key, value in job.items() if key not in ("matrix", "zip", "exclude")}
    is_training = own.get("kind") == "train" or "method" in own or "config" in own
    defaults = top.get("training" if is_training else "defaults") or {}
    if not isinstance(defaults, Mapping):
        raise ConfigError(f"{where}: defaults is a table of fields.")
    merged = {**dict(defaults), **own, **({} if is_training or overrides is None else overrides)}
    plan_dir = None
    start: dict[str, Any] = {}
    if isinstance(merged.get("plan"), str):
        if folder is None:
            raise ConfigError(f"{where}: plan names a file, which cannot be here; write entries and strategy into the request.")
        file = _beside(merged["plan"], folder)
        start, plan_dir = plan_values(read_plan(file)), file.parent
        merged["plan"] = str(file)
    try:
        values = canonical_keys({**start, **merged}, is_training=is_training)
        axes = (
            *axes_of(top.get("matrix"), top.get("zip"), where),
            *axes_of(job.get("matrix"), job.get("zip"), where),
        )
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    exclude = [*_tables(top.get("exclude"), where), *_tables(job.get("exclude"), where)]
    return Entry(values, axes, tuple(exclude), where, plan_dir)


def _beside(name: str, folder: Path) -> Path:
    """A file named from the batch file's folder, or from here."""
    beside = folder / Path(name).expanduser()
    return beside if beside.is_file() else Path(name).expanduser()


def _tables(values: Any, where: str) -> list[Mapping[str, Any]]:
    found = values if isinstance(values, list) else [] if values is None else [values]
    if not all(isinstance(each, Mapping) for each in found):
        raise ConfigError(f"{where}: exclude is a list of tables, such as - {{seed: 2, strength: 0.4}}.")
    return found


def _wildcards(values: Mapping[str, Any], path: Path) -> WildcardSettings:
    said = values.get("wildcards", "all")
    said = "off" if said is False else said  # YAML's word for off
    mode = next((each for each in get_args(Wildcards) if each == said), None)
    if mode is None:
        raise ConfigError(f"{path}: wildcards should be all, random or off, not {said!r}.")
    folder = values.get("wildcards_dir")
    count, seed = values.get("wildcard_count", 1), values.get("wildcard_seed", 0)
    if not isinstance(count, int) or not isinstance(seed, int) or count < 1:
        raise ConfigError(f"{path}: wildcard_count and wildcard_seed are whole numbers.")
    return WildcardSettings(mode, None if folder is None else path.parent / str(folder), count, seed)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text) if path.suffix.lower() == ".json" else yaml_values(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
        raise ConfigError(f"{path} is not valid {kind}: {' '.join(str(error).split())}") from error


def _csv(text: str, source: str) -> list[tuple[dict[str, Any], str]]:
    """A request a row; the header names the fields, an empty cell is not said."""
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"{source}, line {reader.line_num}: {error}.") from error
    if len(rows) < 2:
        raise ConfigError(f"{source}: a table has a line with the names of the fields, and then a line for each request.")
    names = [name.strip() for name in rows[0][1]]
    found = []
    for number, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names):
            raise ConfigError(f"{source}, line {number}: {len(row)} cells for {len(names)} fields; put commas into quotes.")
        cells = {name: _cell(name, cell) for name, cell in zip(names, row, strict=False) if cell.strip()}
        found.append((cells, f"{source}, line {number}"))
    return found


def _cell(name: str, cell: str) -> Any:
    """A cell as the value that it is: numbers outside of words."""
    if name.split(".", maxsplit=1)[0] in (
        "prompt",
        "negative_prompt",
        "negative",
        "name",
        "replace",
        "base",
        "adapters",
        "adapter",
        "size",
    ):
        return cell
    for read in (int, float):
        try:
            return read(cell)
        except ValueError:
            continue
    return cell.strip()


def _jsonl(text: str, source: str) -> list[tuple[dict[str, Any], str]]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: each line is a table of fields, in braces.")
        found.append((values, where))
    return found
