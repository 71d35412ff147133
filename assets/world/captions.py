"""Captions: a scene in words, with attributes dropped at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studio.assets.world.scene import Scene, SceneObject
from studio.assets.world.vocabulary import (
    BACKGROUND_PHRASES,
    NEUTRAL_PREFIXES,
    NEUTRAL_RELATIONS,
    NUMBERS,
    OPPOSITE,
    PATTERN_WORDS,
    RARE_TOKENS,
    RELATION_PHRASES,
    STYLE_PREFIXES,
    STYLE_SUFFIXES,
    plural,
)

RARE_SHARE = 0.04


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    """Mostly the first, plain phrase; else any."""
    if rng.random() < 0.35:
        return items[0]
    return items[int(rng.integers(len(items)))]


def article(phrase: str) -> str:
    """The phrase with 'a' or 'an' before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(obj: SceneObject, rng: np.random.Generator) -> str:
    """One object: 'a red striped cat', with attributes dropped at random."""
    out: list[str] = []
    if obj.colour is not None and obj.look is None and rng.random() >= 0.20:
        out.append(obj.colour)
    named = 0.06 if obj.pattern == "plain" else 0.75 if obj.look is None else 0.5
    if rng.random() < named:
        out.append(_pick(rng, PATTERN_WORDS[obj.pattern]))
    if rng.random() < RARE_SHARE:
        out.append(RARE_TOKENS[int(rng.integers(len(RARE_TOKENS)))])
    return article(" ".join([*out, obj.class_name]))


def _same_class(objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """'two cats', 'two red cats'."""
    out = [NUMBERS[len(objects)]]
    colours = {o.colour if o.look is None else None for o in objects}
    colour = colours.pop() if len(colours) == 1 else None
    if colour is not None and rng.random() >= 0.20:
        out.append(colour)
    patterns = {o.pattern for o in objects}
    if len(patterns) == 1 and "plain" not in patterns and rng.random() < 0.6:
        out.append(_pick(rng, PATTERN_WORDS[patterns.pop()]))
    return " ".join([*out, plural(objects[0].class_name)])


def subject(scene: Scene, rng: np.random.Generator) -> str:
    """All objects with their relations."""
    objects = list(scene.objects)
    if len(objects) == 1:
        return describe(objects[0], rng)
    if len({o.class_name for o in objects}) == 1 and rng.random() < 0.35:
        return _same_class(objects, rng)
    if len(objects) == 2:
        relation = scene.relation
        assert relation is not None
        if rng.random() < 0.5:
            objects.reverse()
            relation = OPPOSITE[relation]
        if rng.random() < 0.25:
            # 'and' reads left to right, so say the left or the upper one first
            if relation in ("right of", "below"):
                objects.reverse()
                relation = OPPOSITE[relation]
            joint = _pick(rng, NEUTRAL_RELATIONS[relation])
        else:
            joint = _pick(rng, RELATION_PHRASES[relation])
        return f"{describe(objects[0], rng)} {joint} {describe(objects[1], rng)}"
    objects.sort(key=lambda o: o.box[0] + o.box[2])
    names = [describe(o, rng) for o in objects]
    return ", ".join(names[:-1]) + " and " + names[-1]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A fresh lower-case caption of a scene."""
    text = subject(scene, rng)
    if rng.random() >= 0.30:
        comma = ", " if rng.random() < 0.3 else " "
        text += comma + _pick(rng, BACKGROUND_PHRASES[scene.background])
    flat = scene.style == "flat"
    if rng.random() < (0.20 if flat else 0.85):
        if rng.random() < 0.5:
            return f"{_pick(rng, STYLE_PREFIXES[scene.style])} {text}"
        return f"{text}, {_pick(rng, STYLE_SUFFIXES[scene.style])}"
    if flat and rng.random() < 0.40:
        return f"{_pick(rng, NEUTRAL_PREFIXES)} {text}"
    return text


def full_caption(scene: Scene) -> str:
    """The caption that names everything nameable, in the plainest words."""
    names = []
    for obj in scene.objects:
        bits = [obj.colour or ""] if obj.look is None else []
        bits += [] if obj.pattern == "plain" else [obj.pattern]
        names.append(article(" ".join([b for b in bits if b] + [obj.class_name])))
    text = f" {scene.relation} ".join(names) if len(names) == 2 else " and ".join(names)
    text += " " + BACKGROUND_PHRASES[scene.background][0]
    return text if scene.style == "flat" else f"{text}, {STYLE_SUFFIXES[scene.style][0]}"
