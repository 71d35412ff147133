"""The tables of `studio eval base`, computed from its raw records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studio.evals.distances import Features, frechet_distance, kernel_distance
from studio.evals.records import Record
from studio.evals.statistics import bootstrap_interval, share_interval
from studio.evals.tables import Cell, Table

BARS = {
    ("one", "class"): 0.95,
    ("one", "colour"): 0.93,
    ("one", "pattern, where named"): 0.75,
    ("one", "style"): 0.95,
    ("two", "all objects present"): 0.90,
    ("two", "each its own colour"): 0.85,
    ("two", "relation"): 0.90,
}


def fidelity_table(records: Sequence[Record], note: str) -> Table:
    """Shares of prompts whose statements hold, with Wilson intervals, by number of objects."""
    rows: list[tuple[Cell, ...]] = []
    for group in dict.fromkeys(record["group"] for record in records):
        items = [record["items"] for record in records if record["group"] == group]
        for name, cell in (_one(items) if group == "one" else _several(items)).items():
            rows.append((group, name, cell, BARS.get((group, name))))
        fidelity = [sum(item.values()) / len(item) for item in items]
        rows.append((group, "statements that hold", bootstrap_interval(fidelity), None))
        cosines = [record["cosine"] for record in records if record["group"] == group]
        rows.append((group, "joint cosine", bootstrap_interval(cosines), None))
    return Table(
        "The base model, read by the judge",
        ("objects", "what", "share", "bar"),
        tuple(rows),
        (note, "An object has its colour only where it is present; a relation holds only where both objects are."),
    )


def distance_table(features: Mapping[str, Features], truth: Features, note: str) -> Table:
    """Fréchet and kernel distance of each feature set to the `truth` renders `[N, D]`."""
    rows = tuple(
        (name, len(values), frechet_distance(values, truth), kernel_distance(values, truth)) for name, values in features.items()
    )
    return Table(
        f"Distance to {len(truth)} renders of the one- and two-object prompts, on the judge's features",
        ("pictures", "number", "Fréchet", "kernel"),
        rows,
        (
            note,
            "Kernel: mean of 50 subsets and the range of 95 % of them. The features are the judge's: no published FID compares.",
        ),
    )


def _one(items: Sequence[Mapping[str, bool]]) -> dict[str, Cell]:
    named = [item for item in items if "object 1 pattern" in item]
    return {
        "class": share_interval([item["object 1 class"] for item in items]),
        "colour": share_interval([item["object 1 colour"] for item in items]),
        "pattern, where named": share_interval([item["object 1 pattern"] for item in named]),
        "style": share_interval([item["style"] for item in items]),
        "background": share_interval([item["background"] for item in items]),
    }


def _several(items: Sequence[Mapping[str, bool]]) -> dict[str, Cell]:
    column: dict[str, Cell] = {
        "all objects present": share_interval([_all(item, "class") for item in items]),
        "each its own colour": share_interval([_all(item, "colour") for item in items]),
    }
    if any("relation" in item for item in items):
        column["relation"] = share_interval([item["relation"] for item in items])
    present = [sum(holds for name, holds in item.items() if name.endswith("class")) / _count(item) for item in items]
    coloured = [sum(holds for name, holds in item.items() if name.endswith("colour")) / _count(item) for item in items]
    column["objects present"] = bootstrap_interval(present)
    column["objects in their colour"] = bootstrap_interval(coloured)
    column["style"] = share_interval([item["style"] for item in items])
    column["background"] = share_interval([item["background"] for item in items])
    return column


def _all(item: Mapping[str, bool], what: str) -> bool:
    return all(holds for name, holds in item.items() if name.endswith(what))


def _count(item: Mapping[str, bool]) -> int:
    return sum(name.endswith("class") for name in item)
