"""From what stands on the compose page to a plan: adapters, their boxes, their words. Pure functions of plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from studio.composition.plan import CompositionPlan, Entry, Region, StrategyChoice
from studio.composition.spans import find_words
from studio.pipelines.errors import ConfigError

Row = Mapping[str, Any]
Box = list[float]

_WORD = re.compile(r"\w[\w'’-]*")


def words_of(prompt: str) -> list[list[Any]]:
    """The prompt's words, each with the character it begins at."""
    return [[match.group(), match.start()] for match in _WORD.finditer(prompt)]


def entries_of(rows: Sequence[Row] | None) -> list[Row]:
    """The adapters that take part, in their order."""
    return [row for row in rows or () if row.get("on", True)]


def side_by_side(count: int) -> list[Box]:
    """Boxes beside each other, one for each of `count`."""
    width = 1.0 / max(1, count)
    return [[round(n * width + 0.02, 3), 0.1, round((n + 1) * width - 0.02, 3), 0.95] for n in range(count)]


def canvas_value(rows: Sequence[Row] | None, before: Mapping[str, Any] | None, active: int = 0) -> dict[str, Any]:
    """The canvas for these adapters: boxes that were there stay, new ones stand beside each other."""
    entries = entries_of(rows)
    known = {one.get("id"): one for one in (before or {}).get("boxes", [])}
    fresh = side_by_side(len(entries))
    keep = bool(entries) and all(row["id"] in known for row in entries)
    boxes = []
    for number, row in enumerate(entries):
        old = known.get(row["id"])
        box = old["box"] if old is not None and (keep or len(known) == len(entries)) else fresh[number]
        z = number if old is None else old.get("z", number)
        boxes.append({"id": row["id"], "name": str(row.get("name", row["id"][:8])), "box": box, "z": z})
    background = (before or {}).get("background")
    return {"boxes": boxes, "active": min(active, max(0, len(boxes) - 1)), "background": background, "aspect": 1}


def words_value(prompt: str, rows: Sequence[Row] | None, before: Mapping[str, Any] | None, active: int = 0) -> dict[str, Any]:
    """The words with their owners: those that were bound stay bound while they stand there, trigger words bind themselves."""
    words, entries = words_of(prompt), entries_of(rows)
    owners: dict[str, int] = {}
    old_words, old_owners = (before or {}).get("words", []), (before or {}).get("owners", {})
    same = [word for word, _ in old_words] == [word for word, _ in words]
    for number, row in enumerate(entries):
        ids = (before or {}).get("ids", [])
        if same and row["id"] in ids:
            owners |= {key: number for key, owner in old_owners.items() if owner == ids.index(row["id"])}
            continue
        span = find_words(prompt, str(row.get("trigger") or ""))
        if span is not None:
            owners |= {
                str(n): number for n, (_, start) in enumerate(words) if span[0] <= start < span[1] and str(n) not in owners
            }
    names = [str(row.get("name", "")) for row in entries]
    return {"words": words, "owners": owners, "active": active, "names": names, "ids": [row["id"] for row in entries]}


def table_of(canvas: Mapping[str, Any]) -> list[list[Any]]:
    """The canvas as a table of numbers: name, left, top, right, bottom, layer."""
    return [[one["name"], *(one["box"] or [None] * 4), one.get("z", 0)] for one in canvas.get("boxes", [])]


def canvas_of_table(rows: Sequence[Sequence[Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """The canvas with the table's numbers; a row with an empty number acts everywhere.

    Raises:
        ConfigError: a number is none, or a box lies outside or is empty.
    """
    boxes = []
    for number, one in enumerate(before.get("boxes", [])):
        cells = list(rows[number]) if number < len(rows) else [one["name"], None, None, None, None, 0]
        boxes.append({**one, "box": _box(cells[1:5], one["name"]), "z": _whole(cells[5], number)})
    return {**before, "boxes": boxes}


def in_front(canvas: Mapping[str, Any]) -> dict[str, Any]:
    """The canvas with the active box before all others."""
    boxes = canvas.get("boxes", [])
    order = sorted(range(len(boxes)), key=lambda n: (n == canvas.get("active", 0), boxes[n].get("z", n)))
    return {**canvas, "boxes": [{**one, "z": order.index(n)} for n, one in enumerate(boxes)]}


def plan_of(
    prompt: str,
    rows: Sequence[Row] | None,
    canvas: Mapping[str, Any] | None,
    words: Mapping[str, Any] | None,
    *,
    strategy: str,
    uses_regions: bool,
    settings: Mapping[str, Any],
    **drawing: Any,
) -> CompositionPlan:
    """The plan.

    Args:
        uses_regions: whether the strategy takes boxes; the others get none. settings: of the strategy.
        drawing: further fields of the plan: seed, num_images, steps, …

    Raises:
        ConfigError: words of one adapter do not stand together. ValueError: of pydantic, for what no plan can hold.
    """
    boxes = {one.get("id"): one for one in (canvas or {}).get("boxes", [])}
    entries = []
    for number, row in enumerate(entries_of(rows)):
        own = boxes.get(row["id"], {})
        text, occurrence = _bound_words(prompt, words or {}, number, str(row.get("name", "")))
        region = None
        if uses_regions and own.get("box"):
            left, top, right, bottom = (float(value) for value in own["box"])
            region = Region(box=(left, top, right, bottom), z=int(own.get("z", number)))
        entries.append(
            Entry(
                adapter=str(row["id"]),
                strength=float(row.get("strength", 1.0)),
                words=text,
                occurrence=occurrence if text else 1,
                region=region,
            )
        )
    choice = StrategyChoice.model_validate({"name": strategy, **settings})
    return CompositionPlan(prompt=prompt, entries=tuple(entries), strategy=choice, **drawing)


def _bound_words(prompt: str, words: Mapping[str, Any], number: int, name: str) -> tuple[str | None, int]:
    """The text of an entry's words as it stands in the prompt, and which one of its kind it is."""
    known = words.get("words") or []
    mine = sorted(int(key) for key, owner in (words.get("owners") or {}).items() if owner == number)
    mine = [n for n in mine if n < len(known)]
    if not mine:
        return None, 1
    if mine != list(range(mine[0], mine[-1] + 1)):
        raise ConfigError(f"The words of {name} do not stand together in the prompt; bind words that follow each other.")
    start, last = int(known[mine[0]][1]), known[mine[-1]]
    text = prompt[start : int(last[1]) + len(last[0])]
    occurrence = 1
    while (span := find_words(prompt, text, occurrence)) is not None and span[0] < start:
        occurrence += 1
    return text, occurrence


def _box(cells: Sequence[Any], name: str) -> Box | None:
    if any(cell in (None, "") or cell != cell for cell in cells):  # NaN is not itself
        return None
    try:
        box = [float(cell) for cell in cells]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The box of {name} holds something that is no number.") from error
    left, top, right, bottom = box
    if min(box) < 0 or max(box) > 1 or left >= right or top >= bottom:
        raise ConfigError(f"The box of {name} should have 0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1.")
    return [round(value, 3) for value in box]


def _whole(cell: Any, otherwise: int) -> int:
    try:
        return int(float(cell))
    except (TypeError, ValueError):
        return otherwise
