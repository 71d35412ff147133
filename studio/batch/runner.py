"""A batch from its file to its report: expand, find what is done, do the rest, and write down every step of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from studio import __version__
from studio.batch.executors import Executor
from studio.batch.expansion import Expanded, axis_keys, expand
from studio.batch.folder import BatchFolder, Shard
from studio.batch.groups import plan_groups
from studio.batch.reading import BatchFile, read_batch
from studio.batch.resolving import AnyTask, Refused, Resolver
from studio.batch.tasks import GroupTask, PictureTask, TrainTask
from studio.batch.things import Things
from studio.batch.work import Outcome, Work
from studio.batch.workshop import Workshop
from studio.kernels.packed_layers import packs_layers
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import Cancelled, ConfigError, Interrupted, StudioError
from studio.pipelines.files import atomic_write_bytes
from studio.training.signals import StopRequest, catch_stop_signals

DEFAULT_BATCH_SIZE = 8
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")

Progress = Callable[[int, int], None]
Made = Callable[[AnyTask, Path], None]
"""Is told of each task that is done, now or before, and of its picture or adapter."""

MakeExecutor = Callable[["Settings"], Executor]


@dataclass(frozen=True)
class Settings:
    """What decides a picture's last bits, and is kept in the manifest: a batch goes on as it was begun.

    Attributes:
        packs: whether weights may be laid out anew for a CPU. Where that cannot be done, records say how pictures were drawn.
    """

    batch_size: int = DEFAULT_BATCH_SIZE
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    packs: bool = True


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is run. None for what was said when it was begun, or else the default.

    Attributes:
        resume: leave alone what is done; otherwise all is drawn anew. only_failed: only what failed the last time.
        limit: pictures and trainings of this run at the most.
        fields: stronger than what the file says.
        home: of the library whose ids may stand for files; by default the studio's own.
    """

    file: Path
    output: Path
    resume: bool = True
    only_failed: bool = False
    limit: int | None = None
    shard: Shard = (1, 1)
    continue_on_error: bool = False
    batch_size: int | None = None
    dtype: str | None = None
    default_dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    packs: bool | None = None
    adapters_dirs: tuple[Path, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    reports: bool = True
    scorer: str | None = None
    home: Path | None = None


@dataclass(frozen=True)
class Planned:
    """A batch before anything is done.

    Attributes:
        tasks: one for each different request. ids: request's index -> its task's id; equal requests have one.
    """

    batch: BatchFile
    requests: list[Expanded]
    tasks: list[AnyTask]
    ids: Mapping[int, str]
    refused: list[Refused]
    groups: list[GroupTask]
    settings: Settings

    def places(self) -> dict[str, tuple[AnyTask, int, int]]:
        """Task id -> (task, group, row)."""
        return {task.id: (task, group.index, row) for group in self.groups for row, task in enumerate(group.tasks)}


@dataclass
class BatchOutcome:
    """How a batch ended. `failed`: place in the file or title -> a sentence."""

    total: int = 0
    done_before: int = 0
    done_now: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def plan_batch(options: BatchOptions) -> Planned:
    """Read, expand, resolve and group; nothing is written and no model is loaded, only adapters.

    Raises:
        StudioError: something in the file is wrong, and errors are not to be passed over.
    """
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"The batch size should be 1 or more, not {options.batch_size}.")
    batch = read_batch(options.file, options.fields)
    requests = expand(batch)
    settings = _settings(options)
    resolver = Resolver([batch.folder, Path(), *options.adapters_dirs], settings.dtype, Things(options.home))
    tasks, refused = resolver.resolve(requests)
    if refused and not options.continue_on_error:
        raise refused[0].error
    workshop = Workshop()
    by_adapters: dict[tuple[Any, ...], str | None] = {}

    def layers_of(task: PictureTask) -> str | None:
        key = tuple(part.key() for part in task.adapters)
        if key not in by_adapters:
            by_adapters[key] = workshop.layers_of(task)
        return by_adapters[key]

    kept: list[AnyTask] = []
    for task in tasks:
        try:
            if isinstance(task, PictureTask):
                layers_of(task)
            kept.append(task)
        except StudioError as error:
            told = type(error)(f"{requests[task.index].where}: {error}")
            if not options.continue_on_error:
                raise told from error
            refused.append(Refused(requests[task.index], told))
    ids = {task.index: task.id for task in kept}
    different = list({task.id: task for task in reversed(kept)}.values())[::-1]
    groups = plan_groups(different, settings.batch_size, layers_of)
    groups = [group.model_copy(update={"packs": settings.packs}) for group in groups]
    return Planned(batch, requests, different, ids, refused, groups, settings)


def run_batch(
    options: BatchOptions,
    make_executor: MakeExecutor,
    *,
    on_progress: Progress | None = None,
    on_made: Made | None = None,
    argv: Sequence[str] | None = None,
) -> BatchOutcome:
    """Run a batch, or go on with it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; what was finished is kept.
        StudioError: the file is wrong, the folder cannot be used, or a picture failed and errors are not to be passed over.
    """
    planned = plan_batch(options)
    folder = BatchFolder(options.output, options.shard)
    with folder.locked(), catch_stop_signals() as stop:
        if options.shard == (1, 1):
            folder.clean()
        started = time.monotonic()
        _use_threads(planned.settings.threads)
        folder.write_jobs(_job_lines(planned))
        manifest = _manifest(options, planned, argv)
        folder.write_manifest(manifest)
        outcome = _work(options, planned, folder, make_executor, stop, on_progress, on_made)
        outcome.seconds = time.monotonic() - started
        if options.reports:
            write_batch_reports(planned, options)
        folder.write_manifest(manifest | {"ended": _now(), "totals": _totals(outcome)})
    return outcome


def write_batch_reports(planned: Planned, options: BatchOptions) -> None:
    """Sheets, scores and page of all that is done in the folder, by whichever shard."""
    from studio.batch.reports import write_reports

    write_reports(planned, BatchFolder(options.output), axis_keys(planned.batch), options.scorer)


def _work(
    options: BatchOptions,
    planned: Planned,
    folder: BatchFolder,
    make_executor: MakeExecutor,
    stop: StopRequest,
    on_progress: Progress | None,
    on_made: Made | None,
) -> BatchOutcome:
    outcome = BatchOutcome(total=len(planned.tasks) + len(planned.refused))
    done = folder.done(planned.tasks) if options.resume or options.only_failed else {}
    outcome.done_before = len(done)
    for task in planned.tasks:
        if on_made is not None and task.id in done:
            on_made(task, done[task.id])
    for refused in planned.refused:
        outcome.failed[refused.expanded.where] = str(refused.error)
    folder.append(_refused_lines(planned.refused))
    work = _chosen(options, planned.groups, folder, done)
    count = sum(len(piece.wanted) for piece in work)
    if not work:
        return outcome
    executor = make_executor(planned.settings)
    try:
        for result in executor.run(work, lambda: bool(stop)):
            for task, path in _keep(result, folder, outcome):
                if on_made is not None:
                    on_made(task, path)
            if on_progress is not None:
                on_progress(outcome.done_now + len(outcome.failed) - len(planned.refused), count)
            if result.failures and not options.continue_on_error:
                task_id, sentence = next(iter(result.failures.items()))
                where = next(planned.requests[task.index].where for task in planned.tasks if task.id == task_id)
                raise StudioError(
                    f"{where}: {sentence} What was finished is kept; --continue-on-error passes over such requests."
                )
            if stop:
                raise Cancelled("Stopped after a group.")
    except Cancelled as error:
        raise Interrupted(
            f"Interrupted after {outcome.done_now} of {count}; the same command goes on there.", stop.signal_number or 2
        ) from error
    return outcome


def _chosen(options: BatchOptions, groups: Sequence[GroupTask], folder: BatchFolder, done: Mapping[str, Path]) -> list[Work]:
    """The work of this run: this shard's share of the groups, without what is done, up to the limit."""
    number, count = options.shard
    share = groups[(number - 1) * len(groups) // count : number * len(groups) // count]
    failed = {key for key, line in folder.outcomes().items() if line.get("state") == "failed"} if options.only_failed else None
    left = options.limit
    found = []
    seen: set[str] = set(done)
    for group in share:
        wanted: list[str] = []
        for task in group.tasks:
            if task.id not in seen and (failed is None or task.id in failed) and (left is None or len(wanted) < left):
                wanted.append(task.id)
                seen.add(task.id)
        if wanted:
            first = group.tasks[0]
            place = str(folder.place_of(first)) if isinstance(first, TrainTask) else ""
            found.append(Work(group, frozenset(wanted), place))
            left = None if left is None else left - len(wanted)
        if left == 0:
            break
    return found


def _keep(result: Outcome, folder: BatchFolder, outcome: BatchOutcome) -> list[tuple[AnyTask, Path]]:
    """Write what came of a piece of work, and then that it is there; what is done now, and where."""
    tasks = {task.id: task for task in result.work.group.tasks}
    lines: list[dict[str, Any]] = []
    made: list[tuple[AnyTask, Path]] = []
    each = result.seconds / max(1, len(result.work.group.tasks))
    for drawn in result.pictures:
        task = tasks[drawn.task_id]
        made.append((task, folder.save(task, drawn.data, drawn.record)))
        lines.append(_line(task, "done", each) | {"file": made[-1][1].name})
    for name, data in result.files.items():
        atomic_write_bytes(Path(result.work.folder) / name, data)
    if result.adapter is not None:
        first = result.work.group.tasks[0]
        made.append((first, result.adapter))
        lines.append(_line(first, "done", result.seconds) | {"file": str(result.adapter.relative_to(folder.path))})
    for task_id, sentence in result.failures.items():
        lines.append(_line(tasks[task_id], "failed", 0.0) | {"error": sentence})
        outcome.failed[tasks[task_id].title] = sentence
    outcome.done_now += len(made)
    folder.append(lines)
    return made


def _line(task: AnyTask, state: str, seconds: float) -> dict[str, Any]:
    return {"id": task.id, "index": task.index, "state": state, "seconds": round(seconds, 4), "time": _now()}


def _refused_lines(refused: Sequence[Refused]) -> list[dict[str, Any]]:
    return [
        {"index": each.expanded.index, "state": "refused", "where": each.expanded.where, "error": str(each.error), "time": _now()}
        for each in refused
    ]


def _job_lines(planned: Planned) -> list[dict[str, Any]]:
    """The expansion, for people and reports: each request's id, group, place on the axes."""
    places = planned.places()
    lines = []
    for request in planned.requests:
        line: dict[str, Any] = {"index": request.index, "where": request.where, "axes": dict(request.axes)}
        if request.index in planned.ids:
            task, group, row = places[planned.ids[request.index]]
            line |= {"id": task.id, "kind": task.kind, "title": task.title, "seed": task.seed, "group": group, "row": row}
        lines.append(line)
    return lines


def _settings(options: BatchOptions) -> Settings:
    """As asked for, else as the batch was begun, else by default."""
    import torch

    begun = BatchFolder(options.output, options.shard).read_manifest().get("settings", {}) if options.resume else {}

    def chosen(asked: Any, name: str, default: Any) -> Any:
        return asked if asked is not None else begun.get(name, default)

    return Settings(
        batch_size=chosen(options.batch_size, "batch_size", DEFAULT_BATCH_SIZE),
        dtype=chosen(options.dtype, "dtype", options.default_dtype),
        device=options.device,
        threads=chosen(options.threads, "threads", torch.get_num_threads()),
        # A batch that says nothing of it was begun before there was such a thing.
        packs=chosen(options.packs, "packs", not begun and packs_layers()),
    )


def _use_threads(count: int) -> None:
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _manifest(options: BatchOptions, planned: Planned, argv: Sequence[str] | None) -> dict[str, Any]:
    settings = planned.settings
    return {
        "name": planned.batch.name,
        "file": options.file.name,
        "file_sha256": file_sha256(options.file),
        "argv": list(sys.argv[1:] if argv is None else argv),
        "settings": {
            "batch_size": settings.batch_size,
            "dtype": settings.dtype,
            "device": settings.device,
            "threads": settings.threads,
            "packs": settings.packs,
        },
        "requests": len(planned.requests),
        "groups": len(planned.groups),
        "version": __version__,
        "packages": {name: version(name) for name in _PACKAGES},
        "processors": os.cpu_count(),
        "begun": _now(),
    }


def _totals(outcome: BatchOutcome) -> dict[str, Any]:
    return {
        "requests": outcome.total,
        "done_before": outcome.done_before,
        "done_now": outcome.done_now,
        "failed": len(outcome.failed),
        "seconds": round(outcome.seconds, 3),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
