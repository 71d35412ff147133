"""Jobs that draw by themselves: plans, comparisons, stylizations. One at a time, with the worker's warm models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from studio.composition.views import Preview
from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.specs import AdapterChoice, CompareSpec, ComposeSpec, ConflictsSpec, GenerateSpec, StylizeSpec
from studio.jobs.work.models import Models
from studio.jobs.work.pictures import PictureShelf
from studio.jobs.work.previews import Previews, strip_of
from studio.jobs.work.reporting import Reporter
from studio.jobs.work.steering import steered_record, steering_of
from studio.pipelines.adapters import Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.files import atomic_write_json
from studio.pipelines.generation import GenerationRequest, generate_batches, resolve_request
from studio.pipelines.pictures import AdapterUse, PictureRecord, save_picture
from studio.pipelines.steering import Steering
from studio.workflows.compare import compare, grid, strategy_names
from studio.workflows.compose import OpenedPlan, open_plan, picture_records
from studio.workflows.compose import compose as draw_plan
from studio.workflows.composition_pictures import preview_sheet
from studio.workflows.stylize import StylizeWishes, plan_stylize

ShouldStop = Callable[[], bool]


def run_drawing(folder: JobFolder, handed_in: HandedIn, models: Models, should_stop: ShouldStop) -> dict[str, Any]:
    """Draw the job's pictures; what is there already is not drawn again.

    Raises:
        Cancelled: `should_stop` said so. StudioError: it cannot be drawn; says why.
    """
    spec = handed_in.spec
    if isinstance(spec, CompareSpec):
        return _compare(folder, handed_in, spec, models, should_stop)
    if isinstance(spec, ConflictsSpec):
        return _conflicts(folder, spec, models)
    if isinstance(spec, ComposeSpec):
        return _compose(folder, handed_in, spec, models, should_stop)
    if isinstance(spec, GenerateSpec):
        return _steered(folder, handed_in, spec, models, should_stop)
    assert isinstance(spec, StylizeSpec), spec.kind
    return _stylize(folder, handed_in, spec, models, should_stop)


def _compose(
    folder: JobFolder, handed_in: HandedIn, spec: ComposeSpec, models: Models, should_stop: ShouldStop
) -> dict[str, Any]:
    opened = _open(spec, models)
    shelf, reporter = PictureShelf(handed_in, models.library, metadata=spec.metadata), Reporter(folder)
    _say_notes(reporter, opened)
    records = picture_records(opened)
    num_done = _there_already(shelf, reporter, records)
    # A plan's pictures are its seeds in a row, so what is left of it is a plan too.
    rest = opened.plan.model_copy(update={"seed": opened.plan.seed + num_done, "num_images": len(records) - num_done})
    if num_done < len(records):
        left = opened if num_done == 0 else _open(spec.model_copy(update={"plan": rest}), models)
        base_share = num_done / len(records)

        def on_step(done: int, total: int) -> None:
            reporter.progress(base_share + (1.0 - base_share) * done / total, 1.0)

        previews = Previews(folder)

        def on_preview(preview: Preview) -> None:
            """The pictures so far and where each concept is; the last one stays to be looked at."""
            previews.show(partial(preview_sheet, left.scene.base, preview), last=preview.done == preview.steps)

        for batch in draw_plan(left, batch_size=spec.batch_size, on_step=on_step, should_stop=should_stop, on_preview=on_preview):
            for picture in batch:
                path, item = shelf.put(num_done, picture.image, picture.record)
                reporter.picture(path, num_done, item)
                num_done += 1
    return {"facts": {"notes": list(opened.scene.notes), "strategy": opened.plan.strategy.name}}


def _compare(
    folder: JobFolder, handed_in: HandedIn, spec: CompareSpec, models: Models, should_stop: ShouldStop
) -> dict[str, Any]:
    from studio.pipelines.scoring import load_scorer

    names = strategy_names(",".join(spec.strategies))
    judge = None if spec.scorer == "none" else load_scorer(spec.scorer)
    opened = _open(spec, models)
    reporter = Reporter(folder)
    _say_notes(reporter, opened)

    def on_step(done: int, total: int) -> None:
        reporter.progress(done, total)

    rows = compare(opened, names, judge, batch_size=spec.batch_size, on_step=on_step, should_stop=should_stop)
    index = 0
    for row in rows:
        shelf = PictureShelf(handed_in, models.library, metadata=spec.metadata)
        shelf.folder = handed_in.output_dir / row.strategy.replace(" ", "-")
        for picture in row.pictures:
            path, item = shelf.put(index, picture.image, picture.record)
            reporter.picture(path, index, item)
            index += 1
    sheet = handed_in.output_dir / "grid.png"
    save_picture(sheet, grid(rows, opened.plan.prompt), None)
    values = [row.to_json() for row in rows]
    atomic_write_json(handed_in.output_dir / "comparison.json", {"scorer": spec.scorer, "rows": values})
    return {"facts": {"rows": values, "grid": str(sheet)}}


def _conflicts(folder: JobFolder, spec: ConflictsSpec, models: Models) -> dict[str, Any]:
    from studio.composition.conflicts import conflict_report

    opened = _open(spec, models)
    _say_notes(Reporter(folder), opened)
    report = conflict_report(opened.scene)
    facts = {"lines": report.lines(), "strategy": report.strategy, "strengths": list(report.strengths)}
    return {"facts": {**facts, "notes": list(opened.scene.notes)}}


def _stylize(
    folder: JobFolder, handed_in: HandedIn, spec: StylizeSpec, models: Models, should_stop: ShouldStop
) -> dict[str, Any]:
    base = models.base(spec.base, spec.dtype)
    halves = {
        name: None if choice is None else models.adapter(choice, spec.dtype)
        for name, choice in (("content", spec.content), ("style", spec.style))
    }
    plan = plan_stylize(
        base,
        StylizeWishes(
            content=halves["content"],
            style=halves["style"],
            content_strength=_strength(spec.content),
            style_strength=_strength(spec.style),
            keep_colours=spec.keep_colours,
            prompt=spec.prompt,
            content_prompt=spec.content_prompt,
            style_prompt=spec.style_prompt,
            content_block=spec.content_block,
            style_block=spec.style_block,
        ),
    )
    named = {"content": spec.content, "style": spec.style}
    uses = []
    for half in plan.halves:
        choice = named[half.of]
        assert choice is not None
        uses.append(models.use(choice.model_copy(update={"strength": half.strength}), half.role))
    work = _Work(folder, handed_in, models, should_stop)
    for note in plan.notes:
        work.reporter.say(note)
    request = _request(spec, (plan.prompt,) * spec.num_images)
    blocks = {stack: (text,) * spec.num_images for stack, text in plan.block_prompts.items()}
    _draw(work, spec, base, replace(request, block_prompts=blocks), plan.routes, uses)
    return {"facts": {"notes": list(plan.notes), "prompt": plan.prompt}}


def _steered(
    folder: JobFolder, handed_in: HandedIn, spec: GenerateSpec, models: Models, should_stop: ShouldStop
) -> dict[str, Any]:
    base = models.base(spec.base, spec.dtype)
    routes = tuple(Route(models.adapter(choice, spec.dtype), choice.strength) for choice in spec.adapters)
    request = _request(spec, tuple(prompt for prompt in spec.prompts for _ in range(spec.num_images)))
    uses = [models.use(choice) for choice in spec.adapters]
    work = _Work(folder, handed_in, models, should_stop)
    _draw(work, spec, base, request, routes, uses, steering=steering_of(spec, models, base), steered=steered_record(spec))
    return {"facts": {"num_pictures": len(request.prompts)}}


@dataclass(eq=False)
class _Work:
    """A job in the hands of somebody who draws it alone."""

    folder: JobFolder
    handed_in: HandedIn
    models: Models
    should_stop: ShouldStop

    def __post_init__(self) -> None:
        self.reporter, self.previews = Reporter(self.folder), Previews(self.folder)


def _request(spec: GenerateSpec | StylizeSpec, prompts: tuple[str, ...]) -> GenerationRequest:
    """What all jobs with a prompt ask for; seeds in a row, for every prompt the same."""
    assert spec.seed is not None, "drawn when the job is handed in"
    return GenerationRequest(
        prompts=prompts,
        seeds=tuple((spec.seed + number % spec.num_images) % 2**63 for number in range(len(prompts))),
        negative_prompt=spec.negative_prompt,
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        width=spec.width,
        height=spec.height,
        scheduler=spec.scheduler,
    )


def _draw(
    work: _Work,
    spec: GenerateSpec | StylizeSpec,
    base: BaseModel,
    request: GenerationRequest,
    routes: Sequence[Route],
    uses: Sequence[AdapterUse],
    *,
    steering: Steering | None = None,
    steered: Mapping[str, Any] | None = None,
) -> None:
    """Draw and keep the pictures; each is entered when it is there."""
    resolved = resolve_request(base, request)
    records = [PictureRecord.of(base, resolved, index, uses) for index in range(len(request.prompts))]
    shelf = PictureShelf(work.handed_in, work.models.library, metadata=spec.metadata)
    index = 0

    def on_step(done: int, total: int) -> None:
        work.reporter.progress(done, total)

    def on_guess(done: int, steps: int, latents: Tensor | None) -> None:
        if latents is not None:
            work.previews.show(partial(strip_of, base, latents))

    for batch in generate_batches(
        base, request, routes, batch_size=spec.batch_size, steering=steering, on_step=on_step,
        should_stop=work.should_stop, on_guess=on_guess,
    ):  # fmt: skip
        for image in batch:
            path, item = shelf.put(index, image, replace(records[index], steered=steered or {}))
            work.reporter.picture(path, index, item)
            index += 1
    work.previews.forget()


def _open(spec: ComposeSpec, models: Models) -> OpenedPlan:
    return open_plan(spec.plan, models.base(spec.plan.base, spec.dtype), (Path(),))


def _there_already(shelf: PictureShelf, reporter: Reporter, records: list[PictureRecord]) -> int:
    """How many of the first pictures are on the disk."""
    for index, record in enumerate(records):
        if not shelf.has(index, record):
            return index
        path = shelf.path_of(index, record)
        reporter.picture(path, index, shelf.enter(path))
    return len(records)


def _say_notes(reporter: Reporter, opened: OpenedPlan) -> None:
    for note in opened.scene.notes:
        reporter.say(note)


def _strength(choice: AdapterChoice | None) -> float:
    return 1.0 if choice is None else choice.strength
