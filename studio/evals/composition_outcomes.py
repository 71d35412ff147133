"""Questions to the records of the composition evaluation: who drew what how well, paired by prompt and seed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeAlias

from studio.evals.composition_plan import PAIRS
from studio.evals.composition_ways import ALONE
from studio.evals.records import Record
from studio.evals.statistics import Interval, bootstrap_interval, bootstrap_ratio, paired_difference

Cell: TypeAlias = tuple[str, int]
"""A prompt's id and a seed."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """All records of a run that belong to its present plan."""

    records: Sequence[Record]

    def of(self, way: str, groups: Collection[str] = PAIRS) -> list[Record]:
        """Pictures that a way drew for prompts of these groups, in the prompts' order."""
        found = [r for r in self.records if r["kind"] in ("picture", "alone") and r["way"] == way and r["group"] in groups]
        return sorted(found, key=lambda r: (r["prompt"], r["seed"]))

    def alone(self, groups: Collection[str] = PAIRS) -> list[Record]:
        """One record per prompt and seed of the single-concept pictures: right where all of them are."""
        return self.of(ALONE, groups)

    def values(self, way: str, key: str, groups: Collection[str] = PAIRS) -> dict[Cell, float]:
        """`key` by prompt and seed."""
        return {(str(r["prompt"]), int(r["seed"])): float(r[key]) for r in self.of(way, groups) if r[key] is not None}

    def mean(self, way: str, key: str = "right", groups: Collection[str] = PAIRS) -> float:
        """The mean; a prompt that the way refused counts as nothing right. nan without pictures."""
        values = list(self.values(way, key, groups).values())
        refused = self.num_refused(way, groups)
        return sum(values) / (len(values) + refused) if values else float("nan")

    def num_refused(self, way: str, groups: Collection[str] = PAIRS) -> int:
        """Pictures that were not drawn because the strategy refused the prompt."""
        return sum(int(r["num"]) for r in self.records if r["kind"] == "refused" and r["way"] == way and r["group"] in groups)

    def reasons(self, way: str) -> list[str]:
        """Why prompts were refused."""
        return list(dict.fromkeys(str(r["why"]) for r in self.records if r["kind"] == "refused" and r["way"] == way))

    def difference(self, first: str, second: str, key: str = "right", groups: Collection[str] = PAIRS) -> Interval:
        """First minus second over what both drew; whole prompts are resampled."""
        ours, theirs = self.values(first, key, groups), self.values(second, key, groups)
        return difference_of(ours, theirs)

    def flops(self, way: str, count: int) -> int | None:
        """FLOPs of one picture with so many adapters, where they were counted."""
        return next((r["flops"] for r in self.records if r["kind"] == "cost" and r["way"] == way and r["count"] == count), None)


def difference_of(ours: Mapping[Cell, float], theirs: Mapping[Cell, float]) -> Interval:
    """The paired difference over common cells."""
    both = [cell for cell in ours if cell in theirs]
    return paired_difference([ours[c] for c in both], [theirs[c] for c in both], [c[0] for c in both])


def best_ways(outcomes: Outcomes, names: Iterable[str], num: int) -> list[str]:
    """The ways with the most pictures of pairs that are all right; among equals, with more single things right."""
    drawn = [name for name in names if outcomes.of(name)]
    return sorted(drawn, key=lambda name: (-outcomes.mean(name), -outcomes.mean(name, "things_right")))[:num]


def best_elsewhere(outcomes: Outcomes, names: Sequence[str]) -> tuple[dict[Cell, float], dict[str, str]]:
    """What the best way draws on each prompt, the best being chosen on all *other* prompts; and which it is, by prompt.

    The best of many on the same pictures is better than it will be on others. Chosen this way it is not.
    """
    names = [name for name in names if outcomes.of(name)]
    cells = {name: outcomes.values(name, "right") for name in names}
    prompts = sorted({prompt for values in cells.values() for prompt, _ in values})
    chosen: dict[str, str] = {}
    found: dict[Cell, float] = {}
    for prompt in prompts:
        able = [name for name in names if any(cell[0] == prompt for cell in cells[name])]
        best = max(able, key=lambda name: mean([v for c, v in cells[name].items() if c[0] != prompt] or [0.0]))
        chosen[prompt] = best
        found |= {cell: value for cell, value in cells[best].items() if cell[0] == prompt}
    return found, chosen


def gap_closed(ours: Mapping[Cell, float], floor: Mapping[Cell, float], ceiling: Mapping[Cell, float]) -> Interval:
    """(ours − floor) / (ceiling − floor), with an interval over prompts."""
    cells = [cell for cell in ours if cell in floor and cell in ceiling]
    return bootstrap_ratio([ours[c] - floor[c] for c in cells], [ceiling[c] - floor[c] for c in cells], [c[0] for c in cells])


def share(records: Sequence[Record], key: str) -> Interval:
    """Mean of a yes or no, or of a number, with an interval over prompts."""
    kept = [r for r in records if r[key] is not None]
    return bootstrap_interval([float(r[key]) for r in kept], [r["prompt"] for r in kept])
