"""Held-out pictures of the toy world for `studio eval stylize`, and the ways to put one's content into the other's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from studio.assets.world import BACKGROUNDS, CLASSES, Scene, random_scene, render
from studio.evals.block_probe_plan import random_pairs
from studio.training.config.methods import preset_of

SEED = 161_803
PICTURE_PIXELS = 288
CONTENT_TOKEN, STYLE_TOKEN = "ohwx", "zwx"
STYLES = ("sketch", "watercolour", "pixel")
CONTENT_CLASSES = ("mug", "house", "mushroom", "car", "boat", "robot", "tree", "rocket")
STYLE_CLASSES = ("flower", "fish", "bird", "star", "cat", "dog")
WORDS, PROBED, MERGE = "words", "probed blocks", "plain merge"


@dataclass(frozen=True, kw_only=True)
class StylizeBudget:
    """How much is trained and drawn.

    Attributes:
        num_contents: content pictures. num_styles: pictures of each style. num_random: random pairs of blocks.
        num_seeds: pictures of each pair. train_steps: of each training; None for the method's own. steps: of the sampler.
    """

    num_contents: int
    num_styles: int
    num_random: int
    num_seeds: int
    train_steps: int | None
    steps: int

    @property
    def num_trainings(self) -> int:
        """One per picture and way that trains."""
        return (self.num_contents + self.num_styles * len(STYLES)) * (2 + self.num_random)


BUDGETS = {
    "quick": StylizeBudget(num_contents=3, num_styles=1, num_random=1, num_seeds=4, train_steps=200, steps=20),
    "full": StylizeBudget(num_contents=8, num_styles=2, num_random=3, num_seeds=4, train_steps=None, steps=30),
}


@dataclass(frozen=True, kw_only=True)
class StylePicture:
    """One picture to learn from: a scene with one thing in it, and the word it is taught by."""

    name: str
    scene: Scene
    token: str

    @property
    def class_name(self) -> str:
        """What it shows."""
        return self.scene.objects[0].class_name

    def image(self) -> Image.Image:
        """The rendered picture."""
        return Image.fromarray(render(self.scene, PICTURE_PIXELS))


def content_pictures(num: int) -> list[StylePicture]:
    """Plain drawings ("flat") of different things."""
    return [_picture("content", number, CONTENT_CLASSES[number], "flat", CONTENT_TOKEN) for number in range(num)]


def style_pictures(num_each: int) -> list[StylePicture]:
    """Pictures in the other styles, of things that no content picture shows."""
    return [
        _picture("style", number, STYLE_CLASSES[number % len(STYLE_CLASSES)], STYLES[number % len(STYLES)], STYLE_TOKEN)
        for number in range(num_each * len(STYLES))
    ]


def _picture(role: str, number: int, class_name: str, style: str, token: str) -> StylePicture:
    rng = np.random.default_rng([SEED, ("content", "style").index(role), number])
    scene = random_scene(
        rng,
        num_objects=1,
        background=str(rng.choice(BACKGROUNDS)),
        style=style,
        class_names=(class_name,),
        look_share=0.0,
        extra_share=0.0,
    )
    return StylePicture(name=f"{role}-{number}-{class_name}-{style}", scene=scene, token=token)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to combine two pictures.

    Attributes:
        name: for the table. method: what trains, None for words alone. settings: its own.
        blocks: content and style stack, None where the whole adapters are added.
    """

    name: str
    method: str | None
    settings: Mapping[str, object]
    blocks: tuple[str, str] | None = None


def ways(stacks: Sequence[str], probed: tuple[str, str], budget: StylizeBudget, batch_size: int) -> list[Way]:
    """Probed blocks, the plain merge, random blocks, and as a ceiling the base model with both said in words.

    All train on the same picture with the same neutral words and batch size. The plain merge has DreamBooth-LoRA's own layers,
    rank and learning rate; the random blocks differ from the probed ones in where they are alone.
    """
    steps = {} if budget.train_steps is None else {"schedule.steps": budget.train_steps}
    neutral = {f"{section}.{key}": value for section, table in preset_of("b-lora").tables.items() for key, value in table.items()}
    plain = {
        **neutral,
        "data.batch_size": batch_size,
        "loss.prior": "none",
        "concept.caption_dropout": 0.0,
        "concept.bare_caption_share": 0.0,
    }
    found = [_b_lora(PROBED, probed, steps), Way(name=MERGE, method="dreambooth-lora", settings={**plain, **steps})]
    chosen = random_pairs(stacks, probed)[: budget.num_random]
    found += [_b_lora(f"random blocks {number}", pair, steps) for number, pair in enumerate(chosen, start=1)]
    return [*found, Way(name=WORDS, method=None, settings={})]


def _b_lora(name: str, blocks: tuple[str, str], settings: Mapping[str, object]) -> Way:
    named = {"b_lora.content_block": blocks[0], "b_lora.style_block": blocks[1]}
    return Way(name=name, method="b-lora", settings={**named, **settings}, blocks=blocks)


assert not set(CONTENT_CLASSES) & set(STYLE_CLASSES)
assert {*CONTENT_CLASSES, *STYLE_CLASSES} <= set(CLASSES)
