"""The individuals and styles of the composition evaluation as subjects of trainings.

An individual is taught by five plain photos of it alone, as by `studio eval concept`, and by six in company: beside other things,
and beside others of its class, with captions that say so. Photos of it alone did not carry into pictures of two things: what was
learned is then the picture's only thing, at its full size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from studio.assets.world import BACKGROUND_PHRASES, Scene, SceneObject, place, render
from studio.evals.composition_judge import individual_of
from studio.evals.composition_plan import TrainedIndividual, TrainedStyle
from studio.evals.concept import PHOTO_PIXELS
from studio.evals.concept_prompts import PHOTO_BACKGROUNDS, photo_scenes
from studio.evals.trainers_plan import Item, Variant
from studio.evals.trainers_subjects import IndividualSubject, StyleSubject
from studio.pipelines.files import atomic_write_text

COMPANY = (
    ("left of", "house", "yellow"),
    ("right of", None, "red"),
    ("right of", "car", "blue"),
    ("left of", None, "blue"),
    ("left of", "tree", "green"),
    ("right of", None, "orange"),
)
"""How the individual stands to what is beside it: a thing of another class, or (None) one of its own, in a colour with a name."""


class ComposedIndividual(IndividualSubject):
    """An individual with its photos alone and in company, all with captions."""

    def __init__(self, thing: TrainedIndividual) -> None:
        super().__init__(thing.class_name, thing.seed)
        self.thing = thing

    def write_photos(self, folder: Path, num_photos: int | None, *, neutral: bool = False) -> None:
        """Eleven photos with their captions."""
        individual, seed = individual_of(self.thing), self.thing.seed
        alone = photo_scenes(individual, seed)
        scenes = [*alone, *company_scenes(self.thing)][:num_photos]
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes):
            Image.fromarray(render(scene, PHOTO_PIXELS)).save(folder / f"{number + 1:02d}.png")
            caption = caption_of(scene, self.class_noun)
            atomic_write_text(folder / f"{number + 1:02d}.txt", caption + "\n")

    def settings(self, *, neutral: bool = False) -> Mapping[str, object]:
        """Checkpoints are compared on pictures of it alone and in company, and with a photo of it alone."""
        return {
            "concept.hold_out": "01.png",
            "run.sample_prompts": [
                "a {token} {class_noun} in the snow",
                "a {token} {class_noun} to the left of a red house, on the beach",
                "a yellow {class_noun} to the left of a {token} {class_noun} in the sky",
            ],
        }


class ComposedStyle(StyleSubject):
    """A style with a word of its own."""

    def __init__(self, style: TrainedStyle) -> None:
        super().__init__(style.style)
        self.taught = style


def item_of(subject: ComposedIndividual | ComposedStyle) -> Item:
    """Its training."""
    if isinstance(subject, ComposedStyle):
        method, settings = "dreambooth-lora", {"concept.token": subject.taught.token}
    else:
        method, settings = subject.thing.method, {"concept.token": subject.thing.token, **subject.thing.settings}
    return Item(subject=subject.name, method=method, seed=0, variant=Variant(settings=settings))


def company_scenes(thing: TrainedIndividual) -> list[Scene]:
    """The photos in company."""
    rng = np.random.default_rng([thing.seed, 59])
    scenes = []
    for number, (relation, class_name, colour) in enumerate(COMPANY):
        other = SceneObject(class_name or thing.class_name, colour, "plain", (0.0, 0.0, 1.0, 1.0))
        background = PHOTO_BACKGROUNDS[number % len(PHOTO_BACKGROUNDS)]
        scenes.append(place(individual_of(thing), background=background, style="flat", rng=rng, other=other, relation=relation))
    return scenes


def caption_of(scene: Scene, class_noun: str) -> str:
    """A photo's caption: the individual by its words, everything else by its own."""
    text = "a {token} {class_noun}"
    for other in scene.objects[1:]:
        article = "an" if str(other.colour)[0] in "aeiou" else "a"
        text += f" to the {str(scene.relation).removesuffix(' of')} of {article} {other.colour} {other.class_name}"
    return f"{text} {BACKGROUND_PHRASES[scene.background][0]}"
