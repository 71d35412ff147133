"""The parts that classes are made of: labelled polygons in the unit box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from studio.assets.world.vocabulary import RGB

# Roles below 16 belong to one object; FIXED roles are shared by all objects.
BODY, SECOND, OUTLINE, SHADE, LIGHT, EXTRA = 0, 1, 2, 3, 4, 5
EXTRA_STEP = 3  # base, dark, light
FIXED = 40
FIXED_RGB: tuple[RGB, ...] = (
    (255, 255, 255), (34, 32, 42), (244, 150, 160), (128, 84, 52), (86, 160, 74),
    (250, 236, 208), (252, 214, 84), (190, 226, 246), (158, 164, 176), (250, 142, 44),
    (226, 232, 240),
)
(WHITE, DARK, PINK, WOOD, LEAF, CREAM, YELLOW, GLASS, METAL, FLAME, STEAM) = range(
    FIXED, FIXED + len(FIXED_RGB)
)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """A polygon (or an open line) with a role, in unit coordinates."""

    role: int
    points: np.ndarray
    outline: bool = True
    line: float = 0.0  # > 0: an open line of so many outline widths
    merge: bool = False  # outlined together with its merged neighbours
    tag: str = ""


@dataclass
class Shape:
    """A class: its parts in painter's order, width/height and anchors (x, y, width)."""

    aspect: float
    parts: list[Part] = field(default_factory=list)
    anchors: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def add(self, role: int, points: np.ndarray | Points, *, outline: bool = True,
            merge: bool = False, tag: str = "") -> None:
        """Add a closed polygon."""
        self.parts.append(Part(role, np.asarray(points, float), outline, 0.0, merge, tag))

    def line(self, points: np.ndarray | Points, width: float = 1.0, role: int = OUTLINE,
             tag: str = "") -> None:
        """Add an open line."""
        self.parts.append(Part(role, np.asarray(points, float), False, width, False, tag))

    def smooth(self, role: int, points: Points, *, outline: bool = True,
               merge: bool = False, tag: str = "") -> None:
        """Add a closed Catmull-Rom curve."""
        self.add(role, curve(points), outline=outline, merge=merge, tag=tag)

    def ellipse(self, role: int, x: float, y: float, rx: float, ry: float, *,
                outline: bool = True, merge: bool = False, tag: str = "") -> None:
        """Add an ellipse with radii in unit coordinates."""
        self.add(role, arc(x, y, rx, ry), outline=outline, merge=merge, tag=tag)

    def circle(self, role: int, x: float, y: float, r: float, *, outline: bool = True,
               merge: bool = False, tag: str = "") -> None:
        """Add a true circle with its radius in box widths."""
        self.ellipse(role, x, y, r, r * self.aspect, outline=outline, merge=merge, tag=tag)

    def rect(self, role: int, x0: float, y0: float, x1: float, y1: float, r: float = 0.0, *,
             outline: bool = True, merge: bool = False, tag: str = "") -> None:
        """Add a rectangle with corners rounded by r box widths."""
        self.add(role, rounded(x0, y0, x1, y1, r, r * self.aspect),
                 outline=outline, merge=merge, tag=tag)

    def eye(self, x: float, y: float, r: float, look: float = 0.0) -> None:
        """Add a big round eye."""
        self.circle(WHITE, x, y, r)
        self.circle(DARK, x + look * r, y + 0.1 * r * self.aspect, r * 0.62, outline=False)
        self.circle(WHITE, x + (look - 0.2) * r, y - 0.18 * r * self.aspect, r * 0.22,
                    outline=False)


def arc(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0,
        steps: int = 26) -> np.ndarray:
    """Points on an elliptic arc, clockwise on the screen, in degrees."""
    full = abs(end - start) >= 360
    t = np.deg2rad(np.linspace(start, end, steps, endpoint=not full))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def rounded(x0: float, y0: float, x1: float, y1: float, rx: float, ry: float) -> np.ndarray:
    """Points of a rounded rectangle."""
    if rx <= 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    rx, ry = min(rx, (x1 - x0) / 2), min(ry, (y1 - y0) / 2)
    corners = ((x1 - rx, y0 + ry, -90), (x1 - rx, y1 - ry, 0),
               (x0 + rx, y1 - ry, 90), (x0 + rx, y0 + ry, 180))
    return np.concatenate([arc(x, y, rx, ry, a, a + 90, 6) for x, y, a in corners])


def curve(points: Points, steps: int = 5) -> np.ndarray:
    """A closed Catmull-Rom curve through points."""
    p1 = np.asarray(points, float)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    out: np.ndarray = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
                 + (3 * b - a - 3 * c + d) * t**3)
    return out.reshape(-1, 2)
