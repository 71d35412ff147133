"""A prompt about the toy world as a list of statements, and which of them hold in a reading of a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from studio.assets import world
from studio.assets.world.vocabulary import (
    BACKGROUND_PHRASES,
    NUMBERS,
    PATTERN_WORDS,
    RELATION_PHRASES,
    STYLE_PREFIXES,
    STYLE_SUFFIXES,
    plural,
)
from studio.pipelines.scoring.scorer import Detection, Reading

PRESENT_FROM = 0.3
"""Score from which a detection counts as an object that is there."""


@dataclass(frozen=True)
class ObjectFacts:
    """What a prompt says about one object; None is left open."""

    class_name: str
    colour: str | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class PromptFacts:
    """What a prompt says, as far as the world has words for it. Words of no meaning here are passed over."""

    objects: tuple[ObjectFacts, ...] = ()
    relation: str | None = None
    background: str | None = None
    style: str | None = None


def parse_prompt(prompt: str) -> PromptFacts:
    """Read a prompt: style and background phrases first, then objects with the words before them, then a relation.

    A relation holds between the first and the second object. "two red cats" is two objects. A noun that is not in
    the world ("backpack") says nothing that can be checked.
    """
    text = " " + " ".join(re.findall(r"[a-z0-9]+", prompt.lower())) + " "
    text, style = _take(text, _STYLE_PHRASES)
    text, background = _take(text, _BACKGROUND_PHRASES)
    objects: list[ObjectFacts] = []
    relation: str | None = None
    colour, pattern, count = None, None, 1
    for word in _mark_relations(text).split():
        if word.startswith("@"):
            relation = relation if len(objects) != 1 else word[1:].replace("-", " ")
        elif word in world.COLOURS:
            colour = word
        elif word in _PATTERN_OF:
            pattern = _PATTERN_OF[word]
        elif word in _COUNT_OF:
            count = _COUNT_OF[word]
        elif word in _CLASS_OF:
            objects += [ObjectFacts(_CLASS_OF[word], colour, pattern)] * count
        if word in _CLASS_OF or word in _BOUNDARIES:
            colour, pattern, count = None, None, 1
    return PromptFacts(tuple(objects), relation if len(objects) > 1 else None, background, style)


def check(facts: PromptFacts, reading: Reading) -> tuple[tuple[str, bool], ...]:
    """Each statement of the prompt and whether it holds.

    Objects are matched to detections so that most statements hold; a matched detection has the right class. The
    statements about an object that is not there are false.
    """
    found = [thing for thing in reading.detections if thing.score >= PRESENT_FROM]
    matched = match_objects(facts.objects, found)
    items: list[tuple[str, bool]] = []
    for number, (wanted, thing) in enumerate(zip(facts.objects, matched, strict=True), start=1):
        items.append((f"object {number} class", thing is not None))
        if wanted.colour is not None:
            items.append((f"object {number} colour", thing is not None and thing.colour == wanted.colour))
        if wanted.pattern is not None:
            items.append((f"object {number} pattern", thing is not None and thing.pattern == wanted.pattern))
    if facts.relation is not None:
        first, second = matched[:2]
        both = first is not None and second is not None
        items.append(("relation", both and relation_holds(facts.relation, first, second)))  # type: ignore[arg-type]
    if facts.background is not None:
        items.append(("background", reading.background == facts.background))
    if facts.style is not None:
        items.append(("style", reading.style == facts.style))
    return tuple(items)


def match_objects(wanted: Sequence[ObjectFacts], found: Sequence[Detection]) -> list[Detection | None]:
    """The best assignment of detections to wanted objects: most classes first, then surfaces, then scores."""
    slots: list[Detection | None] = [*found[:6], *[None] * len(wanted)]
    best: tuple[float, tuple[Detection | None, ...]] = (-1.0, (None,) * len(wanted))
    for choice in permutations(range(len(slots)), len(wanted)):
        things = tuple(slots[index] for index in choice)
        value = sum(_agreement(want, thing) for want, thing in zip(wanted, things, strict=True))
        if value > best[0]:
            best = (value, tuple(thing if _same(want, thing) else None for want, thing in zip(wanted, things, strict=True)))
    return list(best[1])


def relation_holds(relation: str, first: Detection, second: Detection) -> bool:
    """Whether the first stands in the relation to the second: its centre lies clearly on the named side."""
    dx = (first.box[0] + first.box[2] - second.box[0] - second.box[2]) / 2
    dy = (first.box[1] + first.box[3] - second.box[1] - second.box[3]) / 2
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    return along > 0.05


def _same(want: ObjectFacts, thing: Detection | None) -> bool:
    return thing is not None and thing.class_name == want.class_name


def _agreement(want: ObjectFacts, thing: Detection | None) -> float:
    if thing is None or thing.class_name != want.class_name:
        return 0.0
    return 100.0 + 2.0 * (thing.colour == want.colour) + 1.0 * (thing.pattern == want.pattern) + 0.1 * thing.score


def _phrases(table: Mapping[str, Sequence[str]], *more: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """(phrase, meaning), longest phrases first."""
    pairs = {(phrase.removesuffix(" of"), name) for part in (table, *more) for name, group in part.items() for phrase in group}
    return tuple(sorted(pairs, key=lambda pair: (-len(pair[0]), pair)))


def _take(text: str, phrases: Sequence[tuple[str, str]]) -> tuple[str, str | None]:
    """Cut the first (longest) phrase out of a text padded with blanks; the text and the phrase's meaning."""
    for phrase, name in phrases:
        if f" {phrase} " in text:
            return text.replace(f" {phrase} ", " , ", 1), name
    return text, None


def _mark_relations(text: str) -> str:
    """Relation phrases become one word each: ` to the left of ` becomes ` @left-of `."""
    for phrase, name in _RELATION_PHRASES:
        text = text.replace(f" {phrase} ", f" @{name.replace(' ', '-')} ")
    return text


_STYLE_PHRASES = _phrases(STYLE_PREFIXES, STYLE_SUFFIXES)
_BACKGROUND_PHRASES = _phrases(BACKGROUND_PHRASES)
_RELATION_PHRASES = tuple(
    sorted(((phrase, name) for name, group in RELATION_PHRASES.items() for phrase in group), key=lambda pair: -len(pair[0]))
)
_PATTERN_OF = {word: name for name, group in PATTERN_WORDS.items() for word in group}
_CLASS_OF = {word: name for name in world.CLASSES for word in (name, plural(name))}
_COUNT_OF = {word: count for count, word in NUMBERS.items()}
_BOUNDARIES = frozenset({"a", "an", "and", ","}) | {f"@{name.replace(' ', '-')}" for name in world.RELATIONS}
