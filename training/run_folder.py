"""The run folder: where everything lies, and that only one process writes into it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from studio.pipelines.errors import OutputError, ResumeError
from studio.pipelines.files import atomic_write_json
from studio.training.checkpoint import output_errors

if sys.platform == "win32":  # pragma: no cover
    import msvcrt
else:
    import fcntl


class RunFolder:
    """Paths inside one run's folder.

    ::

        run/ index.html            the report
             adapter.safetensors   diffusers / PEFT;  adapter.kohya.safetensors for the other tools
             config.toml  run.json  metrics.jsonl
             checkpoints/step-000100/{adapter.safetensors, state.safetensors, state.json}
             samples/step-000100/00.png …
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_toml = path / "config.toml"
        self.run_json = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.photos = path / "photos"
        self.adapter = path / "adapter.safetensors"
        self.kohya_adapter = path / "adapter.kohya.safetensors"
        self.report = path / "index.html"
        self.loss_plot = path / "loss.svg"

    def samples_of(self, step: int) -> Path:
        """Where the sample pictures of a step lie."""
        return self.samples / f"step-{step:06d}"

    def create(self) -> None:
        """Make the folder. Raises OutputError when that isn't possible."""
        with output_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"{self.path} is a file; --output must be a folder")
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_bytes(b"")
            probe.unlink()

    def clear(self) -> None:
        """Remove what an earlier run wrote here, and nothing else."""
        for folder in (self.checkpoints, self.samples, self.photos):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.run_json, self.metrics, self.adapter, self.kohya_adapter, self.report, self.loss_plot):
            file.unlink(missing_ok=True)

    def read_run(self) -> dict[str, Any] | None:
        """The run's record, or None when there is none. Raises ResumeError for a damaged one."""
        try:
            text = self.run_json.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ResumeError(f"{self.run_json} is damaged ({error}); use --no-resume to start over") from error
        assert isinstance(record, dict)
        return record

    def write_run(self, record: Mapping[str, Any]) -> None:
        """Replace the run's record in one go."""
        atomic_write_json(self.run_json, record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, even after `kill -9`.

        Raises ResumeError when another process holds it.
        """
        with output_errors(self.path), open(self.path / ".lock", "a+", encoding="utf-8") as stream:
            if not _try_lock(stream):
                raise ResumeError(f"another process is training in {self.path}; wait for it or choose another --output")
            yield


def _try_lock(stream: IO[str]) -> bool:
    try:
        if sys.platform == "win32":  # pragma: no cover
            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
