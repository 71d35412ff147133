"""Small things an object wears that no caption names."""

from __future__ import annotations

from functools import cache

import numpy as np

from studio.assets.world.shapes import EXTRA, EXTRA_STEP, WHITE, Part, Shape, arc
from studio.assets.world.shapes_things import shape

#: Each kind and the anchor it needs.
EXTRA_ANCHORS: dict[str, str] = {
    "hat": "top", "crown": "top", "scarf": "neck", "bow": "neck",
    "glasses": "eyes", "badge": "chest", "missing_ear": "ear",
}
TOP_KINDS = frozenset({"hat", "crown"})


def extra_kinds(class_name: str) -> tuple[str, ...]:
    """The kinds of extras that a class can carry."""
    anchors = shape(class_name).anchors
    return tuple(kind for kind, anchor in EXTRA_ANCHORS.items() if anchor in anchors)


@cache
def extra_parts(class_name: str, kind: str, index: int) -> tuple[Part, ...]:
    """The parts of an extra on a class; index chooses its colour labels."""
    if kind == "missing_ear":
        return ()
    base = shape(class_name)
    x, y, w = base.anchors[EXTRA_ANCHORS[kind]]
    s = Shape(base.aspect)
    main = EXTRA + EXTRA_STEP * index
    dark, light = main + 1, main + 2
    u, v = w, w * base.aspect  # one anchor width, across and down
    if kind == "hat":
        s.add(main, [(x - .30 * u, y - .62 * v), (x + .30 * u, y - .62 * v), (x + .33 * u, y),
                     (x - .33 * u, y)])
        s.add(light, [(x - .32 * u, y - .22 * v), (x + .32 * u, y - .22 * v),
                      (x + .33 * u, y - .02 * v), (x - .33 * u, y - .02 * v)], outline=False)
        s.ellipse(main, x, y + .02 * v, .58 * u, .10 * v)
    elif kind == "crown":
        s.add(main, [(x - .42 * u, y + .04 * v), (x - .48 * u, y - .46 * v),
                     (x - .22 * u, y - .22 * v), (x, y - .56 * v), (x + .22 * u, y - .22 * v),
                     (x + .48 * u, y - .46 * v), (x + .42 * u, y + .04 * v)])
        s.circle(light, x, y - .14 * v, .10 * u, outline=False)
    elif kind == "scarf":
        h = max(.075, .14 * v)
        s.rect(main, x + .12 * u, y, x + .12 * u + max(.12, .22 * u), y + .17 + h, .03)
        s.rect(main, x - u / 2, y - h / 2, x + u / 2, y + h / 2, .05)
        s.line([(x - .2 * u, y - h / 2), (x - .2 * u, y + h / 2)], 1.4, dark)
        s.line([(x + .3 * u, y - h / 2), (x + .3 * u, y + h / 2)], 1.4, dark)
    elif kind == "bow":
        r = max(.15, min(.20, .42 * u))
        q = r * base.aspect * .62
        s.add(main, [(x, y), (x - r, y - q), (x - r, y + q)])
        s.add(main, [(x, y), (x + r, y - q), (x + r, y + q)])
        s.circle(dark, x, y, .28 * r)
    elif kind == "glasses":
        r, d = .25 * u, .29 * u
        s.line([(x - d + r, y), (x + d - r, y)], 1.4, main)
        for side in (-1, 1):
            ring = np.concatenate([arc(x + side * d, y, r, r * base.aspect),
                                   arc(x + side * d, y, r, r * base.aspect)[:1]])
            s.line(ring, 2.2, main)
    elif kind == "badge":
        s.circle(main, x, y, .5 * w)
        a = np.deg2rad(-90 + 36 * np.arange(10))
        r10 = np.where(np.arange(10) % 2 == 0, .40, .18) * w
        s.add(WHITE, np.stack([x + r10 * np.cos(a), y + r10 * np.sin(a) * base.aspect], 1),
              outline=False)
    else:
        raise ValueError(f"unknown extra {kind!r}; known: {', '.join(EXTRA_ANCHORS)}")
    return tuple(s.parts)


