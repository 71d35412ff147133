"""Names of jobs: sortable by time, short enough to be typed."""

from __future__ import annotations

import re
import secrets
import time

from studio.pipelines.errors import UserError

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_ID = re.compile(r"\d{6}-\d{6}-[a-z0-9]{6}")


def new_id(now: float | None = None) -> str:
    """As 260127-131501-k3f9xa: the time in UTC, and six letters of chance."""
    moment = time.gmtime(time.time() if now is None else now)
    return time.strftime("%y%m%d-%H%M%S-", moment) + "".join(secrets.choice(_ALPHABET) for _ in range(6))


def is_id(text: str) -> bool:
    """Whether `text` looks like a job's id; nothing else may become part of a path."""
    return _ID.fullmatch(text) is not None


def check_id(text: str) -> str:
    """`text`, if it looks like a job's id; `UserError` otherwise."""
    if not is_id(text):
        raise UserError(f"{text[:60]!r} is no job's id; they look like 260127-131501-k3f9xa, see `studio jobs list`.")
    return text
