"""Line charts as hand-written SVG: no library, no script, sharp at any size, readable on light and dark pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 40
COLOURS = ("#4f6df5", "#e8743b", "#19a979", "#945ecf")

STYLE = """
.chart text{font:15px system-ui,sans-serif;fill:var(--muted,#667085)}
.chart .grid{stroke:var(--line,#d9dee8);stroke-width:1}
.chart .series{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.chart .faint{opacity:.28;stroke-width:1.2}
.chart .reference{stroke-dasharray:5 5;stroke-width:1.4;opacity:.85}
.chart .marker{stroke:var(--ink,#1d2433);stroke-width:1.2;stroke-dasharray:3 3}
.chart .marked{font-weight:600;fill:var(--ink,#1d2433)}
"""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: for the legend. points: (x, y), by x. colour: index into the palette.
        kind: "line"; "faint", a thin one behind (raw values); "reference", a dashed horizontal at the first point's y.
        dots: whether each point is marked and tells its value when pointed at.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    kind: str = "line"
    dots: bool = False


@dataclass(frozen=True)
class _Frame:
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    title: str,
    mark_x: float | None = None,
    mark_label: str = "",
    log_y: bool = False,
) -> str:
    """An `<svg>` element of all `series`, with a vertical mark at `mark_x`; points that aren't finite are left out.

    Args:
        log_y: a logarithmic axis, labelled with the values themselves; points that aren't above zero are left out.
    """
    finite = [[p for p in line.points if math.isfinite(p[0]) and math.isfinite(p[1])] for line in series]
    if log_y:
        finite = [[(x, math.log10(y)) for x, y in points if y > 0] for points in finite]
    everything = [point for points in finite for point in points]
    if not everything:
        return f'<svg class="chart" viewBox="0 0 {WIDTH} 60" role="img"><text x="20" y="35">{escape(title)}: no data</text></svg>'
    frame = _frame(everything, from_zero=not log_y)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(title)}</title>",
        *_axes(frame, x_label, log_y),
    ]
    if mark_x is not None:
        parts += _mark(frame, mark_x, mark_label)
    for line, points in zip(series, finite, strict=True):
        parts += _draw(frame, line, points, log_y)
    parts.append("</svg>")
    return "\n".join(parts)


def standalone(svg: str) -> str:
    """The same chart as a file of its own, with its style and a white ground."""
    head, rest = svg.split(">", 1)
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    style = re.sub(r"var\(--\w+,([^)]+)\)", r"\1", STYLE)  # plain viewers know no variables
    return f"{head}><style>{style}</style>{ground}{rest}\n"


def smoothed(points: Sequence[tuple[float, float]], memory: float) -> list[tuple[float, float]]:
    """A running mean with `memory` in [0, 1), without its early bias to the first value."""
    mean, weight, result = 0.0, 0.0, []
    for x, y in points:
        mean = memory * mean + (1 - memory) * y
        weight = memory * weight + (1 - memory)
        result.append((x, mean / weight))
    return result


def thinned(points: Sequence[tuple[float, float]], at_most: int = 600) -> list[tuple[float, float]]:
    """At most about `at_most` points, evenly, the last one included: a long run's page must not grow with it."""
    stride = max(1, math.ceil(len(points) / at_most))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten in [10^low, 10^high]; only of the powers over three decades and more."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [power + math.log10(factor) for power in powers for factor in factors]
    inside = [value for value in found if low - 1e-9 <= value <= high + 1e-9]
    return inside if len(inside) > 1 else nice_ticks(low, high)


def _frame(points: Sequence[tuple[float, float]], *, from_zero: bool = True) -> _Frame:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.08 if high > low else max(abs(high) * 0.1, 0.05)
    bottom = 0.0 if from_zero and 0 <= low < (high - low) * 0.5 else low - pad
    right = max(xs) if max(xs) > min(xs) else min(xs) + 1
    return _Frame(min(xs), right, bottom, high + pad)


def _axes(frame: _Frame, x_label: str, log_y: bool) -> list[str]:
    parts = []
    for value in log_ticks(frame.y0, frame.y1) if log_y else nice_ticks(frame.y0, frame.y1):
        y = frame.y(value)
        shown = 10**value if log_y else value
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown:.4g}</text>')
    for value in nice_ticks(frame.x0, frame.x1, 8):
        parts.append(f'<text x="{frame.x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:.4g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _mark(frame: _Frame, at: float, label: str) -> list[str]:
    x = frame.x(at)
    anchor = "end" if x > WIDTH * 0.7 else "start"
    offset = -6 if anchor == "end" else 6
    return [
        f'<line class="marker" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text class="marked" x="{x + offset:.1f}" y="{HEIGHT - BOTTOM - 8}" text-anchor="{anchor}">{escape(label)}</text>',
    ]


def _draw(frame: _Frame, line: Series, points: Sequence[tuple[float, float]], log_y: bool) -> list[str]:
    if not points:
        return []
    colour = COLOURS[line.colour % len(COLOURS)]
    if line.kind == "reference":
        y = frame.y(points[0][1])
        where = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        return [f'<line class="reference" stroke="{colour}" {where}><title>{escape(line.name)}</title></line>']
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    faint = " faint" if line.kind == "faint" else ""
    parts = [f'<polyline class="series{faint}" stroke="{colour}" points="{path}"/>']
    if line.dots:
        parts += [
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4" fill="{colour}">'
            f"<title>{escape(line.name)} at {x:g}: {10**y if log_y else y:.4g}</title></circle>"
            for x, y in points
        ]
    return parts
