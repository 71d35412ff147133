"""The eight fixed prompts on which a learned concept is judged, and the scenes that they describe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from studio.assets.world import Individual, Scene, place, scene_from_words

PHOTO_BACKGROUNDS = ("room", "white", "wall", "city", "grass")
"""Where the sample photos are taken; the prompts below ask for other places and styles."""


@dataclass(frozen=True, kw_only=True)
class ConceptPrompt:
    """A prompt with one gap for the thing, and what a picture of it should show.

    Attributes:
        text: the prompt; `{thing}` stands for "a ohwx robot", or for "a robot" without the token.
        background, style: as the world names them. other: class and colour of a second object, which the thing stands left of.
    """

    text: str
    background: str
    style: str = "flat"
    other: tuple[str, str] | None = None

    def filled(self, class_name: str, token: str | None) -> str:
        """The prompt's words for a class, with the token before the noun or without one."""
        if token is not None:
            return self.text.format(thing=f"a {token} {class_name}")
        article = "an" if class_name[0] in "aeiou" else "a"
        return self.text.format(thing=f"{article} {class_name}")

    def scene(self, individual: Individual, seed: int) -> Scene:
        """The individual itself in this scene: what a perfect picture would show."""
        rng = np.random.default_rng([seed, 31])
        other = None
        if self.other is not None:
            other = scene_from_words(self.other[0], self.other[1], "plain", self.background, self.style, rng=rng).objects[0]
        relation = None if other is None else "left of"
        return place(individual, background=self.background, style=self.style, rng=rng, other=other, relation=relation)


def concept_prompts(class_name: str) -> tuple[ConceptPrompt, ...]:
    """The eight prompts: five places, two styles, one relation to another object (never one of the same class)."""
    other = ("house", "yellow") if class_name != "house" else ("mug", "yellow")
    return (
        ConceptPrompt(text="{thing} in the snow", background="snow"),
        ConceptPrompt(text="{thing} on the beach", background="beach"),
        ConceptPrompt(text="{thing} at night", background="night"),
        ConceptPrompt(text="{thing} in the sky", background="sky"),
        ConceptPrompt(text="a photo of {thing} in the sea", background="sea"),
        ConceptPrompt(text="a pencil sketch of {thing} on the beach", background="beach", style="sketch"),
        ConceptPrompt(text="a watercolour painting of {thing} in the snow", background="snow", style="watercolour"),
        ConceptPrompt(text=f"{{thing}} to the left of a {other[1]} {other[0]}, on the grass", background="grass", other=other),
    )


def photo_scenes(individual: Individual, seed: int = 0) -> tuple[Scene, ...]:
    """Five plain scenes of an individual: the photos a person would bring."""
    rng = np.random.default_rng([seed, 17])
    return tuple(place(individual, background=background, style="flat", rng=rng) for background in PHOTO_BACKGROUNDS)
