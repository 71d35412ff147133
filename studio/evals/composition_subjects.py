"""The individuals and styles of the composition evaluation as subjects of trainings.

Both are taught as by `studio eval trainers`: five plain photos of the individual alone, or five pictures of other things in the
style. Photos of it in company (beside other things and others of its class, with captions that say who is who) were tried and did
worse: at 240 steps the judge knew a third of the individuals in pictures of them alone.
"""

from __future__ import annotations

from studio.evals.composition_plan import TrainedIndividual, TrainedStyle
from studio.evals.trainers_plan import Item, Variant
from studio.evals.trainers_subjects import IndividualSubject, StyleSubject

STYLE_METHOD = "sara"


class ComposedIndividual(IndividualSubject):
    """An individual with a word of its own."""

    def __init__(self, thing: TrainedIndividual) -> None:
        super().__init__(thing.class_name, thing.seed)
        self.thing = thing


class ComposedStyle(StyleSubject):
    """A style with a word of its own."""

    def __init__(self, style: TrainedStyle) -> None:
        super().__init__(style.style)
        self.taught = style


def item_of(subject: ComposedIndividual | ComposedStyle) -> Item:
    """Its training."""
    method, settings = STYLE_METHOD, dict[str, object]()
    if isinstance(subject, ComposedStyle):
        settings["concept.token"] = subject.taught.token
    else:
        method = subject.thing.method
        settings |= {"concept.token": subject.thing.token, **subject.thing.settings}
    return Item(subject=subject.name, method=method, seed=0, variant=Variant(settings=settings))
