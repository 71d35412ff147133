"""`studio ui` in a process of its own, as a person would start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from studio.jobs.workers import living_workers
from studio.service import Studio

START_SECONDS = 240.0
_ADDRESS = re.compile(r"http://[\d.]+:\d+")


class Served:
    """A page that is being served.

    Attributes:
        address: without a slash at the end. studio: what it serves.
    """

    def __init__(self, home: Path, *, worker: bool, port: int = 0) -> None:
        self.home, self.worker = home, worker
        self.studio = Studio(home)
        self._start(port)

    def restart(self) -> None:
        """End the page as a crash would, and start it again at the same address; jobs go on meanwhile."""
        port = int(self.address.rpartition(":")[2])
        self.process.kill()
        self.process.wait(30)
        self._start(port)

    def close(self) -> None:
        """End the page, and the worker if it has begun one."""
        self.process.terminate()
        self.process.wait(30)
        for worker in living_workers(self.studio.store):
            os.kill(worker.pid, signal.SIGTERM)
        self.studio.close()

    def _start(self, port: int) -> None:
        log = self.home / "logs" / "page.txt"
        command = [sys.executable, "-m", "studio", "ui", "--no-open", "--port", str(port), "--home", str(self.home)]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--worker" if self.worker else "--no-worker"], stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self.address = self._address(log)

    def _address(self, log: Path) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            found = _ADDRESS.search(log.read_text())
            if found and _answers(found.group()):
                return found.group()
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"the page did not start: {log.read_text()}")


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/healthz", timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
