"""From what a file says to tasks: files are found and hashed, defaults are filled in, ids are made; no model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.batch.expansion import Expanded
from studio.batch.fields import AdapterRef, ComposeRequest, GenerateRequest, TrainRequest
from studio.batch.tasks import AdapterPart, BaseRef, FileRef, PictureTask, PlanTask, TrainTask, with_id
from studio.batch.things import Things
from studio.composition.plan import CompositionPlan
from studio.composition.plan_files import plan_from_values, plan_values
from studio.library.item import Kind
from studio.pipelines.base_facts import BaseFacts, read_base_facts
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.denoising import scheduler_title
from studio.pipelines.errors import ConfigError, MissingFileError, StudioError
from studio.pipelines.pictures import lora_short_hash
from studio.pipelines.pictures.record import base_name
from studio.training.config.loading import read_toml, validate
from studio.training.data.folder import find_images
from studio.workflows.compose import find_file

AnyTask = PictureTask | PlanTask | TrainTask


@dataclass(frozen=True)
class Refused:
    """A request that cannot be done, and why."""

    expanded: Expanded
    error: StudioError


@dataclass
class Resolver:
    """Finds and hashes each file once.

    Args:
        folders: where relative paths start, the batch file's own folder first.
        dtype: of the weights, as "float32". things: of the library, whose ids may stand for files.
    """

    folders: Sequence[Path]
    dtype: str = "float32"
    things: Things = field(default_factory=Things)
    _bases: dict[tuple[str, ...], tuple[BaseFacts, str]] = field(default_factory=dict)
    _adapters: dict[tuple[str, ...], tuple[FileRef, str]] = field(default_factory=dict)

    def task_of(self, expanded: Expanded) -> AnyTask:
        """The task of one request.

        Raises:
            StudioError: a file is missing or a value cannot be; the sentence begins with the request's place.
        """
        request = expanded.request
        makers: dict[type, Callable[[], AnyTask]] = {
            GenerateRequest: lambda: self._picture(request, expanded.index),  # type: ignore[arg-type]
            ComposeRequest: lambda: self._composition(request, expanded),  # type: ignore[arg-type]
            TrainRequest: lambda: self._training(request, expanded.index),  # type: ignore[arg-type]
        }
        try:
            return with_id(makers[type(request)]())
        except StudioError as error:
            raise type(error)(f"{expanded.where}: {error}") from error

    def resolve(self, requests: Sequence[Expanded]) -> tuple[list[AnyTask], list[Refused]]:
        """All tasks, and what could not become one."""
        tasks: list[AnyTask] = []
        refused: list[Refused] = []
        for each in requests:
            try:
                tasks.append(self.task_of(each))
            except StudioError as error:
                refused.append(Refused(each, error))
        return tasks, refused

    def base(self, spec: str) -> tuple[BaseRef, BaseFacts]:
        """A base model by name; a path may start at any of the folders."""
        key = (spec, *map(str, self.folders))
        if key not in self._bases:
            places = [folder / spec for folder in self.folders if (folder / spec).exists()]
            known = self.things.path(spec, Kind.BASE)
            where = spec if spec == "embedded" or not (known or places) else str(known or places[0])
            self._bases[key] = (read_base_facts(where), where)
        facts, where = self._bases[key]
        return BaseRef(spec=where, name=base_name(where), content_hash=facts.content_hash, family=facts.family.name), facts

    def _picture(self, request: GenerateRequest, index: int) -> PictureTask:
        base, facts = self.base(request.base)
        family = facts.family
        if request.scheduler is not None:
            scheduler_title(request.scheduler)
        width = facts.size if request.width is None else request.width
        height = facts.size if request.height is None else request.height
        for name, side in (("width", width), ("height", height)):
            if side % family.size_multiple:
                raise ConfigError(f"the {name} should be a multiple of {family.size_multiple} pixels, not {side}.")
        assert request.seed != "random"
        return PictureTask(
            index=index,
            base=base,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            width=width,
            height=height,
            steps=request.steps,
            guidance_scale=family.default_guidance_scale if request.guidance_scale is None else request.guidance_scale,
            scheduler=family.default_scheduler if request.scheduler is None else request.scheduler,
            dtype=self.dtype,
            adapters=tuple(self._adapter(each) for each in request.adapters),
        )

    def _adapter(self, wanted: AdapterRef) -> AdapterPart:
        file, short_hash = self._file(wanted.file, Kind.ADAPTER)
        return AdapterPart(file=file, short_hash=short_hash, strength=wanted.strength, half=wanted.half)

    def _file(self, name: str, kind: Kind) -> tuple[FileRef, str]:
        key = (name, *map(str, self.folders))
        if key not in self._adapters:
            path = self.things.path(name, kind) or find_file(name, self.folders)
            if path is None:
                looked = ", ".join(str(folder) for folder in self.folders)
                raise MissingFileError(f"there is no {kind} file {name} (looked in {looked}).")
            self._adapters[key] = (_ref(path), lora_short_hash(path) if path.suffix == ".safetensors" else "")
        return self._adapters[key]

    def _composition(self, request: ComposeRequest, expanded: Expanded) -> PlanTask:
        plan = plan_from_values(request.values)
        inner = self if expanded.plan_dir is None else replace(self, folders=[expanded.plan_dir, *self.folders])
        base, facts = inner.base(plan.base)
        files: dict[str, FileRef] = {}
        entries = []
        for entry in plan.entries:
            file, _ = inner._file(entry.adapter, Kind.ADAPTER)
            files[file.path] = file
            if entry.sha256 not in (None, file.sha256):
                raise ConfigError(f"{entry.title}: {file.path} is not the file that the plan means; take sha256 out of the plan.")
            changed: dict[str, Any] = {"adapter": file.path, "sha256": file.sha256}
            if entry.region is not None and entry.region.mask is not None:
                mask, _ = inner._file(entry.region.mask, Kind.PICTURE)
                files[mask.path] = mask
                changed["region"] = entry.region.model_copy(update={"mask": mask.path, "mask_sha256": mask.sha256})
            entries.append(entry.model_copy(update=changed))
        full = plan.model_copy(update={"entries": tuple(entries), "base": base.spec, **_plan_defaults(plan, facts)})
        values = plan_values(full)
        values.pop("base_sha256", None)
        return PlanTask(index=expanded.index, base=base, plan=values, dtype=self.dtype, files=files)

    def _training(self, request: TrainRequest, index: int) -> TrainTask:
        tables: dict[str, dict[str, Any]] = {}
        if request.config is not None:
            path = find_file(request.config, self.folders)
            if path is None:
                raise MissingFileError(f"there is no config file {request.config}.")
            tables = read_toml(path)
        for name, table in request.values.items():
            tables[name] = {**tables.get(name, {}), **table}
        tables["adapter"] = {**tables.get("adapter", {}), "method": request.method}
        concept = tables.setdefault("concept", {})
        if isinstance(concept.get("images"), str):
            self._place_photos(concept)
        config = validate(tables)
        base, _ = self.base(config.model.base)
        tables["model"] = {**tables.get("model", {}), "base": base.spec}
        photos = {path.name: _ref(path) for path in _photos(config.concept.images)}
        return TrainTask(
            index=index,
            base=base,
            method=request.method,
            settings=tables,
            photos=photos,
            num_processes=request.num_processes,
        )

    def _place_photos(self, concept: dict[str, Any]) -> None:
        """Make `images` a folder; a concept of the library brings its words, where the file says no others."""
        known = self.things.find(concept["images"], Kind.CONCEPT)
        if known is None:
            places = [folder / concept["images"] for folder in self.folders]
            concept["images"] = str(next((place for place in places if place.exists()), places[0]).resolve())
            return
        concept["images"] = str(known.path)
        for key, value in (("class_noun", known.class_noun), ("token", known.trigger)):
            if value is not None:
                concept.setdefault(key, value)


def _ref(path: Path) -> FileRef:
    return FileRef(path=str(path.resolve()), sha256=file_sha256(path))


def _photos(folder: Path) -> list[Path]:
    """The photos, and the captions beside them."""
    images = find_images(folder)
    captions = [path.with_suffix(".txt") for path in images]
    return [*images, *(path for path in captions if path.is_file())]


def _plan_defaults(plan: CompositionPlan, facts: BaseFacts) -> dict[str, Any]:
    family = facts.family
    return {
        "guidance_scale": family.default_guidance_scale if plan.guidance_scale is None else plan.guidance_scale,
        "scheduler": family.default_scheduler if plan.scheduler is None else plan.scheduler,
        "width": facts.size if plan.width is None else plan.width,
        "height": facts.size if plan.height is None else plan.height,
        "base_sha256": None,
    }
