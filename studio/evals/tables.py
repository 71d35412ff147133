"""A table of figures, printed for people and written as CSV and JSON for machines."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TypeAlias

from studio.evals.statistics import Interval

Cell: TypeAlias = str | int | float | Interval | None


@dataclass(frozen=True)
class Table:
    """Named columns and rows of cells; an `Interval` is one cell in print and three columns in CSV."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells for {len(self.columns)} columns in {self.title!r}")

    def text(self) -> str:
        """The table in aligned plain text, title above and notes below."""
        grid = [self.columns, *self.printed_rows()]
        widths = [max(len(line[column]) for line in grid) for column in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in grid]
        rule = "  ".join("-" * width for width in widths)
        body = "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:]])
        return "\n".join([self.title, body, *self.notes]) + "\n"

    def printed_rows(self) -> list[tuple[str, ...]]:
        """The rows as a person reads them."""
        return [tuple(_print(cell) for cell in row) for row in self.rows]

    def csv(self) -> str:
        """Comma-separated text; a column that holds intervals becomes `name`, `name_low`, `name_high`, `name_num`."""
        with_interval = [any(isinstance(row[column], Interval) for row in self.rows) for column in range(len(self.columns))]
        header: list[str] = []
        for name, wide in zip(self.columns, with_interval, strict=True):
            header += [name, f"{name}_low", f"{name}_high", f"{name}_num"] if wide else [name]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        for row in self.rows:
            cells: list[str | int | float | None] = []
            for cell, wide in zip(row, with_interval, strict=True):
                cells += _csv_cells(cell, wide)
            writer.writerow(cells)
        return out.getvalue()

    def json(self) -> str:
        """The table as JSON: title, notes, and one object a row."""
        rows = [{name: _jsonable(cell) for name, cell in zip(self.columns, row, strict=True)} for row in self.rows]
        return json.dumps({"title": self.title, "notes": self.notes, "rows": rows}, indent=1, ensure_ascii=False) + "\n"


def write_table(table: Table, folder: Path, name: str) -> None:
    """Write `<name>.txt`, `<name>.csv` and `<name>.json` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("txt", table.text()), ("csv", table.csv()), ("json", table.json())):
        (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")


def _print(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Interval) and isnan(cell.estimate):
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return str(cell)


def _csv_cells(cell: Cell, wide: bool) -> list[str | int | float | None]:
    if isinstance(cell, Interval):
        return [cell.estimate, cell.low, cell.high, cell.num]
    return [cell, None, None, None] if wide else [cell]


def _jsonable(cell: Cell) -> object:
    if isinstance(cell, Interval):
        return {"estimate": cell.estimate, "low": cell.low, "high": cell.high, "num": cell.num}
    return cell
