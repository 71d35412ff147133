"""From a plan in a file to pictures with their recipes: files are found, checked and hashed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from studio.composition.drawing import Compiled, compile_scene, draw_batches
from studio.composition.plan import CompositionPlan, Entry
from studio.composition.plan_files import plan_values
from studio.composition.scene import Scene, make_scene, naming
from studio.composition.thrift import Thrift
from studio.composition.views import OnPreview
from studio.pipelines.adapters import load_adapter
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import AdapterFileError, MissingFileError, UserError
from studio.pipelines.pictures import AdapterUse, PictureRecord, lora_short_hash
from studio.pipelines.pictures.record import base_name
from studio.workflows.calibrate import Calibrator, calibrator_by_guide


@dataclass(frozen=True, eq=False)
class OpenedPlan:
    """A plan with its files.

    Attributes:
        plan: as it was given. recipe: the same with the hashes of everything, and names of files without their folders.
        uses: the adapters, as pictures' records keep them. files: where they are.
    """

    plan: CompositionPlan
    scene: Scene
    recipe: CompositionPlan
    uses: tuple[AdapterUse, ...]
    files: tuple[Path, ...]

    def with_strategy(self, name: str, settings: Mapping[str, Any] | None = None) -> OpenedPlan:
        """The same plan and files, brought together by another strategy."""
        choice = {"strategy": type(self.plan.strategy).model_validate({"name": name, **(settings or {})})}
        plan, recipe = self.plan.model_copy(update=choice), self.recipe.model_copy(update=choice)
        return replace(self, plan=plan, recipe=recipe, scene=replace(self.scene, plan=plan))


@dataclass(frozen=True, eq=False)
class ComposedPicture:
    """A picture and how it was made."""

    image: Image.Image
    record: PictureRecord


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """The file called `name`: as a path from each of `folders`, else by its last part alone in each of them."""
    candidates = [folder / Path(name).expanduser() for folder in folders]
    candidates += [folder / Path(name).name for folder in folders]
    return next((path for path in candidates if path.is_file()), None)


def check_plan_files(plan: CompositionPlan, folders: Sequence[Path]) -> list[Path]:
    """The adapters' files, in the order of the entries, before a model is loaded.

    Raises:
        MissingFileError: one is in none of `folders`. AdapterFileError: it has another hash than the plan says.
    """
    return [_adapter_file(plan, index, folders) for index in range(len(plan.entries))]


def open_plan(
    plan: CompositionPlan, base: BaseModel, folders: Sequence[Path] = (Path(),), calibrator: Calibrator | None = None
) -> OpenedPlan:
    """Find, check and load everything that `plan` names. Calibrated strengths become sliders, in the recipe too.

    Args:
        folders: where relative paths start from, the plan's own folder first.
        calibrator: for calibrated strengths; by default the guide.

    Raises:
        UserError: a file is missing, broken or not the one the plan means; every sentence names the entry.
    """
    if plan.base_sha256 is not None and base.content_hash and plan.base_sha256 != base.content_hash:
        raise UserError(
            f"The plan was made with another base model than {base.source!r} (its base_sha256 is {plan.base_sha256[:10]}…, this "
            f"one's is {base.content_hash[:10]}…). Name the right one, or take base_sha256 out of the plan."
        )
    files = check_plan_files(plan, folders)
    adapters = []
    for index, path in enumerate(files):
        with naming(plan.title_of(index)):
            adapters.append(load_adapter(path))
    if plan.strength_unit == "calibrated":
        calibrator = calibrator_by_guide(base) if calibrator is None else calibrator
        plan = calibrator.plan_with_raw_strengths(plan, adapters)
    scene = make_scene(plan, base, adapters, partial(_mask_file, folders=folders))
    return OpenedPlan(plan, scene, _recipe(plan, base, files, folders), tuple(map(_use, plan.entries, files)), tuple(files))


def compose(
    opened: OpenedPlan,
    *,
    batch_size: int = 4,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    compiled: Compiled | None = None,
    thrift: Thrift | None = None,
    on_preview: OnPreview | None = None,
) -> Iterator[list[ComposedPicture]]:
    """The pictures of a plan with their records, a batch at a time.

    Args:
        thrift: ways to take less memory, with a batch size of their own.
        compiled: of `compile_scene(opened.scene)`, where it was made already.
        on_preview: called after every step; it may raise `Cancelled`.
    """
    ready = compile_scene(opened.scene) if compiled is None else compiled
    records = picture_records(opened)
    done = 0
    for images in draw_batches(
        ready, batch_size=batch_size, on_step=on_step, should_stop=should_stop, thrift=thrift, on_preview=on_preview
    ):
        yield [ComposedPicture(image, records[done + number]) for number, image in enumerate(images)]
        done += len(images)


def picture_records(opened: OpenedPlan) -> list[PictureRecord]:
    """A record per picture; each holds the recipe of this one picture."""
    scene = opened.scene
    records = []
    for index, seed in enumerate(scene.request.seeds):
        own = opened.recipe.model_copy(update={"seed": seed, "num_images": 1})
        record = PictureRecord.of(scene.base, scene.request, index, opened.uses)
        records.append(replace(record, recipe=plan_values(own)))
    return records


def _recipe(plan: CompositionPlan, base: BaseModel, files: Sequence[Path], folders: Sequence[Path]) -> CompositionPlan:
    """The plan without this machine's folders, with the hashes of its files, and with every default that a base decides."""
    entries = []
    for entry, path in zip(plan.entries, files, strict=True):
        changed: dict[str, object] = {"adapter": path.name, "sha256": file_sha256(path)}
        if entry.region is not None and entry.region.mask is not None:
            mask = _mask_file(entry.region.mask, folders)
            changed["region"] = entry.region.model_copy(update={"mask": mask.name, "mask_sha256": file_sha256(mask)})
        entries.append(entry.model_copy(update=changed))
    family = base.family
    return plan.model_copy(
        update={
            "base": base_name(base.source),
            "base_sha256": base.content_hash or None,
            "entries": tuple(entries),
            "guidance_scale": family.default_guidance_scale if plan.guidance_scale is None else plan.guidance_scale,
            "scheduler": family.default_scheduler if plan.scheduler is None else plan.scheduler,
            "width": base.size if plan.width is None else plan.width,
            "height": base.size if plan.height is None else plan.height,
        }
    )


def _adapter_file(plan: CompositionPlan, index: int, folders: Sequence[Path]) -> Path:
    entry = plan.entries[index]
    found = find_file(entry.adapter, folders)
    if found is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise MissingFileError(f"{plan.title_of(index)}: there is no adapter file {entry.adapter} (looked in {looked}).")
    if entry.sha256 is not None and file_sha256(found) != entry.sha256:
        raise AdapterFileError(
            f"{plan.title_of(index)}: {found} is not the file that the plan means: its SHA-256 does not begin with "
            f"{entry.sha256[:10]}. Find the right one, or take sha256 out of the plan."
        )
    region = entry.region
    if region is not None and region.mask is not None and region.mask_sha256 is not None:
        mask = find_file(region.mask, folders)
        if mask is not None and file_sha256(mask) != region.mask_sha256:
            raise UserError(f"{plan.title_of(index)}: its mask {mask} has changed since the plan was made.")
    return found


def _mask_file(name: str, folders: Sequence[Path]) -> Path:
    found = find_file(name, folders)
    return Path(name) if found is None else found


def _use(entry: Entry, path: Path) -> AdapterUse:
    return AdapterUse(
        name=path.stem,
        strength=entry.strength,
        sha256=file_sha256(path),
        short_hash=lora_short_hash(path),
        role=entry.half,
    )
