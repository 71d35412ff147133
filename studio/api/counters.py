"""Counters that a restart does not forget, as a storage of the library `limits` in the database of tokens."""

from __future__ import annotations

import sqlite3
import time

from limits.storage import Storage

from studio.storage.database import Database


class KeptCounters(Storage):
    """Fixed windows in the table `counters` of a database; processes that have it open count together."""

    STORAGE_SCHEME = None

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database

    @property
    def base_exceptions(self) -> type[Exception]:
        """What goes wrong underneath."""
        return sqlite3.Error

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a counter, which begins a new window of `expiry` seconds if its last one is over; what it is now."""
        now = time.time()
        with self.database.write() as connection:
            connection.execute("DELETE FROM counters WHERE expires <= ?", (now,))
            sql = "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET amount = amount + excluded.amount"
            connection.execute(sql, (key, amount, now + expiry))
            return int(connection.execute("SELECT amount FROM counters WHERE key = ?", (key,)).fetchone()[0])

    def get(self, key: str) -> int:
        """What a counter is now."""
        rows = self.database.read("SELECT amount FROM counters WHERE key = ? AND expires > ?", (key, time.time()))
        return int(rows[0][0]) if rows else 0

    def get_expiry(self, key: str) -> float:
        """When a counter's window ends, in seconds since 1970."""
        rows = self.database.read("SELECT expires FROM counters WHERE key = ?", (key,))
        return float(rows[0][0]) if rows else time.time()

    def check(self) -> bool:
        """Whether the database can be read."""
        return bool(self.database.read("SELECT 1"))

    def reset(self) -> int:
        """Forget all counters; how many there were."""
        with self.database.write() as connection:
            return connection.execute("DELETE FROM counters").rowcount

    def clear(self, key: str) -> None:
        """Forget a counter."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM counters WHERE key = ?", (key,))
