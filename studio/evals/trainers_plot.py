"""The trade-off as a picture: how much was learned against how much of the prompts was kept, a cross per method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from studio.evals.statistics import Interval
from studio.training.report.chart import COLOURS, nice_ticks

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 48


@dataclass(frozen=True)
class Point:
    """One method: its interval on each axis."""

    name: str
    x: Interval
    y: Interval


def trade_off(points: Sequence[Point], *, x_label: str, y_label: str, x_bar: float, y_bar: float) -> str:
    """An `<svg>` element: a dot with its two 95 % intervals per point, and both bars as dashed lines.

    Points without finite figures are left out.
    """
    shown = [p for p in points if all(isfinite(v) for v in (p.x.low, p.x.high, p.y.low, p.y.high))]
    x0, x1 = _range([0.0, x_bar, *(v for p in shown for v in (p.x.low, p.x.high))])
    y0, y1 = _range([0.0, y_bar, *(v for p in shown for v in (p.y.low, p.y.high))])

    def x(value: float) -> float:
        return LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(y_label)} against {escape(x_label)}</title>",
    ]
    for value in nice_ticks(y0, y1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in nice_ticks(x0, x1, 7):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:.4g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT + 4}" y="{TOP - 6}">{escape(y_label)}</text>')
    parts.append(f'<line class="marker" x1="{x(x_bar):.1f}" x2="{x(x_bar):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<line class="marker" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(y_bar):.1f}" y2="{y(y_bar):.1f}"/>')
    for number, point in enumerate(shown):
        stroke = f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"'
        cx, cy = x(point.x.estimate), y(point.y.estimate)
        parts += [
            f'<line {stroke} x1="{x(point.x.low):.1f}" x2="{x(point.x.high):.1f}" y1="{cy:.1f}" y2="{cy:.1f}"/>',
            f'<line {stroke} x1="{cx:.1f}" x2="{cx:.1f}" y1="{y(point.y.low):.1f}" y2="{y(point.y.high):.1f}"/>',
            f'<circle {stroke} cx="{cx:.1f}" cy="{cy:.1f}" r="5" fill="#fff"><title>{_told(point)}</title></circle>',
            f'<text class="marked" x="{cx + 10:.1f}" y="{cy - 8:.1f}">{escape(point.name)}</text>',
        ]
    parts.append("</svg>")
    return "\n".join(parts)


def _told(point: Point) -> str:
    return escape(f"{point.name}: {point.x}, {point.y}")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) if high > low else 0.1
    return low - pad, high + pad
