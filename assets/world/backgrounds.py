"""Backgrounds, drawn as flat labelled areas (labels below 40)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

from studio.assets.world.vocabulary import RGB

#: Background label -> colour.
BACKGROUND_RGB: tuple[RGB, ...] = (
    (253, 253, 252),  # 0 white
    (178, 222, 250), (142, 204, 98), (112, 178, 76), (255, 244, 190),  # 1 sky, grass, tuft, sun
    (206, 224, 242), (244, 248, 253), (216, 228, 242),  # 5 winter sky, snow, snow shade
    (242, 218, 160), (222, 192, 130), (98, 186, 216), (236, 248, 250),  # 8 sand, grain, water, foam
    (32, 40, 88), (46, 56, 112), (255, 246, 196), (24, 50, 62),  # 12 night, glow, stars, hills
    (70, 156, 212), (112, 186, 230), (46, 128, 190),  # 16 sea, light waves, dark waves
    (250, 228, 204), (206, 150, 98), (178, 122, 74), (255, 250, 240),  # 19 wall, floor, gap, skirting
    (196, 106, 84), (226, 190, 170), (180, 90, 72),  # 23 brick, mortar, dark brick
    (150, 208, 248), (255, 255, 255), (228, 242, 253),  # 26 day sky, cloud, cloud shade
    (196, 214, 232), (158, 172, 196), (180, 190, 210), (250, 232, 160), (120, 122, 132),  # 29 city
    (240, 240, 236), (100, 102, 112),  # 34 road line, kerb
    (250, 252, 255), (214, 226, 241),  # 36 snowflake, snow speck
)

Draw = ImageDraw.ImageDraw


def _waves(d: Draw, n: int, y: float, x: float, width: float, label: int) -> None:
    t = np.linspace(0, 1, 9)
    pts = np.stack([(x + t * width) * n, (y - 0.014 * np.abs(np.sin(t * np.pi * 2))) * n], 1)
    d.line([tuple(p) for p in pts.tolist()], fill=label, width=max(2, n // 90))


def _dots(d: Draw, n: int, rng: np.random.Generator, count: int, y0: float, y1: float,
          r: float, label: int) -> None:
    for x, y, k in rng.random((count, 3)).tolist():
        cx, cy, s = x * n, (y0 + y * (y1 - y0)) * n, r * n * (0.7 + 0.6 * k)
        d.ellipse((cx - s, cy - s, cx + s, cy + s), fill=label)


def _cloud(d: Draw, n: int, x: float, y: float, s: float, label: int) -> None:
    for dx, dy, r in ((-1, 0.1, 0.55), (0, -0.2, 0.8), (1, 0.1, 0.6), (0.45, 0.2, 0.6),
                      (-0.45, 0.2, 0.55)):
        cx, cy, q = (x + dx * s) * n, (y + dy * s) * n, r * s * n
        d.ellipse((cx - q, cy - q, cx + q, cy + q), fill=label)


def _white(d: Draw, n: int, rng: np.random.Generator) -> None:
    d.rectangle((0, 0, n, n), fill=0)


def _grass(d: Draw, n: int, rng: np.random.Generator) -> None:
    h = rng.uniform(0.30, 0.42)
    d.rectangle((0, 0, n, n), fill=1)
    d.ellipse((-0.4 * n, (h - 0.06) * n, 0.8 * n, n * 1.6), fill=2)
    d.rectangle((0, h * n, n, n), fill=2)
    for x, y in rng.random((14, 2)).tolist():
        gx, gy = x * n, (h + 0.06 + y * (0.92 - h)) * n
        d.line([(gx - 0.02 * n, gy - 0.03 * n), (gx, gy), (gx + 0.02 * n, gy - 0.03 * n)],
               fill=3, width=max(2, n // 90))


def _snow(d: Draw, n: int, rng: np.random.Generator) -> None:
    h = rng.uniform(0.34, 0.46)
    d.rectangle((0, 0, n, n), fill=5)
    d.ellipse((0.3 * n, (h - 0.08) * n, 1.5 * n, n * 1.6), fill=7)
    d.ellipse((-0.6 * n, (h - 0.04) * n, 0.9 * n, n * 1.8), fill=6)
    d.rectangle((0, (h + 0.12) * n, n, n), fill=6)
    _dots(d, n, rng, 22, 0.0, h + 0.05, 0.011, 36)
    _dots(d, n, rng, 6, h + 0.2, 1.0, 0.012, 37)


def _beach(d: Draw, n: int, rng: np.random.Generator) -> None:
    h = rng.uniform(0.20, 0.28)
    d.rectangle((0, 0, n, n), fill=1)
    d.rectangle((0, h * n, n, n), fill=10)
    d.ellipse((-0.5 * n, (h + 0.12) * n, 1.6 * n, 1.9 * n), fill=11)
    d.ellipse((-0.5 * n, (h + 0.15) * n, 1.6 * n, 1.9 * n), fill=8)
    d.rectangle((0, (h + 0.38) * n, n, n), fill=8)
    _dots(d, n, rng, 20, h + 0.35, 1.0, 0.009, 9)


def _night(d: Draw, n: int, rng: np.random.Generator) -> None:
    d.rectangle((0, 0, n, n), fill=12)
    d.ellipse((-0.2 * n, 0.55 * n, 1.2 * n, 1.5 * n), fill=13)
    _dots(d, n, rng, 20, 0.0, 0.78, 0.010, 14)
    x, y = rng.uniform(0.12, 0.88), rng.uniform(0.10, 0.18)
    d.ellipse(((x - .08) * n, (y - .08) * n, (x + .08) * n, (y + .08) * n), fill=14)
    d.ellipse(((x - .04) * n, (y - .10) * n, (x + .11) * n, (y + .05) * n), fill=12)
    d.ellipse((-0.3 * n, 0.84 * n, 0.7 * n, 1.4 * n), fill=15)
    d.ellipse((0.4 * n, 0.87 * n, 1.4 * n, 1.4 * n), fill=15)


def _sea(d: Draw, n: int, rng: np.random.Generator) -> None:
    h = rng.uniform(0.10, 0.18)
    d.rectangle((0, 0, n, n), fill=1)
    d.rectangle((0, h * n, n, n), fill=16)
    d.rectangle((0, 0.7 * n, n, n), fill=18)
    for i, (x, y) in enumerate(rng.random((14, 2)).tolist()):
        _waves(d, n, h + 0.05 + (i + y) / 14 * (0.93 - h), x * 0.9 - 0.05, 0.2, 17)


def _room(d: Draw, n: int, rng: np.random.Generator) -> None:
    h = rng.uniform(0.52, 0.64)
    d.rectangle((0, 0, n, n), fill=19)
    d.rectangle((0, (h - 0.035) * n, n, h * n), fill=22)
    d.rectangle((0, h * n, n, n), fill=20)
    for k in range(-6, 8):
        x = 0.5 + (k + rng.uniform(-0.1, 0.1)) * 0.16
        d.line([(x * n, h * n), ((0.5 + (x - 0.5) * 1.7) * n, n)], fill=21, width=max(2, n // 96))


def _wall(d: Draw, n: int, rng: np.random.Generator) -> None:
    d.rectangle((0, 0, n, n), fill=24)
    shift, bh, bw, gap = rng.random(), 0.104, 0.21, 0.018
    dark = rng.random(100)
    for row in range(10):
        for col in range(-1, 6):
            x = (col + 0.5 * (row % 2) - shift * 0.5) * bw
            d.rectangle((x * n, row * bh * n, (x + bw - gap) * n, (row * bh + bh - gap) * n),
                        fill=25 if dark[row * 8 + col] < 0.2 else 23)


def _sky(d: Draw, n: int, rng: np.random.Generator) -> None:
    d.rectangle((0, 0, n, n), fill=26)
    for i, (x, y, s) in enumerate(rng.random((5, 3)).tolist()):
        cx, cy, q = x, (i + y) / 5, 0.09 + 0.06 * s
        _cloud(d, n, cx, cy + 0.02, q, 28)
        _cloud(d, n, cx, cy, q, 27)


def _city(d: Draw, n: int, rng: np.random.Generator) -> None:
    d.rectangle((0, 0, n, n), fill=29)
    x = -rng.uniform(0, 0.1)
    i = 0
    while x < 1:
        w, top = rng.uniform(0.15, 0.24), rng.uniform(0.08, 0.42)
        d.rectangle((x * n, top * n, (x + w) * n, 0.8 * n), fill=30 + i % 2)
        for wy in np.arange(top + 0.05, 0.7, 0.11).tolist():
            for wx in (x + 0.22 * w, x + 0.62 * w):
                d.rectangle((wx * n, wy * n, (wx + 0.17 * w) * n, (wy + 0.05) * n), fill=32)
        x += w
        i += 1
    d.rectangle((0, 0.76 * n, n, n), fill=33)
    d.rectangle((0, 0.76 * n, n, 0.785 * n), fill=35)
    for k in range(4):
        a = 0.04 + 0.27 * k
        d.rectangle((a * n, 0.88 * n, (a + 0.13) * n, 0.905 * n), fill=34)


_PAINTERS: dict[str, Callable[[Draw, int, np.random.Generator], None]] = {
    "grass": _grass, "snow": _snow, "beach": _beach, "night": _night, "sea": _sea,
    "room": _room, "white": _white, "wall": _wall, "sky": _sky, "city": _city,
}


def draw_background(draw: Draw, size: int, name: str, seed: int) -> None:
    """Paint a background's labels over a square of `size` pixels."""
    _PAINTERS[name](draw, size, np.random.default_rng(seed))
