"""From what a person asks to what a job can be sure of: names become files with hashes, seeds are drawn, mistakes are told.

All of it happens when the job is handed in, so that a person hears at once what is wrong, and so that the job draws the
same pictures whenever it runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from studio.composition.plan import CompositionPlan
from studio.composition.plan_checks import plan_problems
from studio.jobs.specs import (
    AdapterChoice,
    BatchSpec,
    ComposeSpec,
    ControlPicture,
    Drawing,
    GenerateSpec,
    StartPicture,
    StylizeSpec,
    TrainSpec,
)
from studio.library.item import Kind
from studio.library.library import Library
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import AdapterFileError, ConfigError, ImageError, MissingFileError
from studio.training.config import validate

Drawn = TypeVar("Drawn", bound=Drawing)

EMBEDDED = "embedded"


def resolved_generate(library: Library, spec: GenerateSpec) -> GenerateSpec:
    """With files, hashes and a seed."""
    adapters = tuple(resolved_adapter(library, choice) for choice in spec.adapters)
    pictures = {"start": resolved_start(library, spec.start), "control": resolved_control(library, spec.control)}
    return _with_seed(spec).model_copy(update={"adapters": adapters, "base": resolved_base(library, spec.base), **pictures})


def resolved_start(library: Library, start: StartPicture | None) -> StartPicture | None:
    """With files and hashes; errors as in `resolved_picture`."""
    if start is None:
        return None
    picture, sha256 = resolved_picture(library, start.picture, start.sha256)
    mask, mask_sha256 = (None, None) if start.mask is None else resolved_picture(library, start.mask, start.mask_sha256)
    return start.model_copy(update={"picture": picture, "sha256": sha256, "mask": mask, "mask_sha256": mask_sha256})


def resolved_control(library: Library, control: ControlPicture | None) -> ControlPicture | None:
    """With the file, its hash, and the folder of the ControlNet. Raises MissingFileError when there is none."""
    if control is None:
        return None
    folder = Path(control.model).expanduser().absolute()
    if not folder.is_dir():
        raise MissingFileError(f"There is no ControlNet in {folder}: name a folder in the diffusers layout.")
    picture, sha256 = resolved_picture(library, control.picture, control.sha256)
    return control.model_copy(update={"model": str(folder), "picture": picture, "sha256": sha256})


def resolved_picture(library: Library, name: str, sha256: str | None) -> tuple[str, str]:
    """A picture of the library by its id, or a file by its absolute path; and its hash.

    Raises:
        MissingFileError: there is neither. ImageError: it is not the one that the hash means.
    """
    path, item_id = library.resolve(name, Kind.PICTURE)
    if not path.is_file():
        raise MissingFileError(f"{path} is a folder; name the picture in it.")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise ImageError(f"{path} is not the picture that is meant: its SHA-256 does not begin with {sha256[:10]}.")
    return str(path) if item_id is None else item_id, found


def resolved_stylize(library: Library, spec: StylizeSpec) -> StylizeSpec:
    """With files, hashes and a seed. Raises ConfigError when there is nothing to stylize with."""
    if spec.content is None and spec.style is None:
        raise ConfigError("Give a B-LoRA for the content, for the style, or for both.")
    halves = {
        name: None if half is None else resolved_adapter(library, half)
        for name, half in (("content", spec.content), ("style", spec.style))
    }
    return _with_seed(spec).model_copy(update={**halves, "base": resolved_base(library, spec.base)})


def resolved_compose(library: Library, spec: ComposeSpec) -> ComposeSpec:
    """With the plan's files and hashes. Raises ConfigError for a plan that contradicts itself."""
    problems = plan_problems(spec.plan)
    if problems:
        raise ConfigError("\n".join(problems))
    return spec.model_copy(update={"plan": resolved_plan(library, spec.plan)})


def resolved_plan(library: Library, plan: CompositionPlan) -> CompositionPlan:
    """A plan whose adapters are files with hashes."""
    entries = []
    for entry in plan.entries:
        choice = resolved_adapter(library, AdapterChoice(adapter=entry.adapter, sha256=entry.sha256))
        path, _ = library.resolve(choice.adapter)
        name = entry.name if entry.name is not None or choice.adapter == str(path) else _name_of(library, choice.adapter)
        entries.append(entry.model_copy(update={"adapter": str(path), "sha256": choice.sha256, "name": name}))
    return plan.model_copy(update={"entries": tuple(entries), "base": resolved_base(library, plan.base)})


def resolved_adapter(library: Library, choice: AdapterChoice) -> AdapterChoice:
    """An adapter of the library by its id, or a file by its absolute path; with its hash.

    Raises:
        MissingFileError: there is neither. AdapterFileError: the file is not the one that the hash means.
    """
    path, item_id = library.resolve(choice.adapter)
    if not path.is_file():
        raise MissingFileError(f"{path} is a folder; name the adapter file in it.")
    sha256 = file_sha256(path)
    if choice.sha256 is not None and choice.sha256 != sha256:
        raise AdapterFileError(f"{path} is not the file that is meant: its SHA-256 does not begin with {choice.sha256[:10]}.")
    return choice.model_copy(update={"adapter": str(path) if item_id is None else item_id, "sha256": sha256})


def resolved_base(library: Library, base: str) -> str:
    """ "embedded", a path, or a hub id; a base model of the library becomes its path."""
    if base == EMBEDDED or Path(base).expanduser().exists():
        return base if base == EMBEDDED else str(Path(base).expanduser().absolute())
    found = library.catalogue.matching(base, Kind.BASE)
    if found:
        return str(library.resolve(base, Kind.BASE)[0])
    if "/" in base and not base.startswith((".", "/", "~")):
        return base
    raise MissingFileError(f"There is no base model {base!r}: neither in the library nor as a folder, a checkpoint or a hub id.")


def resolved_train(library: Library, spec: TrainSpec) -> TrainSpec:
    """With the folder of photos, and every setting checked.

    Raises:
        ConfigError: a setting is wrong; says all that are. MissingFileError: there are no photos.
    """
    settings: dict[str, dict[str, Any]] = {name: dict(table) for name, table in spec.settings.items()}
    concept = settings.setdefault("concept", {})
    if "images" in concept:
        path, item_id = library.resolve(str(concept["images"]), Kind.CONCEPT)
        concept["images"] = str(path)
        if item_id is not None:
            item = library.catalogue.get(item_id)
            for key, value in (("class_noun", item.class_noun), ("token", item.trigger)):
                if value is not None:
                    concept.setdefault(key, value)
    model = settings.get("model", {})
    if "base" in model:
        model["base"] = resolved_base(library, str(model["base"]))
    validate(settings)
    return spec.model_copy(update={"settings": settings})


def resolved_batch(spec: BatchSpec) -> BatchSpec:
    """With the file's absolute path.

    Raises:
        MissingFileError: there is no such file. ConfigError: the document is wrong; says where and what.
    """
    if spec.document is not None:
        from studio.batch.expansion import expand
        from studio.batch.reading import batch_of

        expand(batch_of(spec.document, Path("batch.json")))
        return spec
    path = Path(spec.file or "").expanduser().absolute()
    if not path.is_file():
        raise MissingFileError(f"There is no batch file {path}.")
    return spec.model_copy(update={"file": str(path)})


def affinity_of(spec: GenerateSpec) -> str:
    """What requests must have in common to be drawn in one pass: base, type of the weights, size, steps, sampler, guidance."""
    size = f"{spec.width}x{spec.height}"
    return "|".join(map(str, (spec.base, spec.dtype, size, spec.steps, spec.scheduler, spec.guidance_scale)))


def checked_settings(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """`ConfigError` with all that is wrong about tables of training settings."""
    validate(settings)


def _with_seed(spec: Drawn) -> Drawn:
    return spec if spec.seed is not None else spec.model_copy(update={"seed": secrets.randbelow(2**32)})


def _name_of(library: Library, item_id: str) -> str | None:
    item = library.catalogue.find(item_id)
    return None if item is None else item.name
