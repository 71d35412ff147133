"""Places in lists, as texts that mean nothing outside."""

from __future__ import annotations

import base64
import binascii
import math

from studio.api.problems import Problem


def cursor_of(place: str) -> str:
    """A place as text for an address."""
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def place_of(cursor: str) -> str:
    """The place that `cursor_of` made a text of. Raises Problem 422 for any other text."""
    try:
        place = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        raise _wrong() from None
    number(place.partition(":")[0])
    return place


def number(text: str) -> float:
    """A finite number. Raises Problem 422."""
    try:
        value = float(text)
    except ValueError:
        raise _wrong() from None
    if not math.isfinite(value):
        raise _wrong()
    return value


def _wrong() -> Problem:
    return Problem(422, "This cursor is no place in the list; take the one that the page before named, or none.")
