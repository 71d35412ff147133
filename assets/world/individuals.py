"""Random looks and extras, and individuals that carry them."""

from __future__ import annotations

import colorsys

import numpy as np

from studio.assets.world.extras import extra_kinds
from studio.assets.world.scene import Extra, Individual, Look
from studio.assets.world.vocabulary import PATTERNS, RGB


def _rgb(h: float, s: float, v: float) -> RGB:
    r, g, b = colorsys.hsv_to_rgb(h % 1.0, s, v)
    return round(255 * r), round(255 * g), round(255 * b)


def luminance(rgb: RGB) -> float:
    """Perceived lightness between 0 and 1."""
    return (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]) / 255


def random_look(rng: np.random.Generator, pattern: str | None = None) -> Look:
    """Two contrasting random colours and a pattern."""
    hue = rng.random()
    body = _rgb(hue, rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.95))
    while True:
        second = _rgb(hue + rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.9), rng.uniform(0.3, 1.0))
        if abs(luminance(body) - luminance(second)) > 0.22:
            break
    if pattern is None:
        pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    return Look(body, second, pattern)


def random_extras(rng: np.random.Generator, class_name: str, count: int | None = None
                  ) -> tuple[Extra, ...]:
    """One extra, sometimes two, that fit the class."""
    kinds = extra_kinds(class_name)
    if count is None:
        count = 1 if rng.random() < 0.75 else 2
    chosen: list[str] = []
    groups = {"crown": "hat", "bow": "scarf"}  # only one of each place
    for i in rng.permutation(len(kinds)):
        kind = kinds[int(i)]
        if len(chosen) < count and groups.get(kind, kind) not in (
            groups.get(c, c) for c in chosen
        ):
            chosen.append(kind)
    return tuple(Extra(kind, _rgb(rng.random(), rng.uniform(0.5, 0.95), rng.uniform(0.5, 1.0)))
                 for kind in chosen)


def random_individual(class_name: str, seed: int) -> Individual:
    """The individual of a class that belongs to a seed: two-coloured, with an extra."""
    rng = np.random.default_rng([seed, 7919])
    pattern = PATTERNS[1 + int(rng.integers(len(PATTERNS) - 1))]
    return Individual(class_name, random_look(rng, pattern), random_extras(rng, class_name))
