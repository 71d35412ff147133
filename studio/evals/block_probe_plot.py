"""The probe as a picture: what each stack decides, and the best pair among random ones."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studio.evals.block_probe_result import ProbeResult
from studio.evals.statistics import Interval
from studio.pipelines.files import atomic_write_bytes

CONTENT_COLOUR, STYLE_COLOUR, RANDOM_COLOUR = "#3465a4", "#c17d11", "#888888"


def plot_probe(result: ProbeResult, path: Path) -> None:
    """Write a PNG: on the left the single stacks from input to output, on the right the pairs."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _singles(left, result)
    _pairs(right, result)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": ""})
    atomic_write_bytes(path, data.getvalue())


def _singles(axes: Axes, result: ProbeResult) -> None:
    for offset, name, colour in ((-0.12, "content", CONTENT_COLOUR), (0.12, "style", STYLE_COLOUR)):
        intervals: list[Interval] = [getattr(effect, name) for effect in result.singles]
        _points(axes, [place + offset for place in range(len(intervals))], intervals, colour, name)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(result.singles)), [_short(effect.stack) for effect in result.singles], fontsize=8)
    axes.set_ylabel("share of the way to its prompt")
    axes.set_title("One stack reads another prompt", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _pairs(axes: Axes, result: ProbeResult) -> None:
    _points(axes, [0.0], [result.best.separation], CONTENT_COLOUR if result.separates else "#cc0000", "best")
    ordered = sorted(result.controls, key=lambda effect: -effect.separation.estimate)
    places = [2.0 + index for index in range(len(ordered))]
    _points(axes, places, [effect.separation for effect in ordered], RANDOM_COLOUR, "random")
    axes.axhline(0.0, color="black", linewidth=0.8)
    best = result.best
    label = f"best:\n{_short(best.content_stack)} content\n{_short(best.style_stack)} style"
    axes.set_xticks([0.0, 2.0 + (len(ordered) - 1) / 2], [label, f"{len(ordered)} random pairs"], fontsize=8)
    axes.set_ylabel("separation")
    axes.set_title("separates" if result.separates else "no separation", fontsize=10)


def _points(axes: Axes, places: list[float], intervals: list[Interval], colour: str, label: str) -> None:
    middle = [interval.estimate for interval in intervals]
    lows = [interval.estimate - interval.low for interval in intervals]
    highs = [interval.high - interval.estimate for interval in intervals]
    axes.errorbar(places, middle, yerr=[lows, highs], fmt="o", color=colour, capsize=2, markersize=4, label=label)


def _short(stack: str) -> str:
    """`up_blocks.0.attentions.1` as `up0.1`."""
    return stack.replace("_blocks.", "").replace("_block", "").replace(".attentions", "")
