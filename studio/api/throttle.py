"""How often and how much, per person, counted by the library `limits`: rates in this process, a day's quotas on the disk."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItem, RateLimitItemPerDay, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from studio.api.counters import KeptCounters
from studio.api.problems import Problem
from studio.api.settings import MIB, Limits
from studio.storage.database import Database


class Throttle:
    """What everybody has taken so far. Rates begin anew with the process; what was taken of a day stays taken.

    Args:
        database: with the table `counters`.
    """

    def __init__(self, limits: Limits, database: Database) -> None:
        self.limits = limits
        self._moving = MovingWindowRateLimiter(MemoryStorage())
        self._kept = FixedWindowRateLimiter(KeptCounters(database))
        self._reads, self._writes = parse(limits.reads), parse(limits.writes)
        self._failed, self._failed_in_all = parse(limits.failed_logins), parse(limits.failed_logins_in_all)
        self._uploads = RateLimitItemPerDay(max(1, limits.upload_bytes_per_day // MIB))
        self._streams: Counter[str] = Counter()
        self._guard = threading.Lock()

    def request(self, owner: str, *, writes: bool) -> None:
        """Count a request. Raises Problem 429 when there were too many."""
        item = self._writes if writes else self._reads
        if not self._moving.hit(item, "writes" if writes else "reads", owner):
            raise self._too_much("There were too many requests", item, "writes" if writes else "reads", owner)

    def upload(self, owner: str, num_bytes: int) -> None:
        """Count a file that was sent. Raises Problem 429 when the day's bytes are used up."""
        cost, key = max(1, -(-num_bytes // MIB)), ("uploads", owner)
        # Asked first: what is refused takes nothing. Two at the same time are still counted one after the other.
        if not self._kept.test(self._uploads, *key, cost=cost) or not self._kept.hit(self._uploads, *key, cost=cost):
            wait = str(max(1, int(self._kept.get_window_stats(self._uploads, *key).reset_time - time.time()) + 1))
            told = f"More than {self._uploads.amount} MiB would have been sent within a day; go on later."
            raise Problem(429, told, {"Retry-After": wait})

    def login_wait_seconds(self, address: str, token_id: str) -> int:
        """How long to wait before the next try with a token; 0 for not at all."""
        for item, keys in ((self._failed, (address, token_id)), (self._failed_in_all, (address,))):
            if not self._moving.test(item, "logins", *keys):
                return self._wait(item, "logins", *keys)
        return 0

    def login_failed(self, address: str, token_id: str) -> None:
        """Count a wrong token."""
        self._moving.hit(self._failed, "logins", address, token_id)
        self._moving.hit(self._failed_in_all, "logins", address)

    def check_streams(self, owner: str) -> None:
        """Raises Problem 429 when so many event streams are open that there can be no further one."""
        if self._streams[owner] >= self.limits.streams:
            raise Problem(429, f"{self.limits.streams} event streams are open already; close one.", {"Retry-After": "5"})

    @contextmanager
    def stream(self, owner: str) -> Iterator[None]:
        """An event stream that is open."""
        with self._guard:
            self._streams[owner] += 1
        try:
            yield
        finally:
            with self._guard:
                self._streams[owner] -= 1

    def _too_much(self, what: str, item: RateLimitItem, *keys: str) -> Problem:
        wait = self._wait(item, *keys)
        return Problem(429, f"{what}; {item} are the most. Wait {wait} seconds.", {"Retry-After": str(wait)})

    def _wait(self, item: RateLimitItem, *keys: str) -> int:
        return max(1, int(self._moving.get_window_stats(item, *keys).reset_time - time.time()) + 1)
