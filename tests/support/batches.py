"""Batches on a tiny base model, in processes that may be killed at any write."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from studio.batch.executors.local import LocalExecutor
from studio.batch.runner import BatchOptions, BatchOutcome, run_batch
from studio.batch.workshop import Workshop
from studio.pipelines.adapters import save_adapter
from tests.support.adapters import random_adapter
from tests.support.tiny_bases import tiny_embedded_dir
from tests.support.tiny_models import tiny_embedded

BATCH = """
defaults: {base: base, steps: 2, size: 32}
jobs:
  - {prompt: a cat, adapters: [one.safetensors], num_images: 3}
  - {prompt: a dog, adapters: ["two.safetensors:0.5"], num_images: 2, seed: 5}
  - {prompt: a boat, num_images: 2}
  - {prompt: a cat and a dog, num_images: 3, strategy: switch, entries: [{adapter: one.safetensors}, {adapter: two.safetensors}]}
"""


def write_batch(folder: Path, text: str = BATCH, name: str = "batch.yaml") -> Path:
    """A base model, two adapters and a batch file in `folder`; the batch file's path."""
    if not (folder / "base").exists():
        tiny_embedded_dir(folder / "base")
        model = tiny_embedded()
        for number, adapter in enumerate(("one", "two")):
            save_adapter(random_adapter(model, rank=2, seed=number), folder / f"{adapter}.safetensors")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def run(file: Path, output: Path, **options: Any) -> BatchOutcome:
    """Run a batch in this process, on one thread, in groups of four."""
    settings = {"batch_size": 4, "threads": 1, "reports": False, **options}
    return run_batch(
        BatchOptions(file=file, output=output, **settings), lambda settings: LocalExecutor(Workshop(settings.device)), argv=()
    )


def pictures(folder: Path) -> dict[str, bytes]:
    """Every picture and sidecar by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*-*"))}


def run_killed(file: Path, output: Path, point: int) -> int:
    """Run a batch in a process of its own that kills itself at write point number `point`; its exit code, -9 or 0.

    A write point is before and after each flush to the disk and each renaming.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.batches", "studio.composition.strategies", "studio.workflows.compose"])
    child = context.Process(target=_run_and_die, args=(str(file), str(output), point))
    child.start()
    child.join(120)
    assert child.exitcode is not None, "it hangs"
    return child.exitcode


def run_and_signal(arguments: Sequence[str], number: signal.Signals, until: Callable[[], bool]) -> int | None:
    """The exit code of the `studio` command in a process of its own that gets a signal as soon as `until` says so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.batches", "studio.composition.strategies", "studio.workflows.compose"])
    child = context.Process(target=_command, args=(list(arguments),))
    child.start()
    deadline = time.monotonic() + 100
    while not until() and child.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.pid is not None
    os.kill(child.pid, number)
    child.join(100)
    return child.exitcode


def _command(arguments: list[str]) -> None:
    from studio.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server's children pass it over
    main(arguments)


def _run_and_die(file: str, output: str, point: int) -> None:
    passed = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments)
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    os.replace = deadly(os.replace)  # type: ignore[assignment]
    os.fsync = deadly(os.fsync)  # type: ignore[assignment]
    run(Path(file), Path(output))
