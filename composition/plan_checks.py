"""What is wrong with a plan that pydantic cannot see, as sentences that name the entry."""

from __future__ import annotations

from collections.abc import Iterable

from studio.composition.plan import CompositionPlan, Entry, Region
from studio.composition.spans import find_words, overlapping


def plan_problems(plan: CompositionPlan) -> list[str]:
    """All that is wrong with `plan` in itself: no file is opened. Empty if nothing is."""
    problems = [
        f"{plan.title_of(index)}: {text}" for index, entry in enumerate(plan.entries) for text in _entry_problems(plan, entry)
    ]
    return [*problems, *_same_words(plan), *_hidden_overlaps(plan)]


def _entry_problems(plan: CompositionPlan, entry: Entry) -> Iterable[str]:
    if entry.active_from >= entry.active_to:
        yield (
            f"it acts from {entry.active_from:g} to {entry.active_to:g} of the noise schedule, which is never; active_from "
            "must be the smaller one."
        )
    if entry.words is not None:
        if find_words(plan.prompt, entry.words) is None:
            yield f'its words "{entry.words}" are not in the prompt "{plan.prompt}"; write them as the prompt does.'
        elif find_words(plan.prompt, entry.words, entry.occurrence) is None:
            yield f'its words "{entry.words}" are not {entry.occurrence} times in the prompt "{plan.prompt}".'
    elif entry.occurrence != 1:
        yield "it has an occurrence and no words; write the words that are meant, too."
    if entry.region is not None:
        yield from _region_problems(entry.region)


def _region_problems(region: Region) -> Iterable[str]:
    if (region.box is None) == (region.mask is None):
        yield "its region needs a box or a mask, and not both."
    if region.mask_sha256 is not None and region.mask is None:
        yield "its region has the hash of a mask and no mask."
    if region.box is None:
        return
    left, top, right, bottom = region.box
    if min(region.box) < 0 or max(region.box) > 1:
        hint = " Boxes are fractions of the canvas: 256 of 512 pixels is 0.5." if max(region.box) > 2 else ""
        yield f"its box {_numbers(region)} reaches outside the canvas, which is [0, 0, 1, 1].{hint}"
    elif left >= right or top >= bottom:
        yield f"its box {_numbers(region)} is empty: it should be [left, top, right, bottom]."


def _same_words(plan: CompositionPlan) -> Iterable[str]:
    spans = [None if entry.words is None else find_words(plan.prompt, entry.words, entry.occurrence) for entry in plan.entries]
    pair = overlapping(spans)
    if pair is not None:
        first, second = pair
        yield (
            f'{plan.title_of(first)} and {plan.title_of(second)} are both for the words "{plan.entries[second].words}". Words '
            "belong to one entry; if they stand in the prompt several times, set occurrence: 2 for the second."
        )


def _hidden_overlaps(plan: CompositionPlan) -> Iterable[str]:
    boxes = [(index, entry.region) for index, entry in enumerate(plan.entries) if entry.region is not None and entry.region.box]
    for place, (later, second) in enumerate(boxes):
        for earlier, first in boxes[:place]:
            if _overlap(first, second) and not in_order(first, second):
                yield overlap_sentence(plan.title_of(earlier), plan.title_of(later))


def in_order(first: Region, second: Region) -> bool:
    """Whether it is said which of two regions is in front."""
    return first.z is not None and second.z is not None and first.z != second.z


def overlap_sentence(first: str, second: str) -> str:
    """The sentence about two regions that overlap without an order."""
    return f"the regions of {first} and {second} overlap: give both a z, the higher one to what is in front."


def _overlap(first: Region, second: Region) -> bool:
    assert first.box is not None and second.box is not None
    return all(max(first.box[n], second.box[n]) < min(first.box[n + 2], second.box[n + 2]) for n in (0, 1))


def _numbers(region: Region) -> str:
    assert region.box is not None
    return "[" + ", ".join(f"{number:g}" for number in region.box) + "]"
