"""Cat, dog, fish, bird, robot, flower, tree and mushroom."""

from __future__ import annotations

import numpy as np

from studio.assets.world.shapes import (
    BODY,
    CREAM,
    DARK,
    FLAME,
    GLASS,
    LEAF,
    LIGHT,
    METAL,
    PINK,
    SHADE,
    WOOD,
    YELLOW,
    Shape,
    arc,
)


def cat() -> Shape:
    """A sitting cat seen from the front."""
    s = Shape(0.88)
    s.smooth(SHADE, [(.60, .93), (.80, .92), (.88, .76), (.82, .62), (.86, .52), (.96, .56),
                     (.99, .76), (.90, .97), (.66, 1.0)])
    s.smooth(BODY, [(.42, .50), (.62, .60), (.72, .82), (.68, .98), (.42, 1.0), (.16, .98),
                    (.12, .82), (.22, .60)])
    s.ellipse(LIGHT, .31, .955, .10, .045)
    s.ellipse(LIGHT, .53, .955, .10, .045)
    s.add(BODY, [(.06, .34), (.07, .0), (.36, .12)], tag="ear")
    s.add(PINK, [(.11, .22), (.12, .075), (.25, .13)], outline=False, tag="ear")
    s.add(BODY, [(.78, .34), (.77, .0), (.48, .12)])
    s.add(PINK, [(.73, .22), (.72, .075), (.59, .13)], outline=False)
    s.ellipse(BODY, .42, .33, .39, .245)
    s.eye(.25, .31, .105)
    s.eye(.59, .31, .105)
    s.add(PINK, [(.365, .405), (.475, .405), (.42, .455)])
    s.line([(.42, .455), (.37, .495), (.31, .485)], .9)
    s.line([(.42, .455), (.47, .495), (.53, .485)], .9)
    for side in (-1, 1):
        s.line([(.42 + side * .24, .43), (.42 + side * .40, .40)], .7)
        s.line([(.42 + side * .24, .455), (.42 + side * .40, .485)], .7)
    s.anchors = {"top": (.42, .10, .40), "neck": (.42, .58, .44), "chest": (.42, .75, .22),
                 "eyes": (.42, .31, .56), "ear": (.2, .1, .2)}
    return s


def dog() -> Shape:
    """A standing dog that looks to the right."""
    s = Shape(1.12)
    s.rect(SHADE, .27, .66, .38, .97, .04)
    s.rect(SHADE, .47, .66, .58, .97, .04)
    s.smooth(BODY, [(.13, .52), (.02, .36), (.0, .20), (.06, .15), (.10, .30), (.20, .44)],
             merge=True)
    s.rect(BODY, .10, .42, .70, .78, .15, merge=True)
    s.rect(BODY, .12, .60, .26, 1.0, .05, merge=True)
    s.rect(BODY, .56, .60, .69, 1.0, .05, merge=True)
    s.add(BODY, [(.52, .46), (.58, .25), (.84, .40), (.70, .62)], merge=True)
    s.ellipse(BODY, .71, .25, .19, .215, merge=True)
    s.smooth(LIGHT, [(.77, .27), (.90, .23), (.99, .29), (.985, .39), (.90, .435), (.77, .42)])
    s.ellipse(DARK, .945, .275, .05, .045)
    s.line([(.97, .37), (.89, .385), (.84, .36)], .9)
    s.eye(.745, .185, .068, .15)
    s.smooth(SHADE, [(.58, .07), (.66, .12), (.65, .28), (.61, .44), (.53, .47), (.47, .38),
                     (.50, .18)], tag="ear")
    s.anchors = {"top": (.71, .06, .32), "neck": (.63, .50, .27), "chest": (.40, .60, .2),
                 "eyes": (.745, .185, .27), "ear": (.55, .3, .2)}
    return s


def fish() -> Shape:
    """A fish that swims to the right."""
    s = Shape(1.35)
    s.smooth(SHADE, [(.42, .20), (.46, .03), (.62, .0), (.72, .18)])
    s.smooth(SHADE, [(.48, .80), (.46, .97), (.58, 1.0), (.64, .82)])
    s.smooth(BODY, [(.30, .50), (.16, .30), (.02, .14), (.07, .36), (.09, .50), (.07, .64),
                    (.02, .86), (.16, .70)], merge=True)
    s.smooth(BODY, [(.22, .50), (.36, .24), (.60, .12), (.84, .24), (.99, .50), (.84, .77),
                    (.60, .88), (.36, .76)], merge=True)
    s.line(arc(.62, .50, .10, .30, -65, 65, 9), 1.0)
    s.eye(.81, .40, .082, .1)
    s.line([(.97, .60), (.90, .645), (.84, .62)], 1.0)
    s.anchors = {"top": (.66, .10, .30), "chest": (.50, .52, .17), "eyes": (.81, .40, .30)}
    return s


def bird() -> Shape:
    """A small round bird that looks to the right."""
    s = Shape(1.08)
    for x in (.42, .56):
        s.line([(x, .82), (x, .97)], 1.8, FLAME)
        s.line([(x - .06, .98), (x + .09, .98)], 1.6, FLAME)
    s.add(SHADE, [(.24, .48), (.0, .34), (.02, .50), (.0, .62), (.26, .66)])
    s.add(FLAME, [(.84, .22), (1.0, .33), (.84, .40)])
    s.smooth(BODY, [(.14, .56), (.30, .46), (.44, .30), (.52, .10), (.68, .03), (.85, .12),
                    (.89, .32), (.84, .60), (.70, .80), (.48, .88), (.26, .80)])
    s.smooth(SHADE, [(.18, .52), (.40, .46), (.58, .52), (.56, .66), (.42, .74), (.28, .68)])
    s.eye(.72, .23, .085, .15)
    s.anchors = {"top": (.68, .05, .30), "neck": (.68, .47, .37), "chest": (.70, .66, .17),
                 "eyes": (.72, .23, .30)}
    return s


def robot() -> Shape:
    """A boxy robot with an aerial."""
    s = Shape(0.82)
    s.line([(.5, .02), (.5, .14)], 1.6)
    s.circle(FLAME, .5, .045, .05)
    s.rect(METAL, .42, .40, .58, .50)
    s.rect(METAL, .02, .50, .17, .80, .06)
    s.rect(METAL, .83, .50, .98, .80, .06)
    s.rect(METAL, .27, .82, .43, .98, .03)
    s.rect(METAL, .57, .82, .73, .98, .03)
    s.rect(DARK, .21, .94, .45, 1.0, .03)
    s.rect(DARK, .55, .94, .79, 1.0, .03)
    s.rect(METAL, .08, .21, .20, .34, .03)
    s.rect(METAL, .80, .21, .92, .34, .03)
    s.rect(BODY, .14, .11, .86, .44, .07)
    s.rect(BODY, .17, .47, .83, .86, .06)
    s.rect(GLASS, .22, .165, .78, .385, .05)
    s.circle(DARK, .36, .26, .085, outline=False)
    s.circle(DARK, .64, .26, .085, outline=False)
    s.circle(YELLOW, .36, .255, .045, outline=False)
    s.circle(YELLOW, .64, .255, .045, outline=False)
    s.line([(.40, .35), (.60, .35)], 1.0)
    s.anchors = {"top": (.5, .12, .50), "neck": (.5, .465, .52), "chest": (.5, .66, .24),
                 "eyes": (.5, .26, .52)}
    return s


def flower() -> Shape:
    """A flower with six petals, a stem and two leaves."""
    s = Shape(0.80)
    s.add(LEAF, [(.46, .55), (.54, .55), (.55, 1.0), (.45, 1.0)])
    s.smooth(LEAF, [(.48, .92), (.28, .88), (.14, .70), (.36, .72)])
    s.smooth(LEAF, [(.52, .86), (.70, .82), (.86, .64), (.64, .66)])
    for a in range(30, 390, 60):
        x, y = .5 + .32 * np.cos(np.deg2rad(a)), .355 + .275 * .8 * np.sin(np.deg2rad(a))
        s.circle(BODY, float(x), float(y), .165)
    s.circle(YELLOW, .5, .355, .185)
    s.circle(DARK, .435, .335, .034, outline=False)
    s.circle(DARK, .565, .335, .034, outline=False)
    s.line(arc(.5, .37, .08, .055, 20, 160, 7), .9)
    s.anchors = {"top": (.5, .07, .36), "neck": (.5, .68, .24), "eyes": (.5, .335, .40)}
    return s


def tree() -> Shape:
    """A round tree with a trunk."""
    s = Shape(0.84)
    s.add(WOOD, [(.41, .58), (.59, .58), (.61, .92), (.70, 1.0), (.30, 1.0), (.39, .92)])
    for x, y, r in ((.25, .47, .235), (.75, .47, .235), (.5, .54, .22), (.30, .25, .225),
                    (.70, .25, .225), (.5, .20, .235), (.5, .38, .28)):
        s.circle(BODY, x, y, r, merge=True)
    s.line(arc(.30, .27, .12, .10, 190, 290, 7), 1.0, LIGHT)
    s.line([(.46, .74), (.46, .86)], .8)
    s.line([(.54, .78), (.54, .92)], .8)
    s.anchors = {"top": (.5, .06, .44), "neck": (.5, .78, .30), "chest": (.5, .42, .24)}
    return s


def mushroom() -> Shape:
    """A mushroom with a face on its stem."""
    s = Shape(0.98)
    s.smooth(CREAM, [(.34, .50), (.66, .50), (.68, .76), (.76, .95), (.5, 1.0), (.24, .95),
                     (.32, .76)])
    s.circle(DARK, .42, .74, .040, outline=False)
    s.circle(DARK, .58, .74, .040, outline=False)
    s.line(arc(.5, .79, .07, .05, 20, 160, 7), 1.0)
    cap = np.concatenate([arc(.5, .50, .49, .49, 180, 360, 22), arc(.5, .50, .49, .10, 0, 180, 16)])
    s.add(BODY, cap)
    s.anchors = {"top": (.5, .06, .40), "neck": (.5, .655, .32), "chest": (.5, .32, .2),
                 "eyes": (.5, .74, .32)}
    return s
