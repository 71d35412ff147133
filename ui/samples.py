"""The sample concepts that come with the studio: photos for whoever has none at hand."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

SAMPLES = ("cat", "mug", "robot")


def sample_photos(name: str) -> list[Path]:
    """The photos of one sample. Raises KeyError when there is none of that name."""
    if name not in SAMPLES:
        raise KeyError(name)
    folder = Path(str(resources.files("studio.assets") / "concepts" / name))
    return sorted(folder.glob("*.png"))


def sample_noun(name: str) -> str:
    """What it is one of."""
    folder = resources.files("studio.assets") / "concepts" / name
    return str(json.loads((folder / "concept.json").read_text(encoding="utf-8"))["class_noun"])
