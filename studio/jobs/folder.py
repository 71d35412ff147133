"""A job's folder: what was asked, what happened, how it ended. The table can be made anew from these folders.

::

    jobs/ID/ job.json       what was handed in; written before the row in the table
             events.jsonl   what happened, a line each, only ever added to
             result.json    how the attempt ended, written by the process that worked on it
             stop           there while somebody wants it stopped
             log.txt        what that process printed
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.jobs.specs import SPECS, JobSpec, Submit
from studio.pipelines.errors import MissingFileError, StudioError
from studio.pipelines.files import atomic_write_json, output_errors
from studio.storage.home import Home

FORMAT = 1


@dataclass(frozen=True)
class Event:
    """One thing that happened to a job.

    Attributes:
        number: of its line, from 1. time: seconds since 1970.
        kind: "state", "moved", "process", "progress", "message" or "picture". data: what else the line says.
    """

    number: int
    time: float
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HandedIn:
    """The content of job.json: `spec` with every seed and hash filled in, `submit`, and where the output goes."""

    id: str
    created: float
    spec: JobSpec
    submit: Submit
    output_dir: Path


class JobFolder:
    """One job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_json = path / "job.json"
        self.events_jsonl = path / "events.jsonl"
        self.result_json = path / "result.json"
        self.stop_flag = path / "stop"
        self.log = path / "log.txt"
        self.preview = path / "preview.webp"

    @property
    def home(self) -> Home:
        """The home that it lies in."""
        return Home(self.path.parent.parent)

    def write_job(self, job: HandedIn) -> None:
        """Write job.json."""
        values = {
            "format": FORMAT,
            "id": job.id,
            "created": job.created,
            "kind": job.spec.kind,
            "spec": job.spec.model_dump(mode="json", exclude_defaults=True),
            "submit": job.submit.model_dump(mode="json", exclude_defaults=True),
            "output_dir": str(job.output_dir),
        }
        atomic_write_json(self.job_json, values)

    def read_job(self) -> HandedIn:
        """What was handed in.

        Raises:
            MissingFileError: there is no job.json. StudioError: it cannot be read.
        """
        try:
            values = json.loads(self.job_json.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}")
            spec = SPECS[values["kind"]].model_validate(values["spec"])
            submit = Submit.model_validate(values["submit"])
            return HandedIn(str(values["id"]), float(values["created"]), spec, submit, Path(values["output_dir"]))
        except FileNotFoundError as error:
            raise MissingFileError(f"There is no job in {self.path}.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StudioError(f"{self.job_json} cannot be read ({reason}); hand the job in again.") from error

    def add_event(self, kind: str, **data: Any) -> None:
        """Add a line to events.jsonl. Several processes may do so: a line is one write at the file's end.

        Raises:
            OutputError: the disk is full, or the folder cannot be written to.
        """
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **data}, ensure_ascii=False, default=str) + "\n"
        with output_errors(self.events_jsonl):
            descriptor = os.open(self.events_jsonl, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                end = os.lseek(descriptor, 0, os.SEEK_END)
                if end and os.pread(descriptor, 1, end - 1) != b"\n":
                    line = "\n" + line  # the machine stopped in the middle of a line
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def events(self, after: int = 0) -> Iterator[Event]:
        """The events with numbers above `after`; what is not a whole line of JSON is passed over."""
        for event, _ in self.events_from(0, 0):
            if event.number > after:
                yield event

    def events_from(self, position: int, number: int) -> Iterator[tuple[Event, int]]:
        """Events from a byte of the file on, where line `number` ended; each with the byte where it ends."""
        try:
            stream = self.events_jsonl.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                position += len(line)
                number += 1
                event = _event(line, number)
                if event is not None:
                    yield event, position

    def write_result(self, attempt: int, outcome: str, **values: Any) -> None:
        """Write how attempt number `attempt` ended: "succeeded", "failed", "canceled" or "interrupted"."""
        atomic_write_json(self.result_json, {"attempt": attempt, "outcome": outcome, **values})

    def read_result(self) -> dict[str, Any] | None:
        """The last attempt's result; None if there is none that can be read."""
        try:
            values = json.loads(self.result_json.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def forget_result(self) -> None:
        """Take away the last attempt's result, before another attempt of perhaps the same number is begun."""
        with output_errors(self.result_json):
            self.result_json.unlink(missing_ok=True)

    def ask_to_stop(self, wanted: bool) -> None:
        """Put up the flag that tells the process to stop, or take it down."""
        with output_errors(self.stop_flag):
            if wanted:
                self.stop_flag.touch()
            else:
                self.stop_flag.unlink(missing_ok=True)

    def log_tail(self, num_lines: int = 20) -> str:
        """The last lines of the log."""
        return tail(self.log, num_lines)

    def add_to_log(self, text: str) -> None:
        """Add lines to the log; a disk that is full does not hinder what comes after."""
        try:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(text.rstrip() + "\n" if text.strip() else "")
        except OSError:
            return


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a text file; "" if there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 65_536))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-num_lines:])


def _event(line: bytes, number: int) -> Event | None:
    try:
        values = json.loads(line)
        return Event(number, float(values.pop("time")), str(values.pop("kind")), values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
