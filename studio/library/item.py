"""What the library knows about one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any


class Kind(StrEnum):
    """What a thing is."""

    ADAPTER = "adapter"
    CONCEPT = "concept"
    BASE = "base"
    PLAN = "plan"
    PICTURE = "picture"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing.

    Attributes:
        id: SHA-256, 64 hex digits: of the file, of a concept's photos, of a base model's weight files.
        kind: see `Kind`. name: for people; need not be unique. owner: whose it is.
        path: where it is now; the library's own files lie under its folder.
        num_bytes: its size. added: seconds since 1970.
        family: of the base model it is or is for. type: of an adapter: "lora", "lokr", … rank: of an adapter.
        trigger: the words that call it. class_noun: what it is one of.
        score: one number for lists: of a trained adapter how well its concept was learned; of a picture how well it fits.
        notes, tags, favourite: a person's own.
        content: equal for things that do or show the same, though their files differ.
        trashed: when it was put into the trash. missing: whether its file was gone when it was last looked for.
        has_thumbnail: whether there is a small picture of it.
        facts: what else is known, by kind: prompt and seed of a picture, scores of a training, number of photos, …
    """

    id: str
    kind: str
    name: str
    path: Path
    num_bytes: int
    added: float
    owner: str = ""
    family: str | None = None
    type: str | None = None
    rank: int | None = None
    trigger: str | None = None
    class_noun: str | None = None
    score: float | None = None
    notes: str = ""
    tags: tuple[str, ...] = ()
    favourite: bool = False
    content: str = ""
    trashed: float | None = None
    missing: bool = False
    has_thumbnail: bool = False
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict_shallow(self), "path": str(self.path), "tags": list(self.tags), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Item:
        """Back from `to_json`; unknown keys are passed over. Raises KeyError or TypeError for anything else."""
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        known |= {"path": Path(known["path"]), "tags": tuple(known.get("tags", ()))}
        return cls(**known)


def asdict_shallow(item: Item) -> dict[str, Any]:
    """The fields as they are."""
    return {each.name: getattr(item, each.name) for each in fields(item)}
