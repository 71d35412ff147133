"""Axes of a batch: lists and ranges of values, all with all (`matrix`) or side by side (`zip`), without some (`exclude`)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.pipelines.errors import ConfigError

MAX_REQUESTS = 100_000

_RANGE = re.compile(r"\s*(-?[\d.]+)\s*-\s*(-?[\d.]+)\s*(?:\(\s*([+-]?[\d.]+)\s*\)|\[\s*(\d+)\s*\])?\s*")
_TEXTS = ("prompt", "negative_prompt", "name", "replace", "base", "adapters", "entries", "strategy", "scheduler", "file", "half")
_WHOLE = ("seed", "steps", "width", "height", "num_images", "rank", "batch_size", "resolution")


@dataclass(frozen=True)
class Axis:
    """Keys that change together; `points` has one value a key for each place on it."""

    keys: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]


def axes_of(matrix: Any, zips: Any, where: str) -> tuple[Axis, ...]:
    """The axes that `matrix` (a table of lists) and `zip` (a table of lists, or several) describe, in their order.

    A list may hold ranges, as other tools write them: 1-5, 1-10 (+2) with a step, 0-1 [5] with a count.

    Raises:
        ConfigError: one is no such table, lists that belong together differ in length, or a key is on two axes.
    """
    axes = [Axis((key,), tuple((value,) for value in _points(key, values, where))) for key, values in _table(matrix, where)]
    for group in zips if isinstance(zips, list) else [zips] if zips else []:
        columns = {key: _points(key, values, where) for key, values in _table(group, where)}
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise ConfigError(f"{where}: zip takes lists of one length, and {told}.")
        axes.append(Axis(tuple(columns), tuple(zip(*columns.values(), strict=True))))
    keys = [key for axis in axes for key in axis.keys]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{where}: {key} is on two axes; leave one out.")
    return tuple(axes)


def places(
    axes: Sequence[Axis], exclude: Sequence[Mapping[str, Any]], where: str, most: int = MAX_REQUESTS
) -> list[dict[str, Any]]:
    """Every combination of the axes' points, the last axis fastest, without those that a table of `exclude` matches in full.

    Raises:
        ConfigError: there are more than `most`, counted before any is left out.
    """
    count = math.prod(len(axis.points) for axis in axes)
    if count > most:
        raise ConfigError(f"{where}: {count:,} combinations are more than the {most:,} that a batch may have.")
    found = []
    for points in itertools.product(*(axis.points for axis in axes)):
        place = {
            key: value for axis, point in zip(axes, points, strict=True) for key, value in zip(axis.keys, point, strict=True)
        }
        if not any(is_excluded(place, each) for each in exclude):
            found.append(place)
    return found


def is_excluded(values: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    """Whether `values` has everything that a table of `exclude` names; a list there stands for any of its values."""
    return bool(pattern) and all(
        key in values and (values[key] in wanted if isinstance(wanted, list) else values[key] == wanted)
        for key, wanted in pattern.items()
    )


def _table(values: Any, where: str) -> list[tuple[str, Any]]:
    if values is None:
        return []
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: matrix and zip are tables of lists, such as seed: [1, 2, 3].")
    return [(str(key), value) for key, value in values.items()]


def _points(key: str, values: Any, where: str) -> list[Any]:
    items = values if isinstance(values, list) else [values] if isinstance(values, str) else None
    if not items:
        raise ConfigError(f"{where}: {key} should be a list of values, such as [1, 2, 3], or a range, such as 1-5.")
    is_text = any(part in _TEXTS for part in key.split(".")[:1]) and key.rsplit(".", maxsplit=1)[-1] != "strength"
    return [point for item in items for point in (_range(item, key, where) if isinstance(item, str) and not is_text else [item])]


def _range(text: str, key: str, where: str) -> list[Any]:
    """The numbers of a range; a text that is none, as it stands."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    try:
        first, last = _number(match[1]), _number(match[2])
        if match[4] is not None:
            return _spread(first, last, int(match[4]), key, f"{where}: {key}: the range {text!r}")
        step = (1 if last >= first else -1) if match[3] is None else _number(match[3])
        return _steps(first, last, step, f"{where}: {key}: the range {text!r}")
    except (ValueError, OverflowError):
        return [text]


def _spread(first: float, last: float, count: int, key: str, what: str) -> list[Any]:
    _check_length(count, what)
    values = [first + (last - first) * number / max(1, count - 1) for number in range(count)]
    whole = isinstance(first, int) and isinstance(last, int) and key.rsplit(".", maxsplit=1)[-1] in _WHOLE
    return [round(value) if whole else round(value, 10) for value in values]


def _steps(first: float, last: float, step: float, what: str) -> list[Any]:
    if step == 0 or (last - first) * step < 0:
        raise ConfigError(f"{what} never arrives; give its step another sign.")
    length = math.floor((last - first) / step + 1e-9) + 1
    _check_length(length, what)
    values = [first + step * number for number in range(length)]
    return [round(value, 10) if isinstance(value, float) else value for value in values]


def _check_length(length: int, what: str) -> None:
    if length > MAX_REQUESTS:
        raise ConfigError(f"{what} has {length:,} values; a batch may have {MAX_REQUESTS:,}.")


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
