"""The tables of `studio eval selma`, and what may be claimed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from studio.evals.records import Record
from studio.evals.statistics import Interval, bootstrap_interval, paired_difference, share_interval
from studio.evals.tables import Cell, Table

ArmRecords: TypeAlias = Mapping[str, Sequence[Record]]
"""Arm -> its records, in the order of the prompts, the same for all."""

KINDS = ("class", "colour", "pattern", "relation", "style", "background")


def scores_table(found: ArmRecords, base: str, merged: str, note: str) -> Table:
    """A row for each arm: share of statements that hold, prompts of which all hold, groups, and differences."""
    groups = list(dict.fromkeys(record["group"] for record in found[base]))
    rows: list[tuple[Cell, ...]] = []
    for arm, records in found.items():
        scores = [score(record) for record in records]
        by_group: list[Cell] = []
        for group in groups:
            own = [score(record) for record in records if record["group"] == group]
            by_group.append(sum(own) / len(own))
        rows.append(
            (
                arm,
                bootstrap_interval(scores),
                share_interval([all(record["items"].values()) for record in records]),
                None if arm == base else _difference(found, arm, base, score),
                None if arm == merged else _difference(found, merged, arm, score),
                *by_group,
            )
        )
    return Table(
        "Hard prompts: share of a prompt's statements that hold, by the judge",
        ("pictures by", "statements that hold", "all of them", "this - base", "merged - this", *groups),
        tuple(rows),
        (note,),
    )


def kinds_table(found: ArmRecords, base: str, merged: str, note: str) -> Table:
    """A row for each kind of statement: its share at the base and the merged experts, and the paired difference."""
    rows: list[tuple[Cell, ...]] = []
    for kind in KINDS:
        pairs = [
            (kind_score(ours, kind), kind_score(theirs, kind))
            for ours, theirs in zip(found[merged], found[base], strict=True)
            if kind_score(theirs, kind) is not None
        ]
        ours, theirs = [float(pair[0] or 0.0) for pair in pairs], [float(pair[1] or 0.0) for pair in pairs]
        rows.append((kind, bootstrap_interval(theirs), bootstrap_interval(ours), paired_difference(ours, theirs)))
    return Table("By kind of statement", ("statement", base, merged, f"{merged} - {base}"), tuple(rows), (note,))


def claims(found: ArmRecords, base: str, merged: str, mixture: str) -> list[str]:
    """What the records let one say, whether they do or not."""
    against_base, against_mixture = _difference(found, merged, base, score), _difference(found, merged, mixture, score)
    verdict = "holds" if against_base.low > 0 else "does NOT hold: the interval reaches 0"
    sentences = [f"Merged experts follow hard prompts better than the base: {against_base} ({verdict})."]
    if against_mixture.low > 0:
        sentences.append(f"They are better than one LoRA on the mixture: {against_mixture}.")
    elif against_mixture.high < 0:
        sentences.append(f"One LoRA on the mixture is better than they are: merged - mixture {against_mixture}.")
    else:
        sentences.append(f"No difference to one LoRA on the mixture is shown: {against_mixture} reaches over 0.")
    return sentences


def score(record: Record) -> float:
    """Share of the record's statements that hold."""
    items = record["items"]
    return float(sum(items.values()) / len(items))


def kind_score(record: Record, kind: str) -> float | None:
    """The same of one kind of statement; None if the prompt says nothing of it."""
    items = [holds for name, holds in record["items"].items() if name.split()[-1] == kind]
    return sum(items) / len(items) if items else None


def _difference(found: ArmRecords, ours: str, theirs: str, value: Callable[[Record], float]) -> Interval:
    return paired_difference([value(record) for record in found[ours]], [value(record) for record in found[theirs]])
