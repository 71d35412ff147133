"""Who may ask: tokens and logins, of which only hashes are kept.

A token is `st_ID_SECRET`. The secret has 256 bits of chance, so that one SHA-256 of it is as good as a slow hash of a word
that a person thought of. A login in the browser is a session that its token begins and that ends with it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from studio.pipelines.errors import MissingFileError, UserError
from studio.storage.database import Database
from studio.storage.home import Home

Scope = Literal["read", "draw", "train", "library", "page", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""read: own jobs and things. draw, train: hand in jobs. library: bring in and change things. page: the page in the browser,
with all that it can do. admin: all of these, everybody's jobs and things, the queue, figures."""

SESSION_SECONDS = 7 * 86_400.0
_USED_EVERY = 60.0
_TOKEN = re.compile(r"st_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[\w .@+-]{1,100}")
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"

MIGRATIONS = (
    """
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, owner TEXT NOT NULL, hash TEXT NOT NULL, scopes TEXT NOT NULL,
        created REAL NOT NULL, expires REAL, revoked REAL, used REAL
    );
    CREATE TABLE sessions (
        hash TEXT PRIMARY KEY, token TEXT NOT NULL REFERENCES tokens (id), expires REAL NOT NULL
    );
    CREATE TABLE answers (
        owner TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL, status INTEGER, body TEXT, created REAL NOT NULL,
        PRIMARY KEY (owner, key)
    )
    """,
    "CREATE TABLE counters (key TEXT PRIMARY KEY, amount INTEGER NOT NULL, expires REAL NOT NULL)",
)


@dataclass(frozen=True)
class Caller:
    """Who asks. owner: whose jobs and things they see; "" is the local person. token: its id; None without one."""

    owner: str
    scopes: frozenset[str]
    token: str | None = None

    def may(self, scope: str) -> bool:
        """Whether their token covers `scope`."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def sees_all(self) -> bool:
        """Whether other people's jobs and things are shown, too."""
        return "admin" in self.scopes


LOCAL = Caller("", frozenset(SCOPES))


@dataclass(frozen=True)
class Token:
    """What is kept of a token: all but its secret. Times in seconds since 1970, None where it did not happen."""

    id: str
    name: str
    owner: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    revoked: float | None
    used: float | None

    @property
    def is_valid(self) -> bool:
        """Whether it still opens anything."""
        return self.revoked is None and (self.expires is None or self.expires > time.time())


class Access:
    """The tokens and logins of one home, in a database that only its person can read."""

    def __init__(self, home: Home) -> None:
        path = home.create().root / "access.sqlite3"
        self.database = Database(path, MIGRATIONS)
        _for_me_alone(path)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def __enter__(self) -> Access:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(
        self, name: str, *, scopes: Iterable[str] = ("read", "draw"), owner: str | None = None, days: float | None = None
    ) -> tuple[Token, str]:
        """A new token, and its text, which is told this once.

        Args:
            owner: whose jobs and things it shows; by default `name`. days: how long it is valid; by default until revoked.

        Raises:
            UserError: the name or a scope cannot be.
        """
        owner = name if owner is None else owner
        for text in (name, owner):
            if not _NAME.fullmatch(text):
                raise UserError(f"{text[:40]!r} is no name for a token: take up to 100 letters, digits, spaces and .@+-_")
        wanted = tuple(scope for scope in SCOPES if scope in set(scopes))
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not wanted:
            raise UserError(f"{', '.join(unknown) or 'nothing'} is no scope; there are {', '.join(SCOPES)}.")
        if any(token.name == name and token.is_valid for token in self.tokens()):
            raise UserError(f"There is a token {name!r} already; revoke it, or take another name.")
        token_id, secret = "".join(secrets.choice(_ALPHABET) for _ in range(8)), secrets.token_urlsafe(32)
        now = time.time()
        expires = None if days is None else now + days * 86_400.0
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (token_id, name, owner, hashed(secret), " ".join(wanted), now, expires),
            )
        return Token(token_id, name, owner, wanted, now, expires, None, None), f"st_{token_id}_{secret}"

    def tokens(self) -> list[Token]:
        """All tokens, revoked ones too, the oldest first."""
        sql = "SELECT id, name, owner, scopes, created, expires, revoked, used FROM tokens ORDER BY created, id"
        return [Token(row[0], row[1], row[2], tuple(row[3].split()), *row[4:]) for row in self.database.read(sql)]

    def revoke(self, text: str) -> Token:
        """End a token, named by its id or its name, and every login that it began. Raises MissingFileError for none."""
        found = [token for token in self.tokens() if text in (token.id, token.name) and token.revoked is None]
        if not found:
            raise MissingFileError(f"There is no token {text[:60]!r} to revoke; `studio token list` shows those that there are.")
        with self.database.write() as connection:
            connection.execute("UPDATE tokens SET revoked = ? WHERE id = ?", (time.time(), found[0].id))
            connection.execute("DELETE FROM sessions WHERE token = ?", (found[0].id,))
        return next(token for token in self.tokens() if token.id == found[0].id)

    def caller_of_token(self, text: str) -> Caller | None:
        """Who comes with this token; None if it opens nothing."""
        match = _TOKEN.fullmatch(text)
        rows = self._rows("WHERE id = ?", match[1]) if match is not None else []
        # The comparison takes the same time whether or not there is such an id.
        kept = rows[0]["hash"] if rows else hashed("")
        same = hmac.compare_digest(kept, hashed(match[2] if match is not None else text))
        return self._caller(rows[0]) if rows and same else None

    def caller_of_session(self, text: str) -> Caller | None:
        """Who is logged in with this cookie; None for nobody."""
        sql = "WHERE id = (SELECT token FROM sessions WHERE sessions.hash = ? AND sessions.expires > ?)"
        rows = self._rows(sql, hashed(text), time.time())
        return self._caller(rows[0]) if rows else None

    def log_in(self, token: str) -> str | None:
        """Begin a session, and return what its cookie holds; None if the token opens nothing."""
        caller = self.caller_of_token(token)
        if caller is None:
            return None
        text, now = secrets.token_urlsafe(32), time.time()
        with self.database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE expires < ?", (now,))
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (hashed(text), caller.token, now + SESSION_SECONDS))
        return text

    def log_out(self, text: str) -> None:
        """End a session."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE hash = ?", (hashed(text),))

    def _rows(self, where: str, *values: object) -> list[sqlite3.Row]:
        return self.database.read(f"SELECT id, owner, hash, scopes, expires, revoked, used FROM tokens {where}", values)  # noqa: S608

    def _caller(self, row: sqlite3.Row) -> Caller | None:
        now = time.time()
        if row["revoked"] is not None or (row["expires"] is not None and row["expires"] <= now):
            return None
        if row["used"] is None or now - row["used"] > _USED_EVERY:
            with self.database.write() as connection:
                connection.execute("UPDATE tokens SET used = ? WHERE id = ?", (now, row["id"]))
        return Caller(row["owner"], frozenset(row["scopes"].split()), row["id"])


def hashed(text: str) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def token_id_of(text: str) -> str:
    """The part of a token that may be told; "" for what is no token."""
    match = _TOKEN.fullmatch(text)
    return "" if match is None else match[1]


def _for_me_alone(path: Path) -> None:
    if os.name == "posix":
        path.chmod(0o600)
