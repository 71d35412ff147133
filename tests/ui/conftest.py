"""A studio at a home of its own, and its page served for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from studio.jobs.workers import living_workers
from studio.service import Studio


class Served:
    """`studio ui` in a process of its own. address: without a slash at the end. studio: what it serves."""

    def __init__(self, home: Path, *, worker: bool) -> None:
        self.studio = Studio(home)
        command = [sys.executable, "-m", "studio", "ui", "--no-open", "--port", "0", "--home", str(home)]
        self.log = (home / "page.log").open("w+")
        self.process = subprocess.Popen([*command, "--worker" if worker else "--no-worker"], stderr=self.log, stdout=self.log)
        self.address = self._address(home / "page.log")

    def _address(self, log: Path) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"http://[\d.]+:\d+", log.read_text())
            if found and _answers(found.group()):
                return found.group()
            time.sleep(0.1)
        raise AssertionError(f"the page did not start: {log.read_text()}")

    def close(self) -> None:
        """End the page, and the worker if it has begun one."""
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
        for worker in living_workers(self.studio.store):
            os.kill(worker.pid, signal.SIGTERM)
        self.studio.close()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page without a worker: what is handed in waits."""
    page = Served(tmp_path_factory.mktemp("home"), worker=False)
    yield page
    page.close()


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page whose jobs are done."""
    page = Served(tmp_path_factory.mktemp("home"), worker=True)
    yield page
    page.close()
