"""The two ways in which a worker gets work done on one device: a process for each job, and one warm process for pictures."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.jobs import claims
from studio.jobs.attending import Running
from studio.jobs.claims import Claimant
from studio.jobs.devices import child_environment
from studio.jobs.folder import tail
from studio.jobs.job import Job
from studio.jobs.processes import end_group, is_alive, started_at
from studio.jobs.specs import DRAWING_KINDS
from studio.jobs.store import JobStore

log = logging.getLogger("studio.worker")

PROCESS_KINDS = ("train", "batch")


@dataclass(frozen=True, kw_only=True)
class LaneOptions:
    """How patient a lane is.

    Attributes:
        grace_seconds: from the stop flag to SIGTERM. kill_seconds: from there to SIGKILL.
        max_rows: pictures in one pass, at most. restart_after: pictures after which the warm process is replaced.
        idle_seconds: without work, after which it goes.
    """

    grace_seconds: float = 30.0
    kill_seconds: float = 15.0
    max_rows: int = 8
    restart_after: int = 2000
    idle_seconds: float = 600.0


class ProcessLane:
    """One job at a time, each in a process of its own, which leads a group: ending the group ends all it started."""

    def __init__(self, store: JobStore, claimant: Claimant, device: str, options: LaneOptions) -> None:
        self.store = store
        self.claimant = claimant
        self.device = device
        self.options = options
        self.running: Running | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._started = 0.0
        self._terminated = False

    @property
    def is_busy(self) -> bool:
        """Whether a job is at work."""
        return self.running is not None

    def look(self, *, may_begin: bool) -> None:
        """One round: see to the job at work, or claim the next."""
        if self.running is None:
            if may_begin:
                job = claims.claim(self.store, self.claimant, PROCESS_KINDS, self.device)
                if job is not None:
                    self._begin(job)
            return
        if not self._lives():
            self._settle()
            return
        self.running.attend(self.store)
        if self.running.lost:
            log.warning("the claim of %s was lost; its process is ended", self.running.job.id)
            self._end(signal.SIGKILL)
            self.running = None
            return
        waited = self.running.stopping_for()
        if waited > self.options.grace_seconds + self.options.kill_seconds:
            self._end(signal.SIGKILL)
        elif waited > self.options.grace_seconds and not self._terminated:
            self._terminated = True
            self._end(signal.SIGTERM)

    def adopt(self, job: Job) -> None:
        """See to a job whose process still runs though its worker is gone."""
        assert self.running is None and job.pid is not None and job.pid_started is not None
        self.running = Running.of(self.store, job)
        self._child, self._pid, self._started, self._terminated = None, job.pid, job.pid_started, False

    def leave(self) -> None:
        """Stop the job at work, let it save what it can, and queue it again."""
        if self.running is None:
            return
        self._end(signal.SIGTERM)
        deadline = time.monotonic() + self.options.grace_seconds
        while self._lives():
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
            time.sleep(0.05)
        self._settle(worker_is_leaving=True)

    def _begin(self, job: Job) -> None:
        running = Running.of(self.store, job)
        running.folder.forget_result()
        environment, name = child_environment(self.device)
        command = [sys.executable, "-m", "studio.jobs.child", str(running.folder.path), str(job.attempt), name]
        with running.folder.log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self._pid, self._terminated = self._child.pid, False
        self._started = started_at(self._pid) or 0.0
        claims.set_process(self.store, job, self._pid, self._started)
        self.running = running
        log.info("%s %s begun, attempt %d, process %d", job.kind, job.id, job.attempt, self._pid)

    def _lives(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return is_alive(self._pid, self._started)

    def _end(self, number: signal.Signals) -> None:
        if self._lives():
            end_group(self._pid, number)

    def _settle(self, *, worker_is_leaving: bool = False) -> None:
        assert self.running is not None
        # Whatever the process started is of no use without it.
        if self._child is not None:
            end_group(self._pid, signal.SIGKILL)
        ended = self.running.settle(self.store, worker_is_leaving=worker_is_leaving)
        log.info("%s ended: %s", self.running.job.id, "its claim was lost" if ended is None else ended.state)
        self.running = self._child = None


class RenderLane:
    """A warm process that several jobs are handed to; killed and started anew when it must be."""

    def __init__(self, store: JobStore, claimant: Claimant, device: str, options: LaneOptions, logs: Path) -> None:
        self.store = store
        self.claimant = claimant
        self.device = device
        self.options = options
        self.running: dict[str, Running] = {}
        self.starts = 0
        self._log_path = logs / f"renderer-{device.replace(':', '-')}.log"
        self._child: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader: threading.Thread | None = None
        self._drawn = 0
        self._touched: frozenset[str] = frozenset()
        self._idle_since = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether jobs are at work."""
        return bool(self.running)

    @property
    def pid(self) -> int | None:
        """Of the warm process; None if there is none."""
        return None if self._child is None else self._child.pid

    def look(self, *, may_begin: bool) -> None:
        """One round: hear what ended, see to the jobs at work, claim more."""
        self._hear()
        if self._child is not None and self._child.poll() is not None:
            self._died()
        for running in list(self.running.values()):
            running.attend(self.store)
            if running.lost:
                del self.running[running.job.id]
            elif running.stopping_for() > self.options.grace_seconds:
                log.warning("%s does not stop; the warm process is ended", running.job.id)
                self._kill()
                return
        if may_begin:
            self._claim()
        self._rest()

    def leave(self) -> None:
        """Stop drawing and queue again what was not finished."""
        self._dismiss(wait_seconds=self.options.grace_seconds)
        self._hear()
        for running in list(self.running.values()):
            running.settle(self.store, worker_is_leaving=True)
        self.running.clear()

    def _claim(self) -> None:
        if self._drawn >= self.options.restart_after:
            if self.running:
                return  # it is replaced when it has nothing in hand
            self._dismiss(wait_seconds=self.options.grace_seconds)
        while len(self.running) < 2 * self.options.max_rows:
            if any(running.job.attempt > 1 for running in self.running.values()):
                return  # one that may have brought a process down before has it to itself
            job = claims.claim(
                self.store,
                self.claimant,
                DRAWING_KINDS,
                self.device,
                busy_owners=sorted({running.job.owner for running in self.running.values()}),
                only_first_attempts=bool(self.running),
            )
            if job is None:
                return
            self._hand_over(job)

    def _hand_over(self, job: Job) -> None:
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None
        running = Running.of(self.store, job)
        running.folder.forget_result()
        self.running[job.id] = running
        claims.set_process(self.store, job, self._child.pid, started_at(self._child.pid) or 0.0)
        try:
            print(json.dumps({"folder": str(running.folder.path), "attempt": job.attempt}), file=self._child.stdin, flush=True)
        except OSError:
            return  # it just died; the next round sees to it

    def _start(self) -> None:
        environment, name = child_environment(self.device)
        command = [sys.executable, "-m", "studio.jobs.work.renderer", str(self.store.home.root), name, str(self.options.max_rows)]
        if self._log_path.exists() and self._log_path.stat().st_size > 2**20:
            os.replace(self._log_path, self._log_path.with_suffix(".log.1"))
        with self._log_path.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,
                text=True,
            )
        self._replies = queue.Queue()
        self._drawn = 0
        self._touched = frozenset()
        self.starts += 1
        self._reader = threading.Thread(target=_forward, args=(self._child, self._replies), daemon=True)
        self._reader.start()
        log.info("warm process %d for %s", self._child.pid, self.device)

    def _hear(self) -> None:
        while True:
            try:
                reply = self._replies.get_nowait()
            except queue.Empty:
                return
            if "touching" in reply:
                self._touched = frozenset(reply["touching"])
            running = self.running.pop(str(reply.get("ended", "")), None)
            if running is not None:
                self._drawn += max(1, running.num_pictures())
                ended = running.settle(self.store, reply=reply)
                log.info("%s ended: %s", running.job.id, "its claim was lost" if ended is None else ended.state)

    def _died(self) -> None:
        """The warm process is gone: the jobs it was drawing are begun again, one at a time; those that only waited in its hands
        have no part in it. If it went before it touched any, all of them count: it may not come up at all."""
        assert self._child is not None
        code = self._child.wait()
        self._child = None
        if self._reader is not None:
            self._reader.join(timeout=5.0)  # its last lines are still on their way
        self._hear()
        if self.running:
            log.warning("the warm process ended with code %d and had %d jobs in hand", code, len(self.running))
        for running in list(self.running.values()):
            blameless = bool(self._touched) and running.job.id not in self._touched
            if not blameless:
                running.folder.add_to_log(tail(self._log_path, 20))
            ended = running.settle(self.store, worker_is_leaving=blameless)
            log.info("%s: %s", running.job.id, "its claim was lost" if ended is None else ended.state)
        self.running.clear()

    def _kill(self) -> None:
        """End a process that does not listen: jobs that were to stop have ended, the others are no worse for it."""
        assert self._child is not None
        end_group(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._child = None
        self._hear()
        for running in list(self.running.values()):
            running.settle(self.store, worker_is_leaving=running.stop_since is None)
        self.running.clear()

    def _rest(self) -> None:
        if self.running:
            self._idle_since = time.monotonic()
        elif self._child is not None and time.monotonic() - self._idle_since > self.options.idle_seconds:
            log.info("nothing to draw for %.0f s; the warm process goes", self.options.idle_seconds)
            self._dismiss(wait_seconds=self.options.grace_seconds)

    def _dismiss(self, wait_seconds: float) -> None:
        """Close the warm process's input, and wait for it to go."""
        if self._child is None:
            return
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
        except OSError:
            log.debug("the warm process was gone already")
        try:
            self._child.wait(timeout=wait_seconds)
        except subprocess.TimeoutExpired:
            end_group(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._child = None


def _forward(child: subprocess.Popen[str], replies: queue.Queue[dict[str, Any]]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        try:
            replies.put(json.loads(line))
        except ValueError:
            log.warning("the warm process said: %s", line.strip()[:200])
