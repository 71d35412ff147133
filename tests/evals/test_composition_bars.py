"""Bars and rankings from records: paired by prompt and seed, the best strategy chosen where it is not measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from studio.evals.composition_bars import bars, ranked, rankings_table
from studio.evals.composition_outcomes import Outcomes, best_elsewhere, best_ways, difference_of, gap_closed
from studio.evals.composition_plan import DIFFERENT, FOUR, PAIRS, SAME, STYLE
from studio.evals.composition_ways import (
    ALONE,
    BASE,
    BOXES,
    CMLORA,
    COMPOSITE,
    LORA_COMPOSER,
    NO_ADAPTERS,
    SWAPPED,
    merge_way,
)
from studio.evals.records import Record
from studio.evals.statistics import Interval
from studio.evals.tables import Table
from studio.evals.trainers_claims import FAILED, HELD, OPEN

MERGE = merge_way(0.7).name
NUM = 8


def pictures(way: str, right: Callable[[int], bool], groups: tuple[str, ...] = PAIRS, **more: object) -> list[Record]:
    """Two seeds of `NUM` prompts in each group; `right` by the prompt's number."""
    return [
        {
            "kind": "alone" if way == ALONE else "picture",
            "way": way,
            "group": group,
            "prompt": f"{group}-{number}",
            "seed": seed,
            "right": right(number),
            "things_right": float(right(number)),
            "classes_in_place": True,
            **more,
        }
        for group in groups
        for number in range(NUM)
        for seed in range(2)
    ]


def cost(way: str, count: int, flops: int) -> Record:
    return {"kind": "cost", "way": way, "count": count, "flops": flops}


def verdicts(records: list[Record], free: list[str]) -> dict[str, tuple[object, str]]:
    return {bar.text: (bar.figure, bar.verdict) for bar in bars(Outcomes(records=records), MERGE, free)}


def test_the_gap_between_merge_and_ceiling():
    records = [
        *pictures(MERGE, lambda n: n < 2),
        *pictures("good", lambda n: n < 6),
        *pictures("bad", lambda n: n < 1),
        *pictures(ALONE, lambda n: True),
        *pictures(BASE.name, lambda n: False),
        *pictures("good" + SWAPPED, lambda n: False),
    ]
    found = verdicts(records, [MERGE, "good", "bad"])
    closed, verdict = found["share of the gap that it closes"]
    assert isinstance(closed, Interval) and closed.estimate == pytest.approx((6 - 2) / (8 - 2)) and verdict == HELD
    difference, verdict = found[f"best without boxes (good) - {MERGE}"]
    assert isinstance(difference, Interval) and difference.low > 0 and verdict == HELD
    assert found["base with class words, two things"][1] == HELD
    assert found["good: falls when adapters are swapped"][1] == HELD

    worse = [*pictures(MERGE, lambda n: n < 6), *pictures("x", lambda n: n < 3), *pictures(ALONE, lambda n: True)]
    found = verdicts(worse, [MERGE, "x"])
    assert found["share of the gap that it closes"][1] == found[f"best without boxes (x) - {MERGE}"][1] == FAILED


def test_the_best_of_many_is_not_flattered():
    """Eight ways that are right on one prompt each: the best on any prompt is not the best on the others."""
    ways = {f"way {n}": pictures(f"way {n}", lambda number, n=n: number == n, (DIFFERENT,)) for n in range(NUM)}
    outcomes = Outcomes(records=[record for found in ways.values() for record in found])
    values, chosen = best_elsewhere(outcomes, list(ways))
    assert len(values) == 2 * NUM and len(chosen) == NUM
    assert sum(values.values()) == 0.0
    assert best_ways(outcomes, ways, 1) == ["way 0"]


def test_a_refusal_is_no_success():
    refused = {"kind": "refused", "way": "x", "group": SAME, "num": 2, "why": "no"}
    outcomes = Outcomes(records=[*pictures("x", lambda n: True, (DIFFERENT,)), *[refused] * NUM])
    assert outcomes.mean("x") == 0.5 and outcomes.reasons("x") == ["no"]
    assert outcomes.difference("x", "y").num == 0


def test_boxes_are_measured_against_the_classes_that_get_there():
    way = LORA_COMPOSER + BOXES
    records = [
        *pictures(way, lambda n: n < 5, (DIFFERENT, SAME, FOUR)),
        *[
            r | {"classes_in_place": r["prompt"][-1] < "6"}
            for r in pictures(way + NO_ADAPTERS, lambda n: False, (DIFFERENT, SAME))
        ],
        *[r | {"classes_in_place": r["prompt"][-1] < "9"} for r in pictures(way + NO_ADAPTERS, lambda n: False, (FOUR,))],
    ]
    found = {text: values for text, values in verdicts(records, []).items() if text.startswith("LoRA-Composer")}
    two, four = found.values()
    assert isinstance(two[0], Interval) and two[0].estimate == pytest.approx(5 / 6) and two[1] == HELD
    assert isinstance(four[0], Interval) and four[0].estimate == pytest.approx(5 / 8) and four[1] == HELD
    assert "(0.75)" in next(iter(found))


def test_cmlora_against_composite():
    same = [*pictures(CMLORA, lambda n: n < 4), *pictures(COMPOSITE, lambda n: n < 4)]
    costs = [cost(COMPOSITE, count, 100) for count in (2, 3, 4)]
    costs += [cost(CMLORA, count, flops) for count, flops in ((2, 71), (3, 63), (4, 58))]
    found = verdicts([*same, *costs], [])
    assert [found[f"CMLoRA's FLOPs / composite's, {n} adapters"][1] for n in (2, 3, 4)] == [HELD, FAILED, HELD]
    assert found["CMLoRA - composite, all right (lower end of the interval)"][1] == HELD
    worse = [*pictures(CMLORA, lambda n: n < 2), *pictures(COMPOSITE, lambda n: n < 4)]
    assert verdicts(worse, [])["CMLoRA - composite, all right (lower end of the interval)"][1] == FAILED
    nothing = [*pictures(CMLORA, lambda n: False), *pictures(COMPOSITE, lambda n: False)]
    assert verdicts(nothing, [])["CMLoRA - composite, all right (lower end of the interval)"][1] == OPEN


def test_no_gap_says_nothing():
    alike = [*pictures(MERGE, lambda n: n < 4), *pictures("x", lambda n: n < 4), *pictures(ALONE, lambda n: n < 4)]
    assert verdicts(alike, [MERGE, "x"])["share of the gap that it closes"][1] == OPEN


def test_rankings_say_where_the_judge_contradicts():
    records = [
        *pictures(MERGE, lambda n: n < 7),
        *pictures(COMPOSITE, lambda n: n < 1),
        *pictures("switch", lambda n: n < 7),
        *pictures(CMLORA, lambda n: n < 5),
        *pictures("ziplora", lambda n: n >= 4 if n else False, (STYLE,)),
    ]
    table: Table = rankings_table(Outcomes(records=records), MERGE, STYLE)
    said = {row[0]: row[-1] for row in table.rows}
    assert said["composite above merge"] == FAILED
    assert said["switch above merge"] == OPEN  # they draw alike
    assert said["cmlora above composite"] == HELD
    assert "ziplora above merge" in said and "clora above merge" not in said
    assert ranked(Interval(0.2, 0.1, 0.3, 5)) == HELD and ranked(Interval(0.1, -0.1, 0.3, 5)) == OPEN


def test_differences_are_paired():
    ours, theirs = {("a", 0): 1.0, ("b", 0): 1.0, ("c", 0): 0.0}, {("a", 0): 0.0, ("b", 0): 0.0, ("d", 0): 1.0}
    assert difference_of(ours, theirs).estimate == 1.0
    assert gap_closed(ours, theirs, {("a", 0): 1.0, ("b", 0): 1.0}).estimate == 1.0
