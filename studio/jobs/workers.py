"""Workers by name: which there are, and which of them are alive."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from studio.jobs.claims import LEASE_SECONDS
from studio.jobs.processes import is_alive, started_at
from studio.jobs.store import JobStore


@dataclass(frozen=True)
class WorkerRow:
    """One worker: its devices, its process, and when it was last heard of."""

    id: str
    host: str
    pid: int
    pid_started: float
    devices: tuple[str, ...]
    started: float
    heartbeat: float

    @property
    def is_alive(self) -> bool:
        """Whether its process runs; on another machine, whether it was heard of lately."""
        if self.host == socket.gethostname():
            return is_alive(self.pid, self.pid_started)
        return time.time() - self.heartbeat < LEASE_SECONDS


def register(store: JobStore, worker: str, devices: Sequence[str]) -> None:
    """Note that this process is a worker."""
    now = time.time()
    values = (worker, socket.gethostname(), os.getpid(), started_at(os.getpid()) or 0.0, json.dumps(list(devices)), now, now)
    with store.database.write() as connection:
        connection.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def beat(store: JobStore, worker: str) -> None:
    """Note that it is still there."""
    with store.database.write() as connection:
        connection.execute("UPDATE workers SET heartbeat = ? WHERE id = ?", (time.time(), worker))


def unregister(store: JobStore, worker: str) -> None:
    """Note that it is gone."""
    with store.database.write() as connection:
        connection.execute("DELETE FROM workers WHERE id = ?", (worker,))


def all_workers(store: JobStore) -> list[WorkerRow]:
    """Every worker that was noted and not taken out."""
    rows = store.database.read("SELECT id, host, pid, pid_started, devices, started, heartbeat FROM workers ORDER BY started")
    return [WorkerRow(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), row[5], row[6]) for row in rows]


def living_workers(store: JobStore) -> list[WorkerRow]:
    """Those that are alive; the others are taken out."""
    living = []
    for worker in all_workers(store):
        if worker.is_alive:
            living.append(worker)
        else:
            unregister(store, worker.id)
    return living
