"""Rendering styles: from a label picture at three times the size to the final picture."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageFilter

SCALE = 3
BANK = 8  # precomputed noise fields

# small background specks get no pencil outline: label -> label of the area around
_UNSPECKLED = np.arange(128, dtype=np.uint8)
_UNSPECKLED[[9, 36, 37]] = (8, 5, 6)


@cache
def _noise(size: int, cells: int, index: int) -> np.ndarray:
    """Smooth noise of about unit deviation, float32 [size, size]."""
    rng = np.random.default_rng([size, cells, index])
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    image = Image.fromarray(grid)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


@cache
def _wobble(size: int, index: int, cells: int, strength: float) -> np.ndarray:
    """Flat source indices of a small random displacement, int32 [size * size]."""
    dx, dy = _noise(size, cells, 2 * index), _noise(size, cells, 2 * index + 1)
    y, x = np.mgrid[:size, :size]
    xs = np.clip(np.rint(x + strength * size * dx), 0, size - 1).astype(np.int32)
    ys = np.clip(np.rint(y + strength * size * dy), 0, size - 1).astype(np.int32)
    flat: np.ndarray = (ys * size + xs).ravel()
    return flat


@cache
def _hatch(size: int) -> np.ndarray:
    """Diagonal pencil strokes: 128 on a stroke, else 0."""
    y, x = np.mgrid[:size, :size]
    wave = 0.01 * size * _noise(size, 10, 99)
    period = size / 26
    return np.where((x + y + wave) % period < 0.46 * period, 128, 0).astype(np.uint8)


def _reduce(lut: np.ndarray, labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.take(_bytes(lut), labels, axis=0))
    return image.reduce(SCALE)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _flat(labels: np.ndarray, lut: np.ndarray, size: int, seed: int) -> np.ndarray:
    return np.array(_reduce(lut, labels))


def _pixel(labels: np.ndarray, lut: np.ndarray, size: int, seed: int) -> np.ndarray:
    block = max(2, round(size / 48))
    grid = -(-size // block)
    pad = grid * block * SCALE - labels.shape[0]
    if pad:
        labels = np.pad(labels, (0, pad), mode="edge")
    colours = lut.astype(np.float32)
    side = block * SCALE
    full = Image.fromarray(np.take(_bytes(lut), labels, axis=0))
    mean = np.asarray(full.reduce(side), np.float32)
    # each cell takes that of its own colours which is nearest to its mean
    at = [(2 * k + 1) * side // 6 for k in range(3)]
    found = np.stack([labels[i::side, j::side] for i in at for j in at])
    score = ((colours[found] - mean[None]) ** 2).sum(-1)
    chosen = np.take_along_axis(found, score.argmin(0)[None], 0)[0]
    cells = _bytes(lut)[chosen]
    out: np.ndarray = cells.repeat(block, 0).repeat(block, 1)[:size, :size].copy()
    return out


def _sketch(labels: np.ndarray, lut: np.ndarray, size: int, seed: int) -> np.ndarray:
    big = size * SCALE
    moved = labels.ravel()[_wobble(big, seed % BANK, 24, 0.0022)].reshape(big, big)
    paper = np.array((250, 248, 242.0))
    both = np.empty((256, 3))
    lut = lut.copy()
    lut[12:14] = ((56, 78, 190), (86, 106, 206))  # a night that pencils can draw
    grey = lut.mean(1, keepdims=True)
    for half, share in ((0, 0.42), (128, 0.88)):
        tint = paper * (1 - share) + lut * share
        faint = share * 0.55  # the background is lighter than the objects
        tint[:40] = paper * (1 - faint) + (0.75 * lut[:40] + 0.25 * grey[:40]) * faint
        both[half : half + 128] = tint
        for base in range(64, 128, 16):
            both[half + base + 2] = (62, 60, 66)
    both[41] = both[128 + 41] = (58, 56, 62)
    edges = np.zeros((big, big), np.uint8)
    area = _UNSPECKLED[moved]
    line = (area[:-2, :-2] != area[2:, 2:]) & (area[:-2, :-2] < 40) & (area[2:, 2:] < 40)
    edges[1:-1, 1:-1] = line
    both_u8 = _bytes(both)
    rgb = np.take(both_u8, moved | _hatch(big), axis=0)
    rgb[edges.astype(bool)] = (176, 174, 176)
    out = np.asarray(Image.fromarray(rgb).reduce(SCALE), np.float32)
    grain = _noise(size, size, 200 + seed % BANK)
    return _bytes(out + 3.5 * grain[..., None])


def _watercolour(labels: np.ndarray, lut: np.ndarray, size: int, seed: int) -> np.ndarray:
    big = size * SCALE
    moved = labels.ravel()[_wobble(big, seed % BANK, 14, 0.0055)].reshape(big, big)
    wash = lut * 0.80 + 255 * 0.20
    for base in range(64, 128, 16):  # wet edges instead of outlines
        wash[base + 2] = lut[base] * 0.62 + np.array((40, 34, 60)) * 0.2
    wash[41] = (66, 60, 78)
    image = Image.fromarray(np.take(_bytes(wash), moved, axis=0))
    image = image.filter(ImageFilter.BoxBlur(big / 190)).reduce(SCALE)
    out = np.asarray(image, np.float32)
    pigment = 0.55 * _noise(size, 7, 300 + seed % BANK) + 0.35 * _noise(size, 20, 310 + seed % BANK)
    grain = _noise(size, size, 320 + seed % BANK)
    # more water: nearer to the paper; less: deeper colour
    paper = np.array((253, 250, 243), np.float32)
    water = np.clip(0.10 + 0.17 * pigment, -0.12, 0.34)[..., None].astype(np.float32)
    return _bytes(out + (paper - out) * water + 2.5 * grain[..., None])


_PAINTERS = {"flat": _flat, "pixel": _pixel, "sketch": _sketch, "watercolour": _watercolour}


def paint(labels: np.ndarray, lut: np.ndarray, style: str, size: int, seed: int) -> np.ndarray:
    """Colour labels (below 128) in a style, uint8 [size, size, 3]."""
    return _PAINTERS[style](labels, lut, size, seed)
