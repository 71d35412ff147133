"""A job of plain pictures, taken apart into single pictures that can share a pass with those of other jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.specs import GenerateSpec
from studio.jobs.work.models import Models
from studio.jobs.work.pictures import PictureShelf
from studio.jobs.work.previews import Previews
from studio.jobs.work.reporting import Reporter
from studio.pipelines.adapters import Adapter, Route
from studio.pipelines.adapters.patching import acts_per_position, module_at
from studio.pipelines.base_model import BaseModel
from studio.pipelines.generation import GenerationRequest, check_adapters, resolve_request
from studio.pipelines.mixed_batch import MixedRow, SharedShape
from studio.pipelines.pictures import PictureRecord


@dataclass(eq=False)
class PictureTask:
    """One job in the hands of a warm worker.

    Attributes:
        key: what pictures must have in common to be drawn together. shareable: whether others may be in its passes.
        waiting: numbers of the pictures that are yet to be drawn. arrived: on the monotonic clock.
        previews: how its pictures come along. denoise_seconds: wall time of the denoising loops that its pictures were in.
    """

    folder: JobFolder
    handed_in: HandedIn
    attempt: int
    spec: GenerateSpec
    shelf: PictureShelf
    reporter: Reporter
    records: list[PictureRecord]
    rows: list[MixedRow]
    shape: SharedShape
    key: tuple[object, ...]
    shareable: bool
    waiting: list[int]
    previews: Previews
    arrived: float = field(default_factory=time.monotonic)
    denoise_seconds: float = 0.0

    @property
    def owner(self) -> str:
        """Whose it is."""
        return self.handed_in.submit.owner

    @property
    def num_done(self) -> int:
        """How many pictures are on the disk."""
        return len(self.records) - len(self.waiting)

    def is_stopped(self) -> bool:
        """Whether somebody wants it stopped."""
        return self.folder.stop_flag.exists()


def open_task(folder: JobFolder, handed_in: HandedIn, attempt: int, models: Models) -> PictureTask:
    """Load what a job needs, and find out which of its pictures are there already.

    Raises:
        StudioError: something it names is missing, broken, or does not fit; says what.
    """
    spec = handed_in.spec
    assert isinstance(spec, GenerateSpec)
    assert spec.seed is not None, "drawn when the job is handed in"
    base = models.base(spec.base, spec.dtype)
    routes = tuple(Route(models.adapter(choice, spec.dtype), choice.strength) for choice in spec.adapters)
    check_adapters(base, routes)
    prompts = [prompt for prompt in spec.prompts for _ in range(spec.num_images)]
    seeds = [(spec.seed + number) % 2**63 for _ in spec.prompts for number in range(spec.num_images)]
    rows = [
        MixedRow(prompt=prompt, seed=seed, negative_prompt=spec.negative_prompt, routes=routes)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    shelf = PictureShelf(handed_in, models.library, metadata=spec.metadata)
    records = _records(spec, base, models, prompts, seeds)
    reporter = Reporter(folder)
    waiting = []
    for index, record in enumerate(records):
        if shelf.has(index, record):
            path = shelf.path_of(index, record)
            reporter.picture(path, index, shelf.enter(path))
        else:
            waiting.append(index)
    return PictureTask(
        folder=folder,
        handed_in=handed_in,
        attempt=attempt,
        spec=spec,
        shelf=shelf,
        reporter=reporter,
        records=records,
        rows=rows,
        shape=SharedShape(
            steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            height=spec.height,
            width=spec.width,
            scheduler=spec.scheduler,
        ),
        key=(spec.base, spec.dtype, spec.width, spec.height, spec.steps, spec.scheduler, spec.guidance_scale),
        shareable=all(_can_share(base, route.adapter) for route in routes),
        waiting=waiting,
        previews=Previews(folder),
    )


def _can_share(base: BaseModel, adapter: Adapter) -> bool:
    """Whether all of the adapter can be confined to single rows: changes of biases, norms and embeddings cannot.

    Raises:
        AdapterMismatchError: it names layers that the base does not have.
    """
    components = base.components()
    return all(
        acts_per_position(patch, module_at(components[path.component], path, adapter.info.name), path)
        for path, patch in adapter.patches.items()
        if path.component in components
    )


def _records(spec: GenerateSpec, base: BaseModel, models: Models, prompts: list[str], seeds: list[int]) -> list[PictureRecord]:
    request = GenerationRequest(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        negative_prompt=spec.negative_prompt,
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        width=spec.width,
        height=spec.height,
        scheduler=spec.scheduler,
    )
    resolved = resolve_request(base, request)
    uses = [models.use(choice) for choice in spec.adapters]
    return [PictureRecord.of(base, resolved, index, uses) for index in range(len(prompts))]
