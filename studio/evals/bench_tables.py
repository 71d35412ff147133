"""Tables and the plot of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studio.evals.tables import Table
from studio.kernels.bench.interleaved import CONTROL_HIGH, CONTROL_LOW
from studio.kernels.bench.timing import Timed


def kernels_table(rows: Sequence[Timed]) -> Table:
    """One row for every arm and bar. Ratios of a session whose control is out are not shown."""
    cells = []
    for row in rows:
        holds = CONTROL_LOW <= row.control <= CONTROL_HIGH
        errors = [None if value is None else f"{value:.1e}" for value in (row.error, row.plain_error)]
        cells.append(
            (
                row.op, row.size, row.dtype, row.arm, row.milliseconds, row.ratio if holds else None, row.reference,
                row.bar or None, row.verdict, row.control, *errors, row.bandwidth,
            )
        )  # fmt: skip
    return Table(
        title="Kernels",
        columns=("op", "size", "type", "arm", "ms", "ratio", "to", "bar", "kept", "control", "error", "plain's", "of copy"),
        rows=tuple(cells),
        notes=(
            "ratio: paired median of arms that take turns; none where the control (base against itself) is not in 0.97 to 1.03",
            "error: relative, against float64, ours and the plain path's; of copy: share of a copy's bandwidth",
        ),
    )


def draw_plot(bars: Sequence[tuple[str, float]], path: Path) -> None:
    """Horizontal bars of ratios, a line at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 0.24 * len(bars)))
    axes = figure.subplots()
    axes.barh([name for name, _ in bars], [ratio for _, ratio in bars], color="#4477aa")
    axes.invert_yaxis()
    axes.axvline(1.0, color="#cc3311", linewidth=1)
    axes.set_xlabel("time, as a share of the reference's")
    axes.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
