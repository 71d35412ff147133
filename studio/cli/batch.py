"""`studio batch`: many requests from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli.drawing import Precision, placement, progress, say, use_attention
from studio.cli.drawing_options import Attention
from studio.cli.jobs_options import Home
from studio.pipelines.errors import UserError

if TYPE_CHECKING:
    from studio.batch.executors import Executor
    from studio.batch.resolving import AnyTask
    from studio.batch.runner import BatchOptions, BatchOutcome, Planned, Settings

_SHARD = re.compile(r"(\d+)/(\d+)")
EXECUTORS = ("local", "ray", "slurm")


def batch(
    file: Annotated[
        Path,
        typer.Argument(help="Requests: .txt (a prompt a line, with flags), .csv, .jsonl, .yaml or .json.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; outputs/ and the file's name by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--force", help="Leave alone what is done, or do all anew.")] = True,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Only what failed the last time.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures of this run at the most.", show_default=False)] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="One of N parts, for N GPUs or machines with one folder.")] = "1/1",
    continue_on_error: Annotated[
        bool, typer.Option("--continue-on-error", help="Pass over what fails; the exit code is 1 in the end.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of all pictures: steps=20.", show_default=False),
    ] = None,
    adapters_dir: Annotated[
        list[Path] | None, typer.Option(help="A folder to look for adapters in, besides the file's own.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures drawn at once; 8, or as the batch was begun.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    dtype: Annotated[
        Precision | None, typer.Option(help="Type of the weights; as the batch was begun, or auto.", show_default=False)
    ] = None,
    attention: Attention = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; torch's own number, or as the batch was begun.", show_default=False)
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Score the pictures: guide, judge or a folder with CLIP.", show_default=False)
    ] = None,
    executor: Annotated[str, typer.Option(help="Where it is done: local, ray or slurm.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Tasks at a time, with ray; jobs, with slurm.")] = 2,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; by default one of this machine alone is started.", show_default=False)
    ] = None,
    slurm_folder: Annotated[
        Path | None, typer.Option(help="For the logs of SLURM's jobs; by default in the output.", show_default=False)
    ] = None,
    home: Home = None,
) -> None:
    """Draw, compose and train what a file says; go on where it stopped.

    The file may have defaults, lists of values taken all with all, wildcards; see docs/batch.md. Pictures are drawn in groups,
    also of different adapters, in the order that loads the fewest models. Beside them are the manifest run.json, results.jsonl,
    contact sheets, a report index.html and, with --scorer, scores.csv. Whatever stops it, the same command goes on, and the
    pictures are those of an undisturbed run, byte for byte.

    Examples:

      studio batch prompts.txt --set steps=20

      studio batch grid.yaml --dry-run

      studio batch grid.yaml --shard 2/4 --device cuda:1
    """
    from studio.batch.runner import BatchOptions

    if executor not in EXECUTORS:
        raise UserError(f"There is no executor {executor!r}; there are: {', '.join(EXECUTORS)}.")
    use_attention(attention)
    place, weights = _placement(device, Precision.AUTO if dtype is None else dtype, is_here=executor == "local")
    options = BatchOptions(
        file=file,
        output=Path("outputs") / file.stem if output is None else output,
        resume=resume,
        only_failed=only_failed,
        limit=limit,
        shard=_shard(shard),
        continue_on_error=continue_on_error,
        batch_size=batch_size,
        dtype=None if dtype is None else weights,
        default_dtype=weights,
        device=place,
        threads=threads,
        adapters_dirs=tuple(adapters_dir or ()),
        fields=_fields(set_ or []),
        scorer=scorer,
        home=home,
    )
    if dry_run:
        from studio.batch.runner import plan_batch

        _print_plan(plan_batch(options), options)
        return
    if executor == "slurm":
        from studio.batch.executors.slurm import run_on_slurm

        outcome = run_on_slurm(options, num_jobs=workers, log_dir=slurm_folder)
    else:
        outcome = _run(options, executor, workers, address)
    _tell(outcome, options)


def _placement(device: str, precision: Precision, *, is_here: bool) -> tuple[str, str]:
    """The device's name and the type of the weights. Other machines may have devices that this one lacks."""
    if is_here:
        place, weights = placement(device, precision)
        return str(place), str(weights).removeprefix("torch.")
    name = "cpu" if device == "auto" else device
    automatic = "bfloat16" if name.startswith("cuda") else "float32"
    return name, automatic if precision is Precision.AUTO else precision.value


def _run(options: BatchOptions, executor: str, workers: int, address: str | None) -> BatchOutcome:
    from studio.batch.runner import run_batch
    from studio.jobs.work.batch import BatchReporter

    def make(settings: Settings) -> Executor:
        if executor == "ray":
            from studio.batch.executors.ray_cluster import RayExecutor

            return RayExecutor(settings, num_workers=workers, address=address)
        from studio.batch.executors.local import LocalExecutor
        from studio.batch.workshop import Workshop

        return LocalExecutor(Workshop(settings.device))

    reporter = BatchReporter.of_environment()
    with progress() as on_step:

        def on_progress(done: int, total: int) -> None:
            on_step(done, total)
            if reporter is not None:
                reporter.progress(done, total)

        def on_made(task: AnyTask, path: Path) -> None:
            if reporter is not None:
                reporter.made(path, task.index)

        return run_batch(options, make, on_progress=on_progress, on_made=on_made)


def _tell(outcome: BatchOutcome, options: BatchOptions) -> None:
    say(f"{outcome.done_now} done, {outcome.done_before} were done before, {len(outcome.failed)} failed, {outcome.seconds:.1f} s")
    for where, sentence in outcome.failed.items():
        say(f"failed: {where}: {sentence}" if not sentence.startswith(where) else f"failed: {sentence}")
    typer.echo(options.output / "index.html")
    if outcome.failed:
        raise typer.Exit(1)


def _print_plan(planned: Planned, options: BatchOptions) -> None:
    from studio.batch.folder import BatchFolder

    done = BatchFolder(options.output, options.shard).done(planned.tasks) if options.resume else {}
    for task in sorted(planned.tasks, key=lambda task: task.index):
        axes = ", ".join(f"{key}={value}" for key, value in planned.requests[task.index].axes.items())
        mark = "done" if task.id in done else "    "
        typer.echo(
            f"{task.index:05d} {mark} {task.id[:8]} {task.kind:8} seed {task.seed} {task.title}{f' ({axes})' if axes else ''}"
        )
    for refused in planned.refused:
        say(f"refused: {refused.error}")
    bases = {task.base.content_hash for task in planned.tasks}
    same = len(planned.ids) - len(planned.tasks)
    say(
        f"{len(planned.tasks)} to do, {len(done)} of them done; {len(planned.groups)} groups of at most "
        f"{planned.settings.batch_size}, {len(bases)} base models{f'; {same} are asked for twice' if same else ''}"
    )


def _shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text!r} should be a number of how many, such as 2/4.")
    return int(match[1]), int(match[2])


def _fields(texts: Sequence[str]) -> dict[str, Any]:
    import yaml

    fields = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r} should be FIELD=VALUE, such as steps=20.")
        try:
            fields[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text!r}: the value cannot be read; put quotes around a text.") from error
    return fields
