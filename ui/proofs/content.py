"""Things to show: two concepts learned in a few steps, pictures of them, a composition. All of it really made, by jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.composition.plan import CompositionPlan, Entry, Region, StrategyChoice
from studio.service import (
    AdapterChoice,
    BatchSpec,
    ComposeSpec,
    GenerateSpec,
    Item,
    ItemFilter,
    JobFilter,
    Kind,
    Studio,
    StylizeSpec,
    TrainSpec,
)
from studio.ui.drafts import Drafts
from studio.ui.parts.batches import kept_file
from studio.ui.samples import sample_photos

QUICK: Mapping[str, Mapping[str, Any]] = {
    "schedule": {"steps": 20},
    "run": {"sample_steps": 4, "checkpoint_every": 10},
}
CONCEPTS = (("cat", "ohwx"), ("robot", "zwx"))
SPLIT = (("mug", "qvk"), ("robot", "wzr"))


def fill(studio: Studio, *, steps: int = 10, settings: Mapping[str, Mapping[str, Any]] = QUICK) -> None:
    """Make what is not there yet; takes some minutes."""
    learned = [_adapter(studio, noun, token) or _teach(studio, noun, token, settings) for noun, token in CONCEPTS]
    if not studio.items(ItemFilter(kind=Kind.PICTURE, words="snow"), limit=1).items:
        choices = (AdapterChoice(adapter=learned[0].id),)
        _done(
            studio,
            studio.generate(GenerateSpec(prompts=("a ohwx cat in the snow",), adapters=choices, num_images=4, steps=steps)).id,
        )
    if not studio.items(ItemFilter(kind=Kind.PICTURE, words="zwx"), limit=1).items:
        boxes: tuple[tuple[float, float, float, float], ...] = ((0.02, 0.1, 0.48, 0.95), (0.52, 0.1, 0.98, 0.95))
        entries = tuple(
            Entry(adapter=item.id, words=f"{token} {noun}", region=Region(box=box, z=number))
            for number, (item, box, (noun, token)) in enumerate(zip(learned, boxes, CONCEPTS, strict=True))
        )
        plan = CompositionPlan(
            prompt="a ohwx cat and a zwx robot", entries=entries, strategy=StrategyChoice(name="regional"), seed=7, steps=steps
        )
        _done(studio, studio.compose(ComposeSpec(plan=plan)).id)
    if not studio.jobs(JobFilter(kinds=("batch",)), limit=1):
        _batch(studio, steps)
    if not studio.jobs(JobFilter(kinds=("stylize",)), limit=1):
        _stylized(studio, steps, settings)


def _adapter(studio: Studio, noun: str, token: str) -> Item | None:
    found = studio.items(ItemFilter(kind=Kind.ADAPTER, words=f"{token} {noun}"), limit=1).items
    return found[0] if found else None


def _batch(studio: Studio, steps: int) -> None:
    text = f"a red cat in the snow --num_images 2 --seed 7 --steps {steps}\na {{blue|green}} robot on the beach --steps {steps}\n"
    file = kept_file(studio, text, "txt", None)
    _done(studio, studio.batch(BatchSpec(file=str(file))).id)


def _stylized(studio: Studio, steps: int, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Two pictures taken apart, and all four pairs."""
    split = {**settings, "adapter": {"method": "b-lora"}}
    halves = [AdapterChoice(adapter=_teach(studio, noun, token, split, 1).id) for noun, token in SPLIT]
    for content in halves:
        for style in halves:
            _done(studio, studio.stylize(StylizeSpec(content=content, style=style, num_images=1, steps=steps, seed=7)).id)


def _teach(
    studio: Studio, noun: str, token: str, settings: Mapping[str, Mapping[str, Any]], num_photos: int | None = None
) -> Item:
    draft = Drafts(studio.home.root / "drafts").new()
    draft.add(sample_photos(noun)[:num_photos])
    concept = studio.import_concept(draft.photos_dir, name=f"{token} {noun}", class_noun=noun, trigger=token).item
    assert concept is not None
    about = {"images": concept.id, "class_noun": noun, "token": token}
    _done(studio, studio.train(TrainSpec(settings={**settings, "concept": about})).id)
    item = _adapter(studio, noun, token)
    assert item is not None
    return item


def _done(studio: Studio, job_id: str) -> None:
    studio.ensure_worker()
    job = studio.wait(job_id)
    assert job.state == "succeeded", f"{job.title}: {job.error}"
