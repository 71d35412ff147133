"""Starting a worker in the background."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler

from studio.jobs.store import JobStore
from studio.jobs.workers import living_workers
from studio.pipelines.errors import StudioError
from studio.storage.home import HOME_VARIABLE, Home

_START_SECONDS = 30.0


def ensure_worker(store: JobStore, devices: Sequence[str] = ()) -> None:
    """Start a worker for this home unless one is alive; it goes on when this process ends.

    Raises:
        StudioError: it did not come up; says where its log is.
    """
    import os

    if living_workers(store):
        return
    command = [sys.executable, "-m", "studio", "worker", *(word for device in devices for word in ("--device", device))]
    log = store.home.logs / "worker.out.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, HOME_VARIABLE: str(store.home.root)},
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not living_workers(store):
        if child.poll() is not None or time.monotonic() > deadline:
            raise StudioError(f"The worker did not come up; {log} says why.")
        time.sleep(0.1)


def log_to_files(home: Home, *, to_terminal: bool) -> None:
    """Let the worker's log go to `logs/worker.log`, of which five megabytes are kept, and to standard error if wanted."""
    logger = logging.getLogger("studio.worker")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handlers: list[logging.Handler] = [
        RotatingFileHandler(home.logs / "worker.log", maxBytes=2**20, backupCount=4, encoding="utf-8")
    ]
    if to_terminal:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(form)
        logger.addHandler(handler)
