"""A picture again from what it says of itself: with the same files, in a forward of the same shape, the same to the bit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from studio.batch.fields import scheduler_name
from studio.batch.tasks import AdapterPart, BaseRef, FileRef, PictureTask, PlanTask
from studio.batch.workshop import Drawn, Workshop, processor_name
from studio.pipelines.base_facts import BaseFacts, read_base_facts
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import BaseModelError, MissingFileError, UserError
from studio.pipelines.pictures import PictureRecord, lora_short_hash
from studio.pipelines.pictures.foreign import PictureFacts, read_picture
from studio.pipelines.pictures.record import base_name

MAX_FILES = 20_000


@dataclass(frozen=True)
class Redone:
    """A picture drawn again.

    Attributes:
        max_difference: of its pixels from the old ones, of 255; None if the sizes differ. notes: what may explain it.
    """

    drawn: Drawn
    max_difference: int | None
    notes: tuple[str, ...]


def redo_picture(path: Path, folders: Sequence[Path], *, base: str | None, device: str) -> Redone:
    """Draw the picture at `path` again.

    Args:
        folders: where adapters and masks are looked for, also further down, by their hashes. base: the model to take; by
            default the one that the picture names.

    Raises:
        MissingFileError: an adapter or the base model is not there. UserError: the picture says too little.
    """
    facts = read_picture(path)
    if facts.tool is None:
        raise UserError(f"{path} does not say how it was made.")
    spec = _base_spec(facts) if base is None else base
    known = read_base_facts(spec)
    notes = _base_notes(facts, known, chosen=base is not None)
    ref = BaseRef(spec=spec, name=base_name(spec), content_hash=known.content_hash, family=known.family.name)
    record = facts.record
    workshop = Workshop(device)
    shape = {} if record is None else dict(record.drawn)
    if shape:
        torch.set_num_threads(int(shape.get("threads", torch.get_num_threads())))
    if record is not None and record.recipe:
        drawn = workshop.redraw_plan(_plan_task(record, ref, folders), shape)
    else:
        task = _picture_task(facts, ref, known, folders, path)
        stacks = {} if record is None else record.block_prompts
        drawn = workshop.redraw(task, shape, stacks)
    here = processor_name(torch.device(device))
    if shape and (shape.get("processor"), shape.get("torch")) != (here, torch.__version__.partition("+")[0]):
        notes.append(f"It was drawn on {shape.get('processor')} with torch {shape.get('torch')}, and now on {here} with "
                     f"{torch.__version__.partition('+')[0]}: the last bits may differ.")  # fmt: skip
    was, now = shape.get("kernels"), drawn.record.drawn.get("kernels")
    if was != now:
        notes.append(f"Its adapters acted otherwise ({was}; now {now}), which cannot be done here: the last bits may differ.")
    return Redone(drawn, _difference(path, drawn.data), tuple(notes))


def _base_spec(facts: PictureFacts) -> str:
    """The base model that a picture names, if it is here."""
    embedded = read_base_facts("embedded")
    if facts.model_hash and embedded.content_hash.startswith(facts.model_hash.lower()):
        return "embedded"
    if facts.model and (Path(facts.model).exists() or facts.model == "embedded"):
        return facts.model
    raise MissingFileError(
        f"The picture was made with the base model {facts.model!r} (hash {str(facts.model_hash)[:10]}); name it with --base."
    )


def _base_notes(facts: PictureFacts, known: BaseFacts, *, chosen: bool) -> list[str]:
    wanted = "" if facts.model_hash is None else facts.model_hash.lower()
    if wanted and known.content_hash.startswith(wanted):
        return []
    if facts.record is not None and not chosen:
        raise BaseModelError(
            f"The base model {known.source!r} has changed since the picture was made: its hash is {known.content_hash[:10]}, and "
            f"was {wanted[:10]}. Name the right one with --base, or this one, to draw with it all the same."
        )
    return [f"It was drawn with another base model ({facts.model}, hash {wanted[:10] or 'unknown'})."]


def _picture_task(facts: PictureFacts, base: BaseRef, known: BaseFacts, folders: Sequence[Path], path: Path) -> PictureTask:
    family, record = known.family, facts.record
    if facts.seed is None:
        raise UserError(f"{path} does not say its seed.")
    if record is not None:
        parts = [
            AdapterPart(
                file=_by_sha256(use.sha256, use.name, folders),
                short_hash=use.short_hash,
                strength=use.strength,
                half=use.role,  # type: ignore[arg-type]
            )
            for use in record.adapters
        ]
    else:
        parts = [_by_name(name, strength, facts.adapter_hashes.get(name), folders) for name, strength in facts.adapters]
    return PictureTask(
        index=0,
        id="" if record is None else str(record.drawn.get("job", "")),
        base=base,
        prompt=facts.prompt,
        negative_prompt=facts.negative_prompt,
        seed=facts.seed,
        steps=family.default_steps if facts.steps is None else facts.steps,
        guidance_scale=family.default_guidance_scale if facts.guidance_scale is None else facts.guidance_scale,
        width=facts.width,
        height=facts.height,
        scheduler=family.default_scheduler if facts.sampler is None else scheduler_name(facts.sampler),
        dtype="float32" if record is None else record.dtype,
        adapters=tuple(parts),
    )


def _plan_task(record: PictureRecord, base: BaseRef, folders: Sequence[Path]) -> PlanTask:
    files: dict[str, FileRef] = {}
    entries = []
    for entry in record.recipe.get("entries", []):
        values = dict(entry)
        file = _by_sha256(values["sha256"], Path(values["adapter"]).stem, folders)
        files[file.path] = file
        values["adapter"] = file.path
        region = values.get("region")
        if isinstance(region, dict) and region.get("mask"):
            mask = _by_sha256(region["mask_sha256"], region["mask"], folders)
            files[mask.path] = mask
            values["region"] = {**region, "mask": mask.path}
        entries.append(values)
    plan = {key: value for key, value in record.recipe.items() if key != "base_sha256"} | {"entries": entries, "base": base.spec}
    task_id = str(record.drawn.get("job", ""))
    return PlanTask(index=0, id=task_id, base=base, plan=plan, dtype=record.dtype, files=files)


def _by_sha256(sha256: str, name: str, folders: Sequence[Path]) -> FileRef:
    """The file of that content, those of that name looked at first."""
    for path in _files(folders, name):
        if file_sha256(path) == sha256:
            return FileRef(path=str(path.resolve()), sha256=sha256)
    looked = ", ".join(str(folder) for folder in folders)
    raise MissingFileError(f"There is no {name} with the hash {sha256[:10]}… in {looked}; name its folder with --adapters-dir.")


def _by_name(name: str, strength: float, short_hash: str | None, folders: Sequence[Path]) -> AdapterPart:
    """The adapter that another tool knows by a name, and perhaps by a hash."""
    found = [path for path in _files(folders, name) if path.suffix == ".safetensors"]
    for path in found:
        own = lora_short_hash(path)
        if own == short_hash or (short_hash is None and path.stem == name):
            return AdapterPart(
                file=FileRef(path=str(path.resolve()), sha256=file_sha256(path)), short_hash=own, strength=strength
            )
    looked = ", ".join(str(folder) for folder in folders)
    told = "" if short_hash is None else f" with the hash {short_hash}"
    raise MissingFileError(f"There is no adapter {name}{told} in {looked}; name its folder with --adapters-dir.")


def _files(folders: Sequence[Path], name: str) -> Iterator[Path]:
    """Files in the folders and below: first those called `name`, then all adapters."""
    found: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            for path in folder.rglob("*"):
                if path.suffix in (".safetensors", ".png") and path.is_file() and len(found) < MAX_FILES:
                    found.append(path)
    yield from sorted(found, key=lambda path: (name not in (path.stem, path.name), str(path)))


def _difference(path: Path, data: bytes) -> int | None:
    with Image.open(path) as old, Image.open(io.BytesIO(data)) as new:
        if old.size != new.size:
            return None
        pixels = [np.asarray(image.convert("RGB")).astype(int) for image in (old, new)]
    return int(abs(pixels[0] - pixels[1]).max())
