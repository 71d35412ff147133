"""A training of a batch: a process of its own, which frees its memory, cannot take the batch with it, and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.batch.folder import DONE
from studio.batch.tasks import TrainTask
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import Interrupted, StudioError
from studio.pipelines.files import atomic_write_json, atomic_write_text
from studio.training.config import dump_toml
from studio.training.config.loading import validate

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 120.0
LOG = "batch.log"


def train_task(
    task: TrainTask,
    folder: Path,
    *,
    device: str = "auto",
    photos: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Path:
    """Train in `folder`, or go on there, and return the adapter's file.

    Args:
        photos: where the photos lie, if not where the settings say.

    Raises:
        Interrupted: `should_stop` said so; the run has saved everything. StudioError: the training failed; says why.
    """
    toml = write_config(task, folder, device=device, photos=photos)
    log = folder / LOG
    # Once it was done, it is asked for anew; half done, it goes on.
    command = [*training_command(task, toml, device), *(["--no-resume"] if (folder / DONE).is_file() else [])]
    (folder / DONE).unlink(missing_ok=True)
    with log.open("ab") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        code = _wait(child, should_stop)
    adapter = folder / "adapter.safetensors"
    if code != 0 or not adapter.is_file():
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted("The training was stopped; it goes on where it was.", code - 128)
        raise StudioError(f"The training in {folder} ended with code {code}: {_last_line(log)}")
    atomic_write_json(folder / DONE, {"job": task.id, "file": adapter.name, "file_sha256": file_sha256(adapter)})
    return adapter


def write_config(task: TrainTask, folder: Path, *, device: str, photos: Path | None) -> Path:
    """The run's settings as a TOML file in its folder."""
    tables: dict[str, dict[str, Any]] = {name: dict(table) for name, table in task.settings.items()}
    run = tables.setdefault("run", {})
    run["output_dir"] = str(folder)
    if device != "auto":
        run.setdefault("device", device)
    if photos is not None:
        tables.setdefault("concept", {})["images"] = str(photos)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "batch.toml"
    atomic_write_text(path, dump_toml(validate(tables)))
    return path


def training_command(task: TrainTask, toml: Path, device: str) -> list[str]:
    """`studio train …`, on several devices by `accelerate launch`."""
    train = ["-m", "studio", "train", task.method, "--config", str(toml)]
    if task.num_processes == 1:
        return [sys.executable, *train]
    launch = ["--num_processes", str(task.num_processes), "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", *(["--cpu"] if device == "cpu" else ["--multi_gpu"])]
    return [sys.executable, "-m", "accelerate.commands.launch", *launch, *train]


def _wait(child: subprocess.Popen[bytes], should_stop: Callable[[], bool] | None) -> int:
    """The child's exit code. When asked to stop it gets SIGTERM, upon which it saves everything; then SIGKILL."""
    try:
        while child.poll() is None:
            if should_stop is not None and should_stop():
                _signal(child, signal.SIGTERM)
                try:
                    child.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    _signal(child, signal.SIGKILL)
                raise Interrupted("The training was stopped; it goes on where it was.", signal.SIGTERM)
            time.sleep(_POLL_SECONDS)
    finally:
        if child.poll() is None:
            _signal(child, signal.SIGKILL)
            child.wait()
    return int(child.returncode)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the child's whole group: `accelerate launch` has children of its own."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("studio: ") if lines else "it said nothing."
