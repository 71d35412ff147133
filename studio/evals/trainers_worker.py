"""One training in a process of its own, so that its memory and CPU time are its own: `python -m studio.evals.trainers_worker`.

Reads a job (JSON: settings, and where to write the measurement), trains, and tells on standard output, a line
`step TOTAL` each half second, how far it is.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from studio.pipelines.errors import StudioError
from studio.pipelines.files import atomic_write_json
from studio.training.config import load_config
from studio.training.progress import StepReport

TELL_EVERY_SECONDS = 0.5


class StepWatch:
    """A `Progress` that measures the CPU and wall seconds of every step and passes on where the run is.

    Samples and checkpoints fall between two steps. They make few gaps long, which the median does not see.
    """

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.done_before = 0
        self._last: tuple[float, float] | None = None
        self._told = 0.0

    def begin(self, total_steps: int, done_steps: int) -> None:
        """The first step starts."""
        self.done_before = done_steps
        self._last = (time.process_time(), time.monotonic())

    def step(self, report: StepReport) -> None:
        """Book the time since the last step."""
        now = (time.process_time(), time.monotonic())
        if self._last is not None:
            self.cpu.append(now[0] - self._last[0])
            self.wall.append(now[1] - self._last[1])
        self._last = now
        if now[1] - self._told >= TELL_EVERY_SECONDS:
            self._told = now[1]
            print(report.step, report.total_steps, flush=True)

    def say(self, message: str) -> None:
        """To the log."""
        print(message, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Nothing to close."""


def run_job(job: dict[str, Any]) -> None:
    """Train as the job says, and write what it cost to the job's `measured` file.

    A run that was finished by an earlier process, which did not live to write its measurement, is trained again.
    """
    config = load_config(None, job["settings"])
    from studio.training.trainer import train

    watch = StepWatch()
    result = train(config, progress=watch)
    if result.already_finished:
        result = train(config, progress=watch, resume=False)
    step = median(watch.cpu)
    measured = {
        "chosen_step": result.chosen_step,
        "steps": result.steps,
        "reason": result.reason,
        "trigger": result.trigger,
        "step_cpu_seconds": round(step, 5),
        "step_wall_seconds": round(median(watch.wall), 5),
        "seconds_to_chosen": round(step * result.chosen_step, 2),
        "cpu_seconds": round(result.cpu_seconds, 2),
        "peak_bytes": peak_bytes(),
        "file_bytes": result.adapter_path.stat().st_size,
        "adapter": result.adapter_path.name,
        "interrupted": watch.done_before > 0,
    }
    atomic_write_json(Path(job["measured"]), measured)


def peak_bytes() -> int:
    """The most memory this process has held: on the GPU if it used one, otherwise resident.

    Linux hands a starting process the `ru_maxrss` of the one that started it, so there the memory map's own mark is read.
    """
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        marks = [line.split() for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0][1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Entry point; the exit codes are those of `studio`."""
    try:
        run_job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except StudioError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
