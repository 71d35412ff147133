"""A SQLite database in write-ahead mode: opened, checked, migrated with a backup, and used from any thread.

One connection per thread, `BEGIN IMMEDIATE` around every write, so that two writers wait for each other and never see
half of the other's work. What goes wrong becomes a sentence.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from studio.pipelines.errors import OutputError, StudioError, UserError
from studio.pipelines.files import output_errors

BUSY_SECONDS = 60.0
OPENING_SECONDS = 120.0


class DamagedDatabase(StudioError):  # noqa: N818 - the name says what it is
    """The file is no database, or not a whole one."""


class Database:
    """An open database.

    Args:
        path: the file; made if it is not there.
        migrations: SQL scripts; number n brings the schema from version n to n + 1.
        rebuild: called with the open database when the file was damaged and set aside, or is new: fills it from elsewhere.

    Attributes:
        set_aside: where a damaged file lies now; None if there was none.

    Raises:
        UserError: it was written by a newer version. OutputError: it cannot be written.
    """

    def __init__(self, path: Path, migrations: Sequence[str], rebuild: Callable[[Database], None] | None = None) -> None:
        self.path = path
        self.set_aside: Path | None = None
        self._migrations = migrations
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._process = os.getpid()
        self._inode: int | None = None
        with self._opening():
            self._open(rebuild)

    def read(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        with database_errors(self.path):
            return self._connection().execute(sql, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: kept as a whole at the end of the block, and not at all after an exception."""
        with database_errors(self.path):
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def was_replaced(self) -> bool:
        """Whether another process has set the file aside since it was opened here; `close` goes over to the new one."""
        try:
            return self._inode not in (None, self.path.stat().st_ino)
        except OSError:
            return False

    def close(self) -> None:
        """Close the connections of all threads; the next use opens them anew."""
        self._inode = None
        with self._guard:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        if self._process != os.getpid():  # a connection must not be carried into a forked process
            self._local, self._connections, self._process = threading.local(), [], os.getpid()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection
            with self._guard:
                self._connections.append(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            connection.close()
            raise OutputError(
                f"{self.path} cannot be kept in write-ahead mode on this disk. Set STUDIO_HOME to a folder on a local disk."
            )
        connection.execute("PRAGMA synchronous = NORMAL")
        self._inode = self.path.stat().st_ino
        return connection

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """One process at a time looks for damage and migrates."""
        with output_errors(self.path):
            lock = FileLock(self.path.with_suffix(".lock"))
            try:
                lock.acquire(timeout=OPENING_SECONDS)
            except Timeout as error:
                raise StudioError(
                    f"{self.path} is being opened by another process that does not end; look for one that hangs."
                ) from (error)
        try:
            yield
        finally:
            lock.release()

    def _open(self, rebuild: Callable[[Database], None] | None) -> None:
        is_new = not self.path.exists()
        try:
            with database_errors(self.path):
                self._check()
                self._migrate()
        except DamagedDatabase:
            self.set_aside = self._set_aside()
            is_new = True
            with database_errors(self.path):
                self._migrate()
        if is_new and rebuild is not None:
            rebuild(self)

    def _check(self) -> None:
        if self.path.exists():
            found = self._connection().execute("PRAGMA quick_check(1)").fetchone()
            if found is None or found[0] != "ok":
                raise DamagedDatabase(f"{self.path} is damaged.")

    def _migrate(self) -> None:
        connection = self._connection()
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(self._migrations):
            raise UserError(
                f"{self.path} was written by a newer version of the studio (its schema is {version}, and this one's is "
                f"{len(self._migrations)}). Update the studio, or choose another STUDIO_HOME."
            )
        if 0 < version < len(self._migrations):
            self._back_up(version)
        for number in range(version, len(self._migrations)):
            # One transaction each: a crash in the middle leaves the version before.
            connection.executescript(f"BEGIN IMMEDIATE; {self._migrations[number]}; PRAGMA user_version = {number + 1}; COMMIT;")

    def _back_up(self, version: int) -> None:
        target = self.path.with_name(f"{self.path.name}.v{version}.backup")
        temporary = target.with_name(f"{target.name}.part")
        temporary.unlink(missing_ok=True)
        copy = sqlite3.connect(temporary)
        try:
            self._connection().backup(copy)
        finally:
            copy.close()
        os.replace(temporary, target)

    def _set_aside(self) -> Path:
        self.close()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        target = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        number = 1
        while target.exists():
            number += 1
            target = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        with output_errors(self.path):
            os.replace(self.path, target)
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return target


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors inside the block into sentences about `path`; damage into `DamagedDatabase`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "full" in text:
            raise OutputError(
                f"{path} cannot be written: the disk is full; free some space or choose another STUDIO_HOME."
            ) from error
        if "readonly" in text or "unable to open" in text:
            raise OutputError(
                f"{path} cannot be written: there is no permission, or the disk is read-only; choose another STUDIO_HOME."
            ) from error
        if "locked" in text:
            raise StudioError(
                f"{path} is in use by another process for more than {BUSY_SECONDS:.0f} seconds; look for one that hangs."
            ) from error
        if "not a database" in text or "malformed" in text or "encrypted" in text:
            raise DamagedDatabase(
                f"{path} is damaged ({text}). Start again: it is set aside then, and made anew from the folders beside it."
            ) from error
        if "disk I/O" in text:
            raise OutputError(f"{path} cannot be read or written: the disk reports an error ({text}).") from error
        raise
