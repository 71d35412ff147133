"""A batch as a job: the command line's own runner, in this process's group, which tells the job's folder how it gets on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.specs import BatchSpec
from studio.jobs.work.reporting import Reporter
from studio.library.library import Library
from studio.pipelines.errors import Interrupted, StudioError
from studio.pipelines.files import atomic_write_json
from studio.training.signals import catch_stop_signals

FOLDER_VARIABLE = "STUDIO_JOB_FOLDER"
"""Tells the runner which job's events.jsonl to add its progress to."""


def run_batch(folder: JobFolder, handed_in: HandedIn, device: str) -> dict[str, Any]:
    """Run `studio batch FILE` to its end; a document becomes a file in the job's folder.

    Raises:
        Interrupted: a signal asked to stop, and the runner was told. StudioError: it failed.
    """
    spec = handed_in.spec
    assert isinstance(spec, BatchSpec)
    file = spec.file
    if spec.document is not None:
        file = str(folder.path / "batch.json")
        atomic_write_json(Path(file), dict(spec.document))
    command = [sys.executable, "-m", "studio", "batch", str(file), "--output", str(handed_in.output_dir), "--device", device]
    command += ["--home", str(folder.home.root)]
    with catch_stop_signals() as stop:
        runner = subprocess.Popen(
            [*command, *spec.options], env={**os.environ, FOLDER_VARIABLE: str(folder.path)}, stdin=subprocess.DEVNULL
        )
        told = False
        while True:
            try:
                code = runner.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if stop and not told:
                    runner.terminate()
                    told = True
    if stop.signal_number is not None:
        raise Interrupted("the batch was stopped; it goes on where it was", stop.signal_number)
    if code != 0:
        raise StudioError(f"The batch ended with exit code {code}: {_last_line(folder.log)}")
    return {"facts": {"exit_code": code}}


class BatchReporter:
    """Progress of a batch as events of the job that it belongs to; what it makes is entered into the library."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._job = folder, folder.read_job()
        self._reporter = Reporter(folder)
        self._known = {str(event.data.get("path", "")) for event in folder.events()}
        self._library = Library(folder.home)

    @classmethod
    def of_environment(cls) -> BatchReporter | None:
        """The one for the job that this process works on; None if it works on none."""
        path = os.environ.get(FOLDER_VARIABLE)
        return cls(JobFolder(Path(path))) if path else None

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` requests."""
        self._reporter.progress(done, total)

    def made(self, path: Path, index: int) -> None:
        """Request number `index` has its picture or adapter at `path`. What was told before is not told again."""
        path = path.absolute()
        if str(path) in self._known:
            return
        self._known.add(str(path))
        owner, facts = self._job.submit.owner, {"job": self._job.id}
        if path.suffix == ".safetensors":
            item = self._library.add_adapter(path, owner=owner, facts=facts).item
            told = None if item is None else item.id
            self._folder.add_event("message", text=f"request {index}: its adapter is in the library", path=str(path), item=told)
            return
        item = self._library.add_picture(path, owner=owner, in_place=True, facts=facts).item
        self._reporter.picture(path, index, None if item is None else item.id)


def _last_line(log: Path) -> str:
    tail = JobFolder(log.parent).log_tail(1)
    return tail.strip() or "it printed nothing"
