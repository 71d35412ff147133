"""A batch file as a job: the command line's own runner, in this process's group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.specs import BatchSpec
from studio.pipelines.errors import Interrupted, StudioError
from studio.training.signals import catch_stop_signals

FOLDER_VARIABLE = "STUDIO_JOB_FOLDER"
"""Tells the runner which job's events.jsonl to add its progress to."""


def run_batch(folder: JobFolder, handed_in: HandedIn, device: str) -> dict[str, Any]:
    """Run `studio batch FILE` to its end.

    Raises:
        Interrupted: a signal asked to stop, and the runner was told. StudioError: it failed.
    """
    spec = handed_in.spec
    assert isinstance(spec, BatchSpec)
    command = [sys.executable, "-m", "studio", "batch", spec.file, "--output", str(handed_in.output_dir), "--device", device]
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


def _last_line(log: Path) -> str:
    tail = JobFolder(log.parent).log_tail(1)
    return tail.strip() or "it printed nothing"
