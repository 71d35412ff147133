"""The toy world: scenes as data, their pictures, and their captions."""

from __future__ import annotations

import numpy as np

from studio.assets.world.captions import caption, full_caption
from studio.assets.world.extras import EXTRA_ANCHORS, extra_kinds
from studio.assets.world.individuals import random_individual, random_look
from studio.assets.world.render import render
from studio.assets.world.sampling import arrange, random_scene, scene_from_words
from studio.assets.world.scene import Box, Extra, Individual, Look, Scene, SceneObject, relation_of
from studio.assets.world.vocabulary import (
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    CLASSES,
    COLOUR_RGB,
    COLOURS,
    PATTERNS,
    RARE_TOKENS,
    RELATIONS,
    STYLES,
    words,
)


def place(individual: Individual, *, background: str, style: str, rng: np.random.Generator,
          other: SceneObject | None = None, relation: str | None = None) -> Scene:
    """A scene with an individual as its first object.

    With `other`, that object gets a new box, and the individual stands in
    `relation` to it (drawn at random when not given).
    """
    first = SceneObject(individual.class_name, None, individual.look.pattern,
                        (0.0, 0.0, 1.0, 1.0), individual.look, individual.extras,
                        bool(rng.random() < 0.5))
    return arrange(first, other, relation, background, style, rng)


__all__ = [
    "BACKGROUNDS", "BACKGROUND_PHRASES", "CLASSES", "COLOURS", "COLOUR_RGB", "EXTRA_ANCHORS",
    "PATTERNS", "RARE_TOKENS", "RELATIONS", "STYLES", "Box", "Extra", "Individual", "Look",
    "Scene", "SceneObject", "arrange", "caption", "extra_kinds", "full_caption", "place",
    "random_individual", "random_look", "random_scene", "relation_of", "render",
    "scene_from_words", "words",
]
