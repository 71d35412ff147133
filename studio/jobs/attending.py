"""What a worker does for every job at work, whatever process does the work: renew the lease, carry progress into the table,
notice that it should stop or has taken too long, and write down how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.jobs import claims
from studio.jobs.changes import drop_dependents
from studio.jobs.folder import JobFolder
from studio.jobs.job import Job, State
from studio.jobs.store import JobStore

RENEW_SECONDS = 5.0
LOG_BYTES = 32 * 2**20


@dataclass(eq=False)
class Running:
    """A claimed job and what is known of it here.

    Attributes:
        began: on the monotonic clock. stop_since: when it was first seen that it should stop; None before.
        timed_out: whether that was because of its time limit.
    """

    job: Job
    folder: JobFolder
    began: float = field(default_factory=time.monotonic)
    stop_since: float | None = None
    timed_out: bool = False
    lost: bool = False
    _renewed: float = 0.0
    _position: int = 0
    _number: int = 0
    _num_pictures: int = 0
    _progress: float | None = None
    _message: str | None = None

    @classmethod
    def of(cls, store: JobStore, job: Job) -> Running:
        """A job that was just claimed, with what its folder says so far left behind."""
        folder = store.folder(job.id)
        running = cls(job, folder)
        for event, end in folder.events_from(0, 0):
            running._position, running._number = end, event.number
        return running

    def attend(self, store: JobStore) -> None:
        """Call often; it is cheap when there is nothing to do."""
        now = time.monotonic()
        self._read_events()
        limit = self.job.time_limit_seconds
        if limit is not None and not self.timed_out and now - self.began > limit:
            self.timed_out = True
            self.folder.ask_to_stop(True)
        if self.stop_since is None and self.folder.stop_flag.exists():
            self.stop_since = now
        has_news = self._progress is not None or self._message is not None
        if now - self._renewed >= (1.0 if has_news else RENEW_SECONDS):
            self._renewed = now
            state = claims.renew(store, self.job, progress=self._progress, message=self._message)
            self.lost = state is None
            if state == State.CANCELING and self.stop_since is None:
                self.folder.ask_to_stop(True)  # whoever canceled it may have ended before doing so
            self._progress = self._message = None
            shorten(self.folder.log)

    def num_pictures(self) -> int:
        """How many pictures this attempt has made."""
        return self._num_pictures

    def stopping_for(self) -> float:
        """Seconds since it was told to stop; 0 before."""
        return 0.0 if self.stop_since is None else time.monotonic() - self.stop_since

    def settle(self, store: JobStore, *, worker_is_leaving: bool = False, reply: Mapping[str, Any] | None = None) -> Job | None:
        """Write down how it ended, now that nothing works on it any more; None if the claim was lost.

        Args:
            worker_is_leaving: it was stopped because the worker goes, not because of anything about it.
            reply: what its process said of the end; needed where it could not write it down.
        """
        self._read_events()
        result = self.folder.read_result()
        told: Mapping[str, Any] | None = reply
        if result is not None and result.get("attempt") == self.job.attempt:
            told = result
        outcome = str(told["outcome"]) if told is not None else State.INTERRUPTED
        message = str(told.get("message", "")) if told is not None else self._last_words()
        if outcome == State.INTERRUPTED and self.timed_out:
            limit = self.job.time_limit_seconds
            ended = claims.finish(store, self.job, State.FAILED, error=f"It was stopped at its time limit of {limit:g} seconds.")
        elif outcome == State.INTERRUPTED and worker_is_leaving:
            ended = claims.give_back(store, self.job)
        else:
            error = str(told.get("error", "")) if told is not None else ""
            ended = claims.finish(store, self.job, outcome, message=message, error=error)
        if ended is not None and ended.state in (State.FAILED, State.CANCELED):
            drop_dependents(store, ended)
        if ended is not None and ended.state != State.INTERRUPTED:
            self.folder.ask_to_stop(False)
        return ended

    def _last_words(self) -> str:
        """Of a process that ended without a result: the last line of its log."""
        lines = [line.strip() for line in self.folder.log_tail(5).splitlines() if line.strip()]
        return f"its process ended without a result; its log ends with: {lines[-1][:200]}" if lines else ""

    def _read_events(self) -> None:
        for event, end in self.folder.events_from(self._position, self._number):
            self._position, self._number = end, event.number
            if event.kind == "progress":
                self._progress = float(event.data.get("share", 0.0))
                if "total" in event.data and event.data["total"] > 1:
                    self._message = _where(event.data)
            elif event.kind == "picture":
                self._num_pictures += 1
            elif event.kind == "message":
                self._message = str(event.data.get("text", ""))[:500]


def shorten(log: Path, most_bytes: int = LOG_BYTES) -> None:
    """Keep the end of a log that has grown too long. Who writes to it adds at the end, so that it can be cut any time."""
    try:
        if log.stat().st_size <= most_bytes:
            return
        with log.open("rb+") as stream:
            stream.seek(-most_bytes // 16, 2)
            end = stream.read()
            stream.seek(0)
            stream.write(b"(the beginning was cut off)\n" + end[end.find(b"\n") + 1 :])
            stream.truncate()
    except OSError:
        return


def _where(data: Mapping[str, Any]) -> str:
    text = f"{data['done']:g} of {data['total']:g}"
    if data.get("seconds_left"):
        text += f", about {data['seconds_left']:.0f} s left"
    return text
