"""File names of pictures: sortable, telling, and valid on every system."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

MAX_SLUG = 60
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}
_NUMBERED = re.compile(r"(\d{5,})-.*\.png")


def slug(text: str) -> str:
    """`text` as lower-case ASCII letters, digits and single hyphens, at most 60; "picture" if nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_SLUG].strip("-")
    return f"{words}-" if words in _RESERVED else words or "picture"


def picture_name(index: int, seed: int, prompt: str, content_hash: str) -> str:
    """`{index:05d}-{seed}-{slug}-{hash8}.png`."""
    return f"{index:05d}-{seed}-{slug(prompt)}-{content_hash[:8]}.png"


def next_index(folder: Path) -> int:
    """The first number after those of the pictures that `folder` holds; 0 for an empty or missing one."""
    if not folder.is_dir():
        return 0
    found = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) + 1 for match in found if match), default=0)
