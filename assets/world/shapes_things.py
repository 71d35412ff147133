"""House, car, mug, star, boat and rocket, and the table of all classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from studio.assets.world.shapes import (
    BODY,
    CREAM,
    DARK,
    FLAME,
    GLASS,
    LIGHT,
    METAL,
    SHADE,
    STEAM,
    WHITE,
    WOOD,
    YELLOW,
    Shape,
    arc,
)
from studio.assets.world.shapes_living import bird, cat, dog, fish, flower, mushroom, robot, tree


def house() -> Shape:
    """A house with a gable, two windows and a door."""
    s = Shape(1.0)
    s.rect(METAL, .70, .06, .82, .34)
    s.rect(BODY, .11, .42, .89, 1.0)
    s.add(SHADE, [(.5, .0), (1.0, .44), (.92, .50), (.08, .50), (.0, .44)])
    s.circle(GLASS, .5, .30, .085)
    for x in (.18, .64):
        s.rect(GLASS, x, .57, x + .18, .76)
        s.line([(x + .09, .57), (x + .09, .76)], .8)
        s.line([(x, .665), (x + .18, .665)], .8)
    s.rect(WOOD, .41, .66, .59, 1.0, .03)
    s.circle(YELLOW, .55, .84, .022, outline=False)
    s.anchors = {"top": (.5, .06, .30), "neck": (.5, .50, .84), "chest": (.5, .56, .15)}
    return s


def car() -> Shape:
    """A car that drives to the right."""
    s = Shape(1.4)
    s.smooth(BODY, [(.20, .45), (.28, .10), (.38, .02), (.58, .02), (.68, .10), (.80, .45)],
             merge=True)
    s.add(BODY, [(.20, .48), (.28, .08), (.34, .02), (.60, .02), (.67, .08), (.80, .44), (.94, .48),
                 (.99, .56), (1.0, .80), (.97, .84), (.03, .84), (.0, .80), (.01, .52), (.06, .46)],
          merge=True)
    s.add(GLASS, [(.27, .43), (.33, .13), (.46, .13), (.46, .43)])
    s.add(GLASS, [(.52, .43), (.52, .13), (.60, .13), (.70, .43)])
    s.ellipse(YELLOW, .95, .60, .04, .065)
    s.rect(FLAME, .0, .55, .05, .68)
    s.line([(.49, .52), (.56, .52)], 1.2)
    for x in (.23, .76):
        s.circle(DARK, x, .82, .125)
        s.circle(METAL, x, .82, .06, outline=False)
    s.anchors = {"top": (.47, .04, .30), "chest": (.49, .66, .15)}
    return s


def mug() -> Shape:
    """A mug with a handle and steam."""
    s = Shape(0.98)
    for x in (.26, .50):
        y = np.linspace(.0, .22, 9)
        s.line(np.stack([x + .035 * np.sin(y * 30), y], 1), 1.6, STEAM)
    s.add(SHADE, np.concatenate([arc(.74, .60, .25, .23, -100, 100, 16),
                                 arc(.74, .60, .14, .12, 100, -100, 16)]))
    s.add(BODY, np.concatenate([[(.03, .32), (.75, .32)], arc(.65, .90, .10, .10, 0, 90, 6),
                                arc(.13, .90, .10, .10, 90, 180, 6)]))
    s.ellipse(LIGHT, .39, .32, .36, .085)
    s.ellipse(WOOD, .39, .335, .28, .055)
    s.anchors = {"top": (.39, .28, .40), "neck": (.39, .48, .72), "chest": (.39, .68, .25),
                 "eyes": (.39, .60, .52)}
    return s


def star() -> Shape:
    """A five-pointed star with a face."""
    s = Shape(1.04)
    a = np.deg2rad(-90 + 36 * np.arange(10))
    r = np.where(np.arange(10) % 2 == 0, .54, .27)
    s.add(BODY, np.stack([.5 + r * np.cos(a) * .97, .545 + r * np.sin(a)], 1))
    for x in (.41, .59):
        s.ellipse(DARK, x, .49, .042, .068, outline=False)
        s.circle(WHITE, x - .01, .465, .016, outline=False)
    s.line(arc(.5, .57, .10, .085, 15, 165, 9), 1.2)
    s.anchors = {"top": (.5, .12, .26), "neck": (.5, .73, .42), "chest": (.5, .74, .15),
                 "eyes": (.5, .49, .36)}
    return s


def boat() -> Shape:
    """A sailing boat."""
    s = Shape(1.05)
    s.line([(.47, .02), (.47, .70)], 1.9, WOOD)
    s.add(FLAME, [(.47, .0), (.64, .05), (.47, .10)])
    s.add(CREAM, [(.42, .12), (.42, .62), (.06, .62)])
    s.add(BODY, [(.52, .12), (.52, .62), (.93, .62)])
    s.add(BODY, [(.0, .68), (1.0, .68), (.91, .88), (.78, 1.0), (.22, 1.0), (.09, .88)])
    s.rect(LIGHT, .0, .66, 1.0, .74)
    s.anchors = {"top": (.47, .08, .24), "neck": (.5, .70, .90), "chest": (.5, .86, .14)}
    return s


def rocket() -> Shape:
    """A rocket that flies upwards."""
    s = Shape(0.76)
    s.smooth(FLAME, [(.34, .80), (.66, .80), (.64, .90), (.5, 1.0), (.36, .90)])
    s.smooth(YELLOW, [(.42, .80), (.58, .80), (.56, .87), (.5, .93), (.44, .87)], outline=False)
    s.add(SHADE, [(.28, .50), (.02, .74), (.03, .90), (.30, .80)])
    s.add(SHADE, [(.72, .50), (.98, .74), (.97, .90), (.70, .80)])
    body = [(.5, .0), (.64, .11), (.76, .32), (.78, .56), (.70, .82), (.30, .82), (.22, .56),
            (.24, .32), (.36, .11)]
    s.add(BODY, body)
    s.add(SHADE, [(.5, .0), (.64, .11), (.71, .22), (.29, .22), (.36, .11)])
    s.circle(METAL, .5, .40, .175)
    s.circle(GLASS, .5, .40, .115)
    s.line(arc(.5, .40, .065, .05, 190, 260, 5), 1.2, WHITE)
    s.anchors = {"top": (.5, .05, .30), "neck": (.5, .66, .54), "chest": (.5, .65, .22),
                 "eyes": (.5, .40, .44)}
    return s


_MAKERS: dict[str, Callable[[], Shape]] = {
    "cat": cat, "dog": dog, "robot": robot, "house": house, "tree": tree, "car": car,
    "fish": fish, "mug": mug, "star": star, "flower": flower, "boat": boat,
    "mushroom": mushroom, "bird": bird, "rocket": rocket,
}


@cache
def shape(class_name: str) -> Shape:
    """The shape of a class (cached; do not change it)."""
    if class_name not in _MAKERS:
        raise ValueError(f"unknown class {class_name!r}; known: {', '.join(_MAKERS)}")
    return _MAKERS[class_name]()
