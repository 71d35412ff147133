"""`studio bench`: how quick it is, and what it costs, beside the usual libraries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from studio.evals.tables import Table

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Time the kernels, the adapters in a model, and a training step."
)

Output = Annotated[Path, typer.Option(help="Folder of the table (.txt, .csv, .json), the plot and the raw records.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often the arms take turns.")]
Check = Annotated[bool, typer.Option("--check", help="Describe the machine and its noise, and measure nothing else.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command("kernels")
def kernels_command(
    output: Output = Path("outputs/bench/kernels"),
    rounds: Rounds = 9,
    device: Device = "cpu",
    dtypes: Annotated[str, typer.Option(help="Types, with commas between them.")] = "float32,bfloat16",
    only: Annotated[str, typer.Option(help="Ops whose name contains this.")] = "",
    check: Check = False,
    tune: Annotated[bool, typer.Option("--tune", help="Write the quickest path of every size into the committed table.")] = False,
) -> None:
    """Each op against its plain path, with its error against float64.

    The same with torch alone: python -m studio.kernels.bench
    """
    import torch

    from studio.kernels.bench import timing

    place = _prepared(device)
    if check:
        _check(place)
        return
    types = [getattr(torch, name) for name in dtypes.split(",")]
    if tune:
        lines = timing.tune(place, types, timing.table_path(), rounds)
        typer.echo(f"{len(lines)} lines of {timing.table_path()} written.")
    rows, raw = timing.time_cases(place, types, rounds=rounds, only=only, on_case=_say)
    from studio.evals.bench_tables import kernels_table

    timing.write_records(output, "raw", place, rows, raw)
    _write(kernels_table(rows), output, "kernels", [(f"{r.op} {r.size} {r.dtype}: {r.arm}", r.ratio) for r in rows])


@app.command("pipelines")
def pipelines_command(
    output: Output = Path("outputs/bench/pipelines"),
    rounds: Rounds = 9,
    counts_only: Annotated[bool, typer.Option("--counts", help="Only count, at SDXL's full size; reads no clock.")] = False,
    full_size: Annotated[bool, typer.Option("--full-size/--no-full-size", help="Also switch at SD1.5's size (3.5 GB).")] = True,
    check: Check = False,
) -> None:
    """Adapters in a whole UNet: counted at SDXL's full size, timed at a small one, beside PEFT."""
    import torch

    from studio.evals import bench_pipelines, counted
    from studio.kernels.bench.timing import machine
    from studio.pipelines.files import atomic_write_json

    place = _prepared("cpu")
    if check:
        _check(place)
        return
    _write(counted.counted_table(counted.counted_rows()), output, "counted", [])
    if counts_only:
        return
    rows: list[tuple[Any, ...]] = []
    raw: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        more, sessions = bench_pipelines.time_unet(dtype, rounds=rounds, say=_say)
        rows += more
        raw += sessions
    more, kept = bench_pipelines.time_embedded(rounds, 3, _say)
    rows += more
    raw += [{"what": "embedded", "seconds": dict(session.seconds)} for session in kept]
    if full_size:
        rows += bench_pipelines.time_switching(rounds)
    atomic_write_json(output / "raw.json", {"schema": 1, "machine": machine(place), "sessions": raw})
    bars = [(str(row[0]), float(row[1])) for row in rows if isinstance(row[1], float)]
    _write(bench_pipelines.pipelines_table(rows), output, "pipelines", bars)


@app.command("gpu")
def gpu_command(output: Output = Path("outputs/bench/gpu"), rounds: Rounds = 9, check: Check = False) -> None:
    """SDXL and SD1.5 at full size on a GPU: eager, CUDA graphs, PEFT; then each op, with LyCORIS' kernels where these are."""
    import torch

    from studio.evals.bench_gpu import FULL, gpu_rows
    from studio.evals.bench_tables import kernels_table
    from studio.kernels.bench import timing

    place = _prepared("cuda")
    if check:
        _check(place)
        return
    rows = list(gpu_rows(place, sizes=replace(FULL, rounds=rounds), say=_say))
    timed, raw = timing.time_cases(place, [torch.bfloat16, torch.float16], rounds=rounds, on_case=_say)
    rows += timed
    timing.write_records(output, "raw", place, rows, raw)
    _write(kernels_table(rows), output, "gpu", [(f"{r.op} {r.size} {r.dtype}: {r.arm}", r.ratio) for r in rows])


@app.command("training")
def training_command(output: Output = Path("outputs/bench/training"), rounds: Rounds = 15, check: Check = False) -> None:
    """A training step against diffusers' and PEFT's."""
    from studio.evals.peers import run_bench

    place = _prepared("cpu")
    if check:
        _check(place)
        return
    table = run_bench(output, rounds=rounds)
    _write(table, output, "training", [(f"{row[0]} / {row[1]}", float(str(row[2]))) for row in table.rows])


def _prepared(device: str) -> Any:
    import torch

    from studio.pipelines.errors import UserError

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("There is no CUDA device here. Use --device cpu.")
    if not device.startswith(("cpu", "cuda")):
        raise UserError(f"The benchmarks run on cpu or cuda, not on {device!r}.")
    if device == "cpu":
        torch.set_num_threads(1)
    return torch.device(device)


def _check(device: Any) -> None:
    """Describe the machine; exit code 1 if its noise is too large for ratios."""
    from studio.kernels.bench.timing import is_quiet, machine, noise

    for name, value in machine(device).items():
        typer.echo(f"{name:8} {value}")
    session = noise(device)
    typer.echo(
        f"control  {session.control} (paired median | sums | minima of one product against itself; 0.97 to 1.03 is allowed)"
    )
    if not is_quiet(session):
        typer.echo("This machine is too busy now: ratios measured here would mean nothing.")
        raise typer.Exit(1)


def _write(table: Table, output: Path, name: str, bars: list[tuple[str, float]]) -> None:
    from studio.evals.bench_tables import draw_plot
    from studio.evals.tables import write_table

    write_table(table, output, name)
    if bars:
        draw_plot(bars, output / f"{name}.png")
    typer.echo(table.text())


def _say(line: str) -> None:
    typer.echo(line, err=True)
