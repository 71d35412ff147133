"""Drawing a group of tasks, with the base model and the adapters that were loaded for earlier ones still at hand."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from studio.batch.groups import plan_but_seed
from studio.batch.tasks import AdapterPart, BaseRef, FileRef, GroupTask, PictureTask, PlanTask
from studio.composition.drawing import compile_scene, draw_batches
from studio.composition.plan_files import plan_from_values
from studio.pipelines.adapters import Adapter, Route, load_adapter
from studio.pipelines.adapters.roles import select_roles
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import AdapterFileError, BaseModelError
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.mixed_batch import MixedRow, SharedShape, draw_mixed
from studio.pipelines.pictures import AdapterUse, PictureRecord, png_bytes
from studio.workflows.compose import OpenedPlan, open_plan, picture_records

MAX_ADAPTER_BYTES = 1 * 2**30
"""Adapters kept in memory, the last used ones."""

Fetch = Callable[[FileRef], Path]
"""From a file's hash to where it lies here."""


@dataclass(frozen=True)
class Drawn:
    """One picture as the bytes of its PNG, with its record."""

    task_id: str
    data: bytes
    record: PictureRecord


@dataclass(frozen=True)
class DrawnGroup:
    """The pictures of a group that were wanted. `seconds`: for the whole group, loading left out."""

    pictures: tuple[Drawn, ...]
    seconds: float


def lying_there(file: FileRef) -> Path:
    """The file where it lay when the batch was read; `AdapterFileError` if another one lies there now."""
    path = Path(file.path)
    if not path.is_file() or file_sha256(path) != file.sha256:
        raise AdapterFileError(f"{path} is gone or has changed since the batch was read; start it again.")
    return path


class Workshop:
    """Draws groups on one device.

    Args:
        device: as torch names it. fetch: where files are.
    """

    def __init__(self, device: str = "cpu", fetch: Fetch = lying_there) -> None:
        self.device = device
        self.fetch = fetch
        self._base: tuple[tuple[str, str], BaseModel] | None = None
        self._adapters: OrderedDict[tuple[str, str, str], Adapter] = OrderedDict()
        self._plans: tuple[str, OpenedPlan] | None = None

    def draw(
        self,
        group: GroupTask,
        wanted: frozenset[str],
        *,
        on_step: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> DrawnGroup:
        """Draw all rows of the group, and keep those whose ids are `wanted`."""
        first = group.tasks[0]
        if isinstance(first, PictureTask):
            return self._pictures(group, wanted, on_step, should_stop)
        assert isinstance(first, PlanTask), "trainings are not drawn"
        return self._plan(group, wanted, on_step, should_stop)

    def redraw(self, task: PictureTask, shape: Mapping[str, Any], block_prompts: Mapping[str, str]) -> Drawn:
        """One picture again, in a forward of the shape that its record has, or alone if it has none.

        Rows of others with other adapters are without any: what stands in them changes nothing.
        """
        base = self.base(task.base, task.dtype)
        record = replace(picture_record(task), block_prompts=dict(block_prompts), drawn=dict(shape))
        own = self._routes(task, base)
        if not shape:
            request = GenerationRequest(
                prompts=(task.prompt,),
                seeds=(task.seed,),
                negative_prompt=task.negative_prompt,
                steps=task.steps,
                guidance_scale=task.guidance_scale,
                height=task.height,
                width=task.width,
                scheduler=task.scheduler,
                block_prompts={stack: (text,) for stack, text in block_prompts.items()},
            )
            (image,) = generate(base, request, own)
            return Drawn(task.id, png_bytes(image, record), record)
        pattern, row = tuple(int(number) for number in shape["pattern"]), int(shape["row"])
        rows = [
            MixedRow(
                prompt=task.prompt,
                seed=task.seed,
                negative_prompt=task.negative_prompt,
                routes=own if number == pattern[row] else (),
            )
            for number in pattern
        ]
        kernels = str(shape.get("kernels"))
        drawn = draw_mixed(
            base, rows, _shared(task), pattern=pattern, folds=kernels != "routes", packs=kernels.endswith("packed")
        )
        record = replace(record, drawn={**shape, "kernels": drawn.kernel_path})
        return Drawn(task.id, png_bytes(drawn.images[row], record), record)

    def redraw_plan(self, task: PlanTask, shape: Mapping[str, Any]) -> Drawn:
        """One picture of a composition again, in a forward of as many rows as its record says."""
        num_rows, row = int(shape.get("rows", 1)), int(shape.get("row", 0))
        group = GroupTask(index=0, tasks=(task,) * num_rows, num_rows=num_rows, pattern=(0,) * num_rows)
        images, records, _ = self._composed(group)
        record = replace(records[row], drawn=dict(shape))
        return Drawn(task.id, png_bytes(images[row], record), record)

    def layers_of(self, task: PictureTask) -> str | None:
        """What the task's adapters change in the denoiser; None if something of it acts on whole batches only."""
        names: set[str] = set()
        for part in task.adapters:
            if part.strength == 0.0:
                continue
            for path, patch in self.adapter(part, torch.float32, "cpu").patches.items():
                if path.component == "unet":
                    if not patch.routable or path.parameter != "weight" or "norm" in path.module:
                        return None
                    names.add(str(path))
        return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16] if names else "none"

    def base(self, ref: BaseRef, dtype: str) -> BaseModel:
        """The base model, loaded once as long as the next group has the same.

        Raises:
            BaseModelError: there is another model at its place than when the batch was read.
        """
        key = (ref.content_hash, dtype)
        if self._base is None or self._base[0] != key:
            self._base = self._plans = None
            base = load_base(ref.spec, dtype=getattr(torch, dtype), device=self.device)
            if ref.content_hash and base.content_hash != ref.content_hash:
                raise BaseModelError(f"The base model {ref.spec!r} is not the one that the batch was read with; start it again.")
            self._base = (key, base)
        return self._base[1]

    def adapter(self, part: AdapterPart, dtype: torch.dtype, device: str) -> Adapter:
        """An adapter or its half, from memory if it was used lately."""
        key = (part.file.sha256, part.half or "", f"{dtype} {device}")
        if key not in self._adapters:
            whole = load_adapter(self.fetch(part.file))
            chosen = whole if part.half is None else select_roles(whole, [part.half])
            self._adapters[key] = chosen.to(device, dtype)
            while len(self._adapters) > 1 and sum(map(_num_bytes, self._adapters.values())) > MAX_ADAPTER_BYTES:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(key)
        return self._adapters[key]

    def _pictures(
        self,
        group: GroupTask,
        wanted: frozenset[str],
        on_step: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> DrawnGroup:
        tasks = [task for task in group.padded() if isinstance(task, PictureTask)]
        first = tasks[0]
        base = self.base(first.base, first.dtype)
        rows = [
            MixedRow(
                prompt=task.prompt,
                seed=task.seed,
                negative_prompt=task.negative_prompt,
                routes=self._routes(task, base),
            )
            for task in tasks
        ]
        started = time.monotonic()
        drawn = draw_mixed(
            base,
            rows,
            _shared(first),
            pattern=group.pattern,
            packs=group.packs,
            on_step=on_step,
            should_stop=should_stop,
        )
        seconds = time.monotonic() - started
        pictures = []
        for row, (task, image) in enumerate(zip(group.tasks, drawn.images, strict=False)):
            if task.id in wanted and isinstance(task, PictureTask):
                shape = drawn_shape(group, row, drawn.kernel_path, base.device)
                record = replace(picture_record(task), drawn={"job": task.id, **shape})
                pictures.append(Drawn(task.id, png_bytes(image, record), record))
        return DrawnGroup(tuple(pictures), seconds)

    def _plan(
        self,
        group: GroupTask,
        wanted: frozenset[str],
        on_step: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> DrawnGroup:
        images, records, seconds = self._composed(group, on_step, should_stop)
        device = torch.device(self.device)
        pictures = []
        for row, task in enumerate(group.tasks):
            if task.id in wanted:
                shape = drawn_shape(group, row, "strategy", device)
                record = replace(records[row], drawn={"job": task.id, **shape})
                pictures.append(Drawn(task.id, png_bytes(images[row], record), record))
        return DrawnGroup(tuple(pictures), seconds)

    def _routes(self, task: PictureTask, base: BaseModel) -> tuple[Route, ...]:
        return tuple(Route(self.adapter(part, base.dtype, self.device), part.strength) for part in task.adapters)

    def _composed(
        self,
        group: GroupTask,
        on_step: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[list[Image.Image], list[PictureRecord], float]:
        """All rows of a group of one plan, their records, and the seconds it took."""
        tasks = [task for task in group.padded() if isinstance(task, PlanTask)]
        opened = self._opened(tasks[0])
        request = opened.scene.request
        seeds = tuple(task.seed for task in tasks)
        asked = replace(request, seeds=seeds, prompts=(request.prompts[0],) * len(seeds))
        scene = replace(opened.scene, request=asked)
        started = time.monotonic()
        (images,) = draw_batches(compile_scene(scene), batch_size=len(seeds), on_step=on_step, should_stop=should_stop)
        seconds = time.monotonic() - started
        name = tasks[0].base.name
        records = [
            replace(record, base=name, recipe={**record.recipe, "base": name})
            for record in picture_records(replace(opened, scene=scene))
        ]
        return images, records, seconds

    def _opened(self, task: PlanTask) -> OpenedPlan:
        """The plan with its files, opened once for all groups of it."""
        key = plan_but_seed(task)
        if self._plans is None or self._plans[0] != key:
            base = self.base(task.base, task.dtype)
            places = {name: str(self.fetch(file)) for name, file in task.files.items()}
            self._plans = (key, open_plan(plan_from_values(_placed(task.plan, places)), base))
        return self._plans[1]


def _shared(task: PictureTask) -> SharedShape:
    return SharedShape(
        steps=task.steps,
        guidance_scale=task.guidance_scale,
        height=task.height,
        width=task.width,
        scheduler=task.scheduler,
    )


def picture_record(task: PictureTask) -> PictureRecord:
    """The record of a picture from a prompt, without the shape it was drawn in."""
    uses = [
        AdapterUse(
            name=part.file.name, strength=part.strength, sha256=part.file.sha256, short_hash=part.short_hash, role=part.half
        )
        for part in task.adapters
    ]
    return PictureRecord(
        prompt=task.prompt,
        negative_prompt=task.negative_prompt,
        seed=task.seed,
        steps=task.steps,
        guidance_scale=task.guidance_scale,
        scheduler=task.scheduler,
        width=task.width,
        height=task.height,
        base=task.base.name,
        base_hash=task.base.content_hash,
        family=task.base.family,
        dtype=task.dtype,
        adapters=tuple(uses),
    )


def drawn_shape(group: GroupTask, row: int, kernel_path: str, device: torch.device) -> dict[str, Any]:
    """The shape of a forward, as records keep it."""
    return {
        "rows": group.num_rows,
        "row": row,
        "pattern": list(group.pattern),
        "kernels": kernel_path,
        "threads": torch.get_num_threads(),
        "processor": processor_name(device),
        "torch": torch.__version__.partition("+")[0],
    }


def processor_name(device: torch.device) -> str:
    """What decides rounding on this machine: the GPU's name, or the processor's instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _placed(plan: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A plan whose files are where they lie here."""
    entries = []
    for entry in plan.get("entries", []):
        values = {**entry, "adapter": places[entry["adapter"]]}
        if isinstance(values.get("region"), Mapping) and values["region"].get("mask"):
            values["region"] = {**values["region"], "mask": places[values["region"]["mask"]]}
        entries.append(values)
    return {**plan, "entries": entries}


def _num_bytes(adapter: Adapter) -> int:
    return sum(tensor.nbytes for tensor in adapter.named_tensors().values())
