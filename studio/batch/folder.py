"""A batch's folder: what is done in it, what is written down of it, and that one process at a time works on a part.

    pictures as 00012-7-a-red-cat-1a2b3c4d.png with their .json; runs/ of trainings
    run.json       the manifest: what was asked, with which settings, versions and totals
    jobs.jsonl     the whole expansion, with each request's id, group and place on the axes
    results.jsonl  what happened, a line each, only ever added to
    index.html, contact-sheet*.png, scores.csv

Shards write a run-2-of-4.json and a results-2-of-4.jsonl of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from studio.batch.resolving import AnyTask
from studio.batch.results import JOBS, SCORES, outcomes_of, read_json
from studio.batch.tasks import TrainTask
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import OutputError, UserError
from studio.pipelines.files import atomic_write_json, atomic_write_text, output_errors
from studio.pipelines.pictures import PictureRecord, picture_name, save_png
from studio.pipelines.pictures.names import slug

_PART = re.compile(r"\..+\.[0-9a-f]{12}\.part")
DONE = "batch.json"
"""In a training's folder: the mark that it is done, written last."""

Shard = tuple[int, int]
"""(which one, of how many), counted from 1."""


class BatchFolder:
    """Paths in a batch's folder, and what they hold."""

    def __init__(self, path: Path, shard: Shard = (1, 1)) -> None:
        part = "" if shard[1] == 1 else f"-{shard[0]}-of-{shard[1]}"
        self.path = path
        self.manifest = path / f"run{part}.json"
        self.results = path / f"results{part}.jsonl"
        self.jobs = path / JOBS
        self.report = path / "index.html"
        self.scores = path / SCORES
        self._lock = path / f".lock{part}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this part of the folder; the lock goes with the process, even after `kill -9`.

        Raises:
            UserError: another process works on it. OutputError: it cannot be written to.
        """
        with output_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"{self.path} is a file; --output must be a folder.")
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._lock, timeout=0)
            try:
                lock.acquire()
            except Timeout as error:
                raise UserError(f"Another process draws in {self.path}; wait for it, or choose another --output.") from error
        try:
            yield
        finally:
            lock.release()

    def clean(self) -> None:
        """Remove what a killed process left half-written. Only where no other shard is at work."""
        for path in self.path.glob(".*.part"):
            if _PART.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def place_of(self, task: AnyTask) -> Path:
        """Where a task's picture, or its training's folder, goes."""
        if isinstance(task, TrainTask):
            return self.path / "runs" / f"{task.index:05d}-{slug(task.title)}-{task.id[:8]}"
        return self.path / picture_name(task.index, task.seed, task.title, task.id)

    def done(self, tasks: Iterable[AnyTask]) -> dict[str, Path]:
        """Task id -> its picture or adapter, for those that are whole: there, with a mark that names the task, and unchanged."""
        wanted = {task.id: task for task in tasks}
        found: dict[str, Path] = {}
        if not self.path.is_dir():
            return found
        for sidecar in sorted(self.path.glob("*-*.json")):
            values = read_json(sidecar)
            task_id = values.get("drawn", {}).get("job") if isinstance(values.get("drawn"), Mapping) else None
            picture = sidecar.with_suffix(".png")
            if task_id in wanted and picture.is_file() and file_sha256(picture) == values.get("file_sha256"):
                found.setdefault(str(task_id), picture)
        for task in wanted.values():
            if isinstance(task, TrainTask):
                mark = read_json(self.place_of(task) / DONE)
                adapter = self.place_of(task) / "adapter.safetensors"
                if mark.get("job") == task.id and adapter.is_file() and file_sha256(adapter) == mark.get("file_sha256"):
                    found[task.id] = adapter
        return found

    def save(self, task: AnyTask, data: bytes, record: PictureRecord) -> Path:
        """Write a picture, and then its sidecar, which is the mark that it is done."""
        path = self.place_of(task)
        save_png(path, data, record)
        return path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add to the results, and see them onto the disk. A line that a killed process left half is closed first."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with output_errors(self.results), open(self.results, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Task id -> the last thing that was written of it, by any shard."""
        return outcomes_of(self.path)

    def write_jobs(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace the expansion, if it is another one."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if not self.jobs.is_file() or hashlib.sha256(self.jobs.read_bytes()).digest() != hashlib.sha256(text.encode()).digest():
            atomic_write_text(self.jobs, text)

    def write_manifest(self, values: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        atomic_write_json(self.manifest, values)

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or else that of the whole batch; empty if there is none."""
        return read_json(self.manifest) or read_json(self.path / "run.json")
