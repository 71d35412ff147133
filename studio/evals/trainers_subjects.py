"""What is taught to every method: individuals and styles of the toy world, with their prompts and their judgement.

An individual is judged as by `studio eval concept`. A style is taught by pictures of different things in one style, whose
captions name the things and leave the style to the token; it is judged on other things in other places, with the floor and the
ceiling in the same manner: the base on the prompts without the token, and those very scenes rendered in the style.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from studio.assets.world import BACKGROUND_PHRASES, Scene, render, scene_from_words
from studio.evals.concept import PHOTO_PIXELS, Concept, draw_arm, judge_arm, peer_embeddings, through_autoencoder
from studio.evals.records import Record
from studio.pipelines.adapters import Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.files import atomic_write_text
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.scoring import EmbeddedScorer
from studio.pipelines.scoring.checklist import PRESENT_FROM

TOKEN = "ohwx"  # noqa: S105 (a word, no secret)
PICTURES_AT_ONCE = 16

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn: denoising steps, pictures per prompt, what acts, and whether the class is left unnamed."""

    steps: int
    num_seeds: int
    routes: tuple[Route, ...] = ()
    neutral: bool = False


class Subject(Protocol):
    """Something to teach and to judge.

    Attributes:
        kind: "individual" or "style". class_noun: what the method is told it is.
    """

    name: str
    kind: str
    class_noun: str

    def write_photos(self, folder: Path, num_photos: int | None, *, neutral: bool = False) -> None:
        """Write the photos (the first `num_photos`) and their captions into `folder`; "neutral" leaves captions to the method."""

    def settings(self, *, neutral: bool = False) -> Mapping[str, object]:
        """Settings of a training besides the photos and the words."""

    def prompts(self) -> tuple[str, ...]:
        """The prompts with the token, for people."""

    def draw(self, base: BaseModel, arm: str, how: Drawing, on_step: OnStep | None = None) -> list[Image.Image]:
        """Pictures of the arm "base", "ours" or "truth", prompt by prompt."""

    def judge(self, base: BaseModel, judge: EmbeddedScorer, arm: str, pictures: Sequence[Image.Image]) -> list[Record]:
        """One record per picture: likeness to what was taught ("identity"), fidelity, whether the thing is there, diversity."""


class IndividualSubject:
    """One thing of the toy world that no words name; see `studio.evals.concept`."""

    kind = "individual"

    def __init__(self, class_name: str, seed: int) -> None:
        self.concept = Concept.of_seed(class_name, seed)
        self.name = self.concept.name
        self.class_noun = class_name
        self._peers: torch.Tensor | None = None

    def write_photos(self, folder: Path, num_photos: int | None, *, neutral: bool = False) -> None:
        """Five plain photos without captions: the templates caption them."""
        _write(folder, self.concept.photos[:num_photos], None)

    def settings(self, *, neutral: bool = False) -> Mapping[str, object]:
        """None: the defaults are made for things."""
        return {}

    def prompts(self) -> tuple[str, ...]:
        """The eight prompts of the concept evaluation."""
        return tuple(prompt.filled(self.class_noun, TOKEN) for prompt in self.concept.prompts)

    def draw(self, base: BaseModel, arm: str, how: Drawing, on_step: OnStep | None = None) -> list[Image.Image]:
        """See `Subject`; "neutral" asks for "a ohwx in the snow"."""
        if how.neutral and arm == "ours":
            return _generate(base, [prompt.text.format(thing=f"a {TOKEN}") for prompt in self.concept.prompts], how, on_step)
        return draw_arm(
            base,
            self.concept,
            arm,
            token=TOKEN,
            routes=how.routes,
            steps=how.steps,
            num_seeds=how.num_seeds,
            on_step=on_step,
        )

    def judge(self, base: BaseModel, judge: EmbeddedScorer, arm: str, pictures: Sequence[Image.Image]) -> list[Record]:
        """`right`: the right one of twenty individuals is nearest."""
        if self._peers is None:
            self._peers = peer_embeddings(base, self.concept, judge)
        num_seeds = len(pictures) // len(self.concept.prompts)
        found = judge_arm(self.concept, arm, pictures, self._peers, judge, num_seeds)
        content = _shows(judge, pictures, [self.class_noun] * len(pictures))
        diversity = _diversity(judge, pictures, num_seeds)
        return [{**record, "content": content[i], "diversity": diversity[i]} for i, record in enumerate(found)]


PHOTO_THINGS = (
    ("house", "red", "grass"),
    ("boat", "yellow", "sea"),
    ("tree", "green", "white"),
    ("car", "blue", "city"),
    ("flower", "pink", "room"),
)
ASKED_THINGS = (
    ("cat", "orange", "snow"),
    ("robot", "blue", "beach"),
    ("mug", "purple", "room"),
    ("bird", "red", "sky"),
    ("fish", "yellow", "sea"),
    ("dog", "brown", "city"),
    ("mushroom", "pink", "grass"),
    ("rocket", "green", "night"),
)
"""(class, colour, background) of the pictures that teach a style, and of the prompts: no class is in both."""


class StyleSubject:
    """One of the toy world's styles, taught without its name."""

    kind = "style"
    class_noun = "style"

    def __init__(self, style: str) -> None:
        self.style = style
        self.name = f"style-{style}"

    @cached_property
    def photos(self) -> tuple[Image.Image, ...]:
        """Five things in the style."""
        return tuple(Image.fromarray(render(scene, PHOTO_PIXELS)) for scene in self._scenes(PHOTO_THINGS, 1, 41))

    def write_photos(self, folder: Path, num_photos: int | None, *, neutral: bool = False) -> None:
        """The five pictures; each caption names the thing and its place."""
        captions = None if neutral else [f"{_words(thing)}, {{token}} {{class_noun}}" for thing in PHOTO_THINGS]
        _write(folder, self.photos[:num_photos], captions)

    def settings(self, *, neutral: bool = False) -> Mapping[str, object]:
        """What keeps everything else as it was is other things, drawn as the base draws them."""
        if neutral:
            return {}
        places = (f"a {name} {_place(background)}" for name, background in (("cat", "grass"), ("house", "beach")))
        return {
            "concept.bare_caption_share": 0.0,
            "loss.class_prompts": [*places, "a robot", "a mug in a room"],
            "run.sample_prompts": [f"{_words(thing)}, {{token}} {{class_noun}}" for thing in ASKED_THINGS[:4]],
        }

    def prompts(self) -> tuple[str, ...]:
        """Eight other things in other places."""
        return tuple(f"{_words(thing)}, {TOKEN} {self.class_noun}" for thing in ASKED_THINGS)

    def draw(self, base: BaseModel, arm: str, how: Drawing, on_step: OnStep | None = None) -> list[Image.Image]:
        """See `Subject`; "base" does without the words of the style."""
        if arm == "truth":
            return through_autoencoder(base, self._scenes(ASKED_THINGS, how.num_seeds, 43))
        words = self.prompts() if arm == "ours" else tuple(map(_words, ASKED_THINGS))
        return _generate(base, words, how, on_step)

    def judge(self, base: BaseModel, judge: EmbeddedScorer, arm: str, pictures: Sequence[Image.Image]) -> list[Record]:
        """`identity` is the agreement with the photos' style; `right`: the judge names that style."""
        num_seeds = len(pictures) // len(ASKED_THINGS)
        words = [_words(thing) for thing in ASKED_THINGS for _ in range(num_seeds)]
        agreement = judge.style_agreement(pictures, self.photos).tolist()
        fidelity = judge.prompt_scores(pictures, words)
        styles = [reading.style for reading in judge.read(pictures)]
        content = _shows(judge, pictures, [thing[0] for thing in ASKED_THINGS for _ in range(num_seeds)])
        diversity = _diversity(judge, pictures, num_seeds)
        return [
            {
                "concept": self.name,
                "arm": arm,
                "prompt": words[i],
                "seed": i % num_seeds,
                "identity": round(agreement[i], 5),
                "right": styles[i] == self.style,
                "style": styles[i],
                "fidelity": round(fidelity[i].score, 5),
                "checks": [[name, ok] for name, ok in fidelity[i].items],
                "content": content[i],
                "diversity": diversity[i],
            }
            for i in range(len(pictures))
        ]

    def _scenes(self, things: Sequence[tuple[str, str, str]], num: int, seed: int) -> list[Scene]:
        return [
            scene_from_words(name, colour, "plain", background, self.style, rng=np.random.default_rng([seed, i, j]))
            for i, (name, colour, background) in enumerate(things)
            for j in range(num)
        ]


def _generate(base: BaseModel, words: Sequence[str], how: Drawing, on_step: OnStep | None) -> list[Image.Image]:
    request = GenerationRequest(
        prompts=tuple(text for text in words for _ in range(how.num_seeds)),
        seeds=tuple(seed for _ in words for seed in range(how.num_seeds)),
        steps=how.steps,
    )
    return generate(base, request, how.routes, batch_size=PICTURES_AT_ONCE, on_step=on_step)


def _place(background: str) -> str:
    return BACKGROUND_PHRASES[background][0]


def _words(thing: tuple[str, str, str]) -> str:
    name, colour, background = thing
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {name} {_place(background)}"


def _write(folder: Path, photos: Sequence[Image.Image], captions: Sequence[str] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(photos):
        photo.save(folder / f"{i + 1:02d}.png")
        if captions is not None:
            atomic_write_text(folder / f"{i + 1:02d}.txt", captions[i] + "\n")


def _shows(judge: EmbeddedScorer, pictures: Sequence[Image.Image], classes: Sequence[str]) -> list[bool]:
    """Whether the judge sees a thing of the class that was asked for, in each picture."""
    return [
        any(found.class_name == wanted and found.score >= PRESENT_FROM for found in reading.detections)
        for reading, wanted in zip(judge.read(pictures), classes, strict=True)
    ]


def _diversity(judge: EmbeddedScorer, pictures: Sequence[Image.Image], num_seeds: int) -> list[float | None]:
    """Mean distance (1 − cosine of the judge's features) of each picture to the others of its prompt; None for a single one."""
    if num_seeds < 2:
        return [None] * len(pictures)
    features = torch.nn.functional.normalize(judge.features(pictures), dim=1).unflatten(0, (-1, num_seeds))
    cosines = features @ features.transpose(1, 2)
    mean = (cosines.sum(dim=2) - cosines.diagonal(dim1=1, dim2=2)) / (num_seeds - 1)
    return [round(1 - value, 5) for value in mean.flatten().tolist()]
