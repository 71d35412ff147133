"""`python -m studio.kernels.bench`: the table of the kernels with torch alone, for a GPU machine without the rest."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from studio.kernels.bench.timing import Timed, machine, noise, table_path, time_cases, tune, write_records


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write `kernels.json` into the folder."""
    parser = argparse.ArgumentParser(prog="python -m studio.kernels.bench", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", default="", help="such as float32,bfloat16; by default what the device is used with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/kernels"))
    parser.add_argument("--tune", action="store_true", help="also write the quickest path of every size into the table")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    usual = "bfloat16,float16,float32" if device.type == "cuda" else "float32,bfloat16"
    dtypes = [getattr(torch, name) for name in (options.dtypes or usual).split(",")]
    if device.type == "cpu":
        torch.set_num_threads(1)
    print(", ".join(f"{name} {value}" for name, value in machine(device).items()))
    control = noise(device).control.paired
    print(f"control {control:.3f}: one product against itself")
    if options.tune:
        print(f"{len(tune(device, dtypes, table_path(), options.rounds))} lines of {table_path().name} written")
    rows, raw = time_cases(
        device, dtypes, rounds=options.rounds, only=options.only, on_case=lambda line: print(line, file=sys.stderr)
    )
    print(text_table(rows))
    print(write_records(options.output, "kernels", device, rows, raw))


def text_table(rows: list[Timed]) -> str:
    """Aligned plain text."""
    heads = ("op", "size", "type", "arm", "ms", "ratio", "to", "bar", "kept", "control", "error", "plain's", "of copy")
    lines: list[tuple[str, ...]] = [heads]
    for row in rows:
        numbers = [f"{value:.1e}" if value is not None else "–" for value in (row.error, row.plain_error)]
        share = "–" if row.bandwidth is None else f"{row.bandwidth:.2f}"
        lines.append(
            (
                row.op, row.size, row.dtype, row.arm, f"{row.milliseconds:.3f}", f"{row.ratio:.3f}", row.reference,
                row.bar or "–", row.verdict, f"{row.control:.3f}", *numbers, share,
            )
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


if __name__ == "__main__":
    main()
