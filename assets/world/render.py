"""From a scene to a picture: draw labels at three times the size, colour, reduce."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from studio.assets.world.backgrounds import BACKGROUND_RGB, draw_background
from studio.assets.world.extras import TOP_KINDS, extra_parts
from studio.assets.world.scene import Scene, SceneObject
from studio.assets.world.shapes import (
    BODY,
    EXTRA,
    EXTRA_STEP,
    FIXED,
    FIXED_RGB,
    LIGHT,
    OUTLINE,
    SECOND,
    SHADE,
    Part,
)
from studio.assets.world.shapes_things import shape
from studio.assets.world.styles import paint
from studio.assets.world.vocabulary import COLOUR_RGB, RGB, SECOND_RGB

SCALE = 3
OBJECTS = 64  # label of the first object's body
STRIDE = 16
INK = np.array((26, 22, 34), float)


def mix(a: RGB, b: RGB | np.ndarray, share: float) -> np.ndarray:
    """Colour a with a share of colour b."""
    return np.asarray(a, float) * (1 - share) + np.asarray(b, float) * share


def surface(obj: SceneObject) -> tuple[RGB, RGB, str]:
    """Body colour, second colour and pattern of an object."""
    if obj.look is not None:
        return obj.look.body, obj.look.second, obj.look.pattern
    assert obj.colour is not None
    return COLOUR_RGB[obj.colour], SECOND_RGB[obj.colour], obj.pattern


def palette(scene: Scene) -> np.ndarray:
    """The colour of every label, float [128, 3]."""
    lut = np.zeros((128, 3))
    lut[: len(BACKGROUND_RGB)] = BACKGROUND_RGB
    lut[FIXED : FIXED + len(FIXED_RGB)] = FIXED_RGB
    for i, obj in enumerate(scene.objects):
        base = OBJECTS + STRIDE * i
        body, second, _ = surface(obj)
        lut[base + BODY], lut[base + SECOND] = body, second
        lut[base + OUTLINE] = mix(body, INK, 0.82)
        lut[base + SHADE] = mix(body, INK, 0.25)
        lut[base + LIGHT] = mix(body, (255, 255, 255), 0.42)
        for k, extra in enumerate(obj.extras):
            at = base + EXTRA + EXTRA_STEP * k
            lut[at], lut[at + 1] = extra.colour, mix(extra.colour, INK, 0.45)
            lut[at + 2] = mix(extra.colour, (255, 255, 255), 0.65)
    return lut


def pattern_mask(pattern: str, x0: int, y0: int, w: int, h: int, period: float) -> np.ndarray:
    """Where the second colour shows, bool [h, w], anchored at the box's middle."""
    x = (np.arange(w) - w / 2 + 0.5) / period
    y = (np.arange(h) - h / 2 + 0.5) / period
    if pattern == "striped":
        return np.repeat(((y % 1.0) < 0.5)[:, None], w, axis=1)
    if pattern == "checkered":
        squares: np.ndarray = ((x % 1.0) < 0.5)[None, :] ^ ((y % 1.0) < 0.5)[:, None]
        return squares
    if pattern == "zigzag":
        wave = np.abs((x / 1.5) % 1.0 - 0.5) * 1.6
        zigzag: np.ndarray = ((y / 1.1)[:, None] + wave[None, :]) % 1.0 < 0.48
        return zigzag
    if pattern == "dotted":
        row = np.floor(y / 0.9)
        dy = (y / 0.9 - row - 0.5) * 0.9
        dx = (x[None, :] + 0.5 * (row % 2)[:, None]) % 1.0 - 0.5
        dots: np.ndarray = dx**2 + (dy**2)[:, None] < 0.30**2
        return dots
    raise ValueError(f"unknown pattern {pattern!r}")


def draw_parts(draw: ImageDraw.ImageDraw, parts: list[Part], base: int, offset: np.ndarray,
               scale: np.ndarray, flip: bool, width: float) -> None:
    """Draw an object's parts into the label picture."""
    done = 0
    scaled: list[list[tuple[float, float]]] = []
    for part in parts:
        unit = part.points * (-1, 1) + (1, 0) if flip else part.points
        scaled.append([(x, y) for x, y in (unit * scale + offset).tolist()])

    def label(role: int) -> int:
        return role if role >= FIXED else base + role

    def border(pts: list[tuple[float, float]], lw: float) -> None:
        joint = "curve" if len(pts) < 14 else None
        draw.line([*pts, *pts[:2]], fill=base + OUTLINE, width=max(2, round(lw)), joint=joint)

    while done < len(parts):
        part, pts = parts[done], scaled[done]
        if part.line:
            draw.line(pts, fill=label(part.role), width=max(2, round(width * part.line)),
                      joint="curve")
            done += 1
        elif part.merge:
            end = done
            while end < len(parts) and parts[end].merge:
                border(scaled[end], 1.7 * width)
                end += 1
            for k in range(done, end):
                draw.polygon(scaled[k], fill=label(parts[k].role))
            done = end
        else:
            draw.polygon(pts, fill=label(part.role))
            if part.outline:
                border(pts, width)
            done += 1


def draw_labels(scene: Scene, size: int) -> np.ndarray:
    """The label picture, uint8 [size, size]."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    draw_background(draw, size, scene.background, scene.seed)
    for i, obj in enumerate(scene.objects):
        base = OBJECTS + STRIDE * i
        x0, y0, x1, y1 = (v * size for v in obj.box)
        kinds = {e.kind for e in obj.extras}
        w, h = x1 - x0, y1 - y0
        if kinds & TOP_KINDS:  # room for the hat inside the box
            x0, y0, w, h = x0 + 0.07 * w, y0 + 0.14 * h, 0.86 * w, 0.86 * h
        lw = size * (0.0095 + 0.010 * (x1 - x0) / size)
        spec = shape(obj.class_name)
        parts = [p for p in spec.parts if p.tag != "ear" or "missing_ear" not in kinds]
        offset, scale = np.array((x0, y0)), np.array((w, h))
        draw_parts(draw, parts, base, offset, scale, obj.flip, lw)
        _, _, pattern = surface(obj)
        if pattern != "plain":
            image = _apply_pattern(image, base, pattern, x0, y0, w, h, size)
            draw = ImageDraw.Draw(image)
        worn = [p for k, e in enumerate(obj.extras) for p in extra_parts(obj.class_name, e.kind, k)]
        draw_parts(draw, worn, base, offset, scale, obj.flip, lw)
    return np.asarray(image)


def _apply_pattern(image: Image.Image, base: int, pattern: str, x0: float, y0: float, w: float,
                   h: float, size: int) -> Image.Image:
    a, b = max(0, int(x0)), max(0, int(y0))
    c, d = min(size, int(x0 + w) + 1), min(size, int(y0 + h) + 1)
    labels = np.array(image)
    view = labels[b:d, a:c]
    period = max(0.092 * size, 0.17 * w)
    mask = pattern_mask(pattern, a, b, c - a, d - b, period)
    view[mask & (view == base + BODY)] = base + SECOND
    return Image.fromarray(labels)


def render(scene: Scene, size: int = 96) -> np.ndarray:
    """The picture of a scene, uint8 [size, size, 3]; the same scene gives the same bytes."""
    labels = draw_labels(scene, size * SCALE)
    return paint(labels, palette(scene), scene.style, size, scene.seed)
