"""Whether a process is the one that is meant, and how to end it with all it started."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil

_SAME_START_SECONDS = 0.02


def started_at(pid: int) -> float | None:
    """When a process started, in seconds; None if there is none. Only to be compared with `is_alive` on the same machine.

    On Linux it is counted from the machine's own start, so that setting the clock does not change it.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if sys.platform == "linux" else _started_by_clock(pid)
    # The command's name stands in parentheses and may hold any character; the start is field 22 of the line.
    return float(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that started then still runs. Numbers of processes are used again, so the start counts too."""
    found = started_at(pid)
    if found is None or abs(found - started) > _SAME_START_SECONDS:
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started_by_clock(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def end_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that leads a group of its own, and to the group."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def wait_until_gone(pid: int, started: float, seconds: float) -> bool:
    """Wait for a process that is not our child; whether it is gone."""
    deadline = time.monotonic() + seconds
    while is_alive(pid, started):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True
