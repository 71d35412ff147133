"""What a batch's workers are given: closed values that travel as JSON, with a hash for every file they need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from studio.batch.fields import Part

PIXELS = 1
"""Counted up when the same request would draw another picture than before, beyond rounding."""


class FileRef(Part):
    """A file by its content. `path`: where it lay when the batch was read; elsewhere it is found by its hash."""

    path: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem


class BaseRef(Part):
    """A base model by place and content. `name`: what records call it, wherever it lies."""

    spec: str
    name: str
    content_hash: str
    family: str


class AdapterPart(Part):
    """An adapter in a picture. `short_hash`: as other tools know it."""

    file: FileRef
    short_hash: str
    strength: float
    half: Literal["content", "style"] | None = None

    def key(self) -> tuple[str, float, str]:
        """What two uses of the same adapter have in common."""
        return (self.file.sha256, self.strength, self.half or "")


class PictureTask(Part):
    """One picture from a prompt, with every default filled in."""

    kind: Literal["generate"] = "generate"
    index: int
    id: str = ""
    base: BaseRef
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    scheduler: str
    dtype: str
    adapters: tuple[AdapterPart, ...] = ()

    @property
    def title(self) -> str:
        """What lists call it."""
        return self.prompt

    def identity(self) -> dict[str, Any]:
        """What decides its pixels: no names, no places."""
        values = self.model_dump(exclude={"index", "id", "base", "adapters"})
        return values | {"base": self.base.content_hash, "adapters": [list(each.key()) for each in self.adapters]}


class PlanTask(Part):
    """One picture of a composition.

    Attributes:
        plan: all keys of a plan, its adapters and masks as paths with hashes.
        files: the adapters and masks, by the name that `plan` has for them.
    """

    kind: Literal["compose"] = "compose"
    index: int
    id: str = ""
    base: BaseRef
    plan: Mapping[str, Any]
    dtype: str
    files: Mapping[str, FileRef] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """What lists call it."""
        return str(self.plan.get("prompt", ""))

    @property
    def seed(self) -> int:
        """Of the picture."""
        return int(self.plan.get("seed", 0))

    def identity(self) -> dict[str, Any]:
        """What decides its pixels."""
        plan = {key: value for key, value in self.plan.items() if key not in ("base", "base_sha256", "num_images")}
        plan["entries"] = [_without_places(entry) for entry in plan.get("entries", [])]
        return {"kind": self.kind, "base": self.base.content_hash, "dtype": self.dtype, "plan": plan}


class TrainTask(Part):
    """One training. `settings`: the tables of a training's config; `photos`: what it learns from."""

    kind: Literal["train"] = "train"
    index: int
    id: str = ""
    base: BaseRef
    method: str
    settings: Mapping[str, Mapping[str, Any]]
    photos: Mapping[str, FileRef]
    num_processes: int = 1

    @property
    def title(self) -> str:
        """What lists call it."""
        concept = self.settings.get("concept", {})
        return f"{self.method} {concept.get('token', 'ohwx')} {concept.get('class_noun', '')}".strip()

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.settings.get("run", {}).get("seed", 0))

    def identity(self) -> dict[str, Any]:
        """What decides its result."""
        settings = {
            name: {key: value for key, value in table.items() if (name, key) not in _PLACES}
            for name, table in self.settings.items()
        }
        photos = sorted((name, photo.sha256) for name, photo in self.photos.items())
        return {"kind": self.kind, "base": self.base.content_hash, "method": self.method, "settings": settings, "photos": photos}


Task = Annotated[PictureTask | PlanTask | TrainTask, Field(discriminator="kind")]

_PLACES = (("run", "output_dir"), ("run", "device"), ("concept", "images"), ("model", "base"))


class GroupTask(Part):
    """Tasks that share a forward, decided from the whole expansion; or one training.

    Attributes:
        index: its place in the order of work. tasks: a row each.
        num_rows: rows of the forward; those after the tasks repeat the last one, and are thrown away.
        pattern: for each row, the number of the set of adapters it has.
        packs: whether weights may be laid out anew for a CPU; see `kernels.packed_layers`.
    """

    index: int
    tasks: tuple[Task, ...]
    num_rows: int
    pattern: tuple[int, ...]
    packs: bool = True

    def padded(self) -> list[PictureTask | PlanTask | TrainTask]:
        """A task for every row."""
        return [*self.tasks, *[self.tasks[-1]] * (self.num_rows - len(self.tasks))]


def with_id(task: PictureTask | PlanTask | TrainTask) -> PictureTask | PlanTask | TrainTask:
    """The task with the hash of its identity, 64 hex digits, as its id."""
    text = json.dumps(task.identity() | {"pixels": PIXELS}, sort_keys=True, ensure_ascii=False, default=str)
    return task.model_copy(update={"id": hashlib.sha256(text.encode()).hexdigest()})


def files_of(tasks: Iterable[PictureTask | PlanTask | TrainTask]) -> dict[str, FileRef]:
    """Every file that tasks need besides their base model, by hash."""
    found: dict[str, FileRef] = {}
    for task in tasks:
        if isinstance(task, PictureTask):
            refs = [each.file for each in task.adapters]
        else:
            refs = list(task.files.values() if isinstance(task, PlanTask) else task.photos.values())
        found |= {ref.sha256: ref for ref in refs}
    return found


def _without_places(entry: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in entry.items() if key not in ("adapter", "name")}
    if isinstance(values.get("region"), Mapping):
        values["region"] = {key: value for key, value in values["region"].items() if key != "mask"}
    return values
