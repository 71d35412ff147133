"""What a thing is, found out from its files: one function for each kind, none of which changes anything."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.library.item import Kind
from studio.pipelines.base_files.content_hash import content_hash, file_sha256
from studio.pipelines.errors import ImageError, MissingFileError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Found:
    """A thing's id, what it says about itself, and a picture of it if there is one; see `Item` for the names."""

    kind: Kind
    id: str
    name: str
    num_bytes: int
    content: str = ""
    family: str | None = None
    type: str | None = None
    rank: int | None = None
    trigger: str | None = None
    class_noun: str | None = None
    notes: str = ""
    tags: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    picture: Image.Image | None = None
    files: Sequence[Path] = ()


def read_adapter(path: Path) -> Found:
    """An adapter file of any dialect, read in full: whatever is wrong with it is told now and not when it is used.

    Raises:
        MissingFileError: there is no file. AdapterFileError: it is damaged, hostile or of a kind that is not read.
    """
    from studio.library.thumbnails import picture_of_data_url
    from studio.pipelines.adapters.summary import summarize

    summary = summarize(path)
    info = summary.info
    facts = {
        "dialect": summary.dialect,
        "num_parameters": summary.num_parameters,
        "ranks": {str(rank): count for rank, count in summary.ranks.items()},
        "kinds": dict(summary.kinds),
        "base_name": info.base_name,
        "base_hash": info.base_hash,
        "roles": list(info.roles),
        "created": info.created,
        "description": info.description,
        "author": info.author,
        "license": info.license,
        "resolution": info.resolution,
        "steps": info.training.get("steps"),
    }
    return Found(
        kind=Kind.ADAPTER,
        id=summary.sha256,
        name=info.name,
        num_bytes=summary.file_bytes,
        content=summary.content_hash,
        family=info.family,
        type=info.type,
        rank=next(iter(summary.ranks), None),
        trigger=info.trigger,
        class_noun=info.class_noun,
        tags=tuple(info.tags),
        facts={name: value for name, value in facts.items() if value},
        picture=None if info.thumbnail is None else picture_of_data_url(info.thumbnail),
    )


def read_concept(path: Path) -> Found:
    """A folder of photos, or one photo.

    Raises:
        DatasetError: there are no photos, or some cannot be used; names every one.
    """
    from studio.library.thumbnails import sheet_of_four
    from studio.training.data.folder import find_images, read_photos

    files = find_images(path)
    photos = read_photos(files)
    captions = [file.with_suffix(".txt") for file in files]
    texts = [caption.read_text(encoding="utf-8", errors="replace") if caption.is_file() else None for caption in captions]
    lines = sorted(f"{photo.content_hash} {text or ''}" for photo, text in zip(photos, texts, strict=True))
    sizes = sorted({photo.image.size for photo in photos})
    return Found(
        kind=Kind.CONCEPT,
        id=hashlib.sha256("\n".join(["concept", *lines]).encode()).hexdigest(),
        name=path.stem if path.is_file() else path.resolve().name,
        num_bytes=sum(file.stat().st_size for file in files),
        content=hashlib.sha256("\n".join(sorted(photo.content_hash for photo in photos)).encode()).hexdigest(),
        facts={
            "num_photos": len(photos),
            "num_captions": sum(text is not None for text in texts),
            "smallest": list(min(sizes, key=math.prod)),
        },
        picture=sheet_of_four([photo.image for photo in photos]),
        files=tuple(files) + tuple(caption for caption in captions if caption.is_file()),
    )


def read_base(path: Path) -> Found:
    """A base model in a folder in the diffusers layout, or a checkpoint; its weights are hashed and not loaded.

    Raises:
        MissingFileError: there is nothing. BaseModelError: it is none that can be used.
    """
    from studio.pipelines.base_files.weight_files import find_weight_files
    from studio.pipelines.families import detect_family

    if path.is_file():
        from studio.pipelines.base_files.single_file import checkpoint_family, read_shapes

        family = checkpoint_family(path, read_shapes(path)).name
        files: tuple[Path, ...] = (path,)
    else:
        if not (path / "model_index.json").is_file():
            raise MissingFileError(f"There is no base model in {path}: it has no model_index.json.")
        encoders = [path / name for name in ("text_encoder", "text_encoder_2") if (path / name / "config.json").is_file()]
        configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (path / "unet", *encoders)]
        family = detect_family(configs[0], configs[1:]).name
        parts = [path / "unet", path / "vae", *encoders]
        files = tuple(file for part in parts for file in find_weight_files(part)[1])
    return Found(
        kind=Kind.BASE,
        id=content_hash(path if path.is_dir() else path.parent, files),
        name=path.stem if path.is_file() else path.resolve().name,
        num_bytes=sum(file.stat().st_size for file in files),
        family=family,
        files=files,
    )


def read_plan_file(path: Path) -> Found:
    """A composition plan as YAML or JSON, or in a picture.

    Raises:
        MissingFileError: there is no file. ConfigError: it is no plan; says all that is wrong.
    """
    from studio.composition.plan_files import plan_values, read_plan

    plan = read_plan(path)
    text = json.dumps(plan_values(plan), sort_keys=True, ensure_ascii=False)
    return Found(
        kind=Kind.PLAN,
        id=hashlib.sha256(f"plan {text}".encode()).hexdigest(),
        name=path.stem,
        num_bytes=len(text.encode()),
        type=plan.strategy.name,
        facts={"prompt": plan.prompt, "adapters": ", ".join(entry.title for entry in plan.entries), "plan": plan_values(plan)},
    )


def read_picture(path: Path) -> Found:
    """A picture, with what it says about how it was made.

    Raises:
        MissingFileError: there is no file. ImageError: it cannot be used.
    """
    from studio.pipelines.pictures import read_png
    from studio.training.data.images import ImageLimits, read_photo

    if not path.is_file():
        raise MissingFileError(f"There is no picture at {path}.")
    photo = read_photo(path, ImageLimits(min_side=1, max_aspect=50.0))
    facts: dict[str, Any] = {"width": photo.image.width, "height": photo.image.height}
    family = None
    if path.suffix.lower() == ".png":
        try:
            record, infotext = read_png(path)
        except ImageError:
            record, infotext = None, None
        if record is not None:
            family = record.family
            facts |= {
                "prompt": record.prompt,
                "negative_prompt": record.negative_prompt,
                "seed": record.seed,
                "steps": record.steps,
            }
            facts |= {"adapters": ", ".join(use.name for use in record.adapters), "base": record.base}
            facts["adapter_ids"] = [use.sha256 for use in record.adapters]
        elif infotext is not None:
            facts |= {"prompt": infotext.prompt, "seed": infotext.settings.get("Seed"), "base": infotext.settings.get("Model")}
    return Found(
        kind=Kind.PICTURE,
        id=file_sha256(path),
        name=path.stem,
        num_bytes=path.stat().st_size,
        content=photo.content_hash,
        family=family,
        facts={name: value for name, value in facts.items() if value not in (None, "", [])},
        picture=photo.image,
    )
