"""How often and how much: rates and quotas per person, kept in this process by the library `limits`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItem, RateLimitItemPerDay, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from studio.api.problems import Problem
from studio.api.settings import MIB, Limits


class Throttle:
    """What everybody has taken so far; it begins anew with the process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        storage = MemoryStorage()
        self._moving = MovingWindowRateLimiter(storage)
        self._fixed = FixedWindowRateLimiter(storage)
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
        if not self._fixed.hit(self._uploads, "uploads", owner, cost=max(1, -(-num_bytes // MIB))):
            raise Problem(429, f"More than {self._uploads.amount} MiB were sent today; go on tomorrow.", {"Retry-After": "3600"})

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
