"""`Idempotency-Key`: the same request sent twice is done once, and answered twice.

As in the IETF's draft-ietf-httpapi-idempotency-key-header: the key with another request is 422, and while the first one
is not answered yet it is 409. Answers are kept for a day.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from studio.api.access import Access
from studio.api.problems import Problem
from studio.storage.database import Database

KEPT_SECONDS = 86_400.0
UNANSWERED_SECONDS = 600.0
"""After this long without an answer the process that had the request is taken to be dead."""

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=120,
        pattern=r"^[\x21-\x7e]+$",
        description="Chosen by you; the same key with the same request is done only once.",
    ),
]


@dataclass(frozen=True)
class Answer:
    """What is answered: a status and a body."""

    status: int
    body: BaseModel


def once(access: Access, owner: str, key: str | None, asked: Any, make: Callable[[], Answer]) -> Response:
    """Answer with what `make` makes; for a key that was answered before, with that answer.

    Args:
        asked: all that makes the request this one, as JSON values.

    Raises:
        Problem: 409 or 422, see above.
    """
    if key is None:
        return _response(make())
    known = _claim(access.database, owner, key, fingerprint_of(asked))
    if known is not None:
        return known
    try:
        answer = make()
    except BaseException:
        with access.database.write() as connection:  # nothing was done: the same key may try again
            connection.execute("DELETE FROM answers WHERE owner = ? AND key = ?", (owner, key))
        raise
    with access.database.write() as connection:
        connection.execute(
            "UPDATE answers SET status = ?, body = ? WHERE owner = ? AND key = ?",
            (answer.status, answer.body.model_dump_json(), owner, key),
        )
    return _response(answer)


def fingerprint_of(asked: Any) -> str:
    """64 hex digits, the same for the same JSON values."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode("utf-8", "replace")).hexdigest()


def _claim(database: Database, owner: str, key: str, fingerprint: str) -> Response | None:
    now = time.time()
    with database.write() as connection:
        connection.execute("DELETE FROM answers WHERE created < ?", (now - KEPT_SECONDS,))
        connection.execute("DELETE FROM answers WHERE status IS NULL AND created < ?", (now - UNANSWERED_SECONDS,))
        sql = "SELECT fingerprint, status, body FROM answers WHERE owner = ? AND key = ?"
        row: sqlite3.Row | None = connection.execute(sql, (owner, key)).fetchone()
        if row is None:
            values = (owner, key, fingerprint, now)
            connection.execute("INSERT INTO answers (owner, key, fingerprint, created) VALUES (?, ?, ?, ?)", values)
            return None
    if row["fingerprint"] != fingerprint:
        raise Problem(422, "This Idempotency-Key was used for another request; take a new one.")
    if row["status"] is None:
        raise Problem(409, "The first request with this Idempotency-Key is still being worked on.", {"Retry-After": "2"})
    return Response(row["body"], row["status"], {"Idempotency-Replayed": "true"}, "application/json")


def _response(answer: Answer) -> Response:
    return JSONResponse(answer.body.model_dump(mode="json"), answer.status)
