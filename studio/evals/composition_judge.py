"""What the judge sees in a composed picture: is everything there, is it where it belongs, and is each thing itself.

*Right* is a thing whose detected box is nearest, of twenty individuals of its class, to the one that was taught: the three that
were trained and seventeen that nobody trained on (chance 5 %). *Leaked* is one that looks most like its neighbour: like the
neighbour itself where both are of one class, otherwise like a thing of its own class in the neighbour's colours, pattern and
extras, which is put among the twenty for this column alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from PIL import Image
from torch import Tensor

from studio.assets.world import Individual, extra_kinds, random_individual
from studio.evals.composition_plan import INDIVIDUALS, ComposedPrompt, TrainedIndividual
from studio.evals.concept import through_autoencoder
from studio.evals.concept_prompts import photo_scenes
from studio.evals.records import Record
from studio.evals.trainers_subjects import PHOTO_THINGS
from studio.pipelines.base_model import BaseModel
from studio.pipelines.scoring import Detection, EmbeddedScorer, Reading
from studio.pipelines.scoring.checklist import PRESENT_FROM
from studio.pipelines.scoring.scorer import Box

NUM_CANDIDATES = 20
MOST_FOUND = 6
"""Surest detections of a picture that are matched to what was asked for."""

CLEARLY_BESIDE = 0.05
"""Distance of two centres, as a fraction of the picture, from which one thing is left of another."""

INSIDE = 0.5
"""Share of a detected box that has to lie in the region it belongs to, besides its centre."""


class Gallery:
    """Identity embeddings of all individuals that things are compared with, made when they are first asked for."""

    def __init__(self, base: BaseModel, judge: EmbeddedScorer) -> None:
        self.base = base
        self.judge = judge
        self._candidates: dict[str, tuple[tuple[str, ...], Tensor]] = {}
        self._disguised: dict[tuple[str, str], Tensor] = {}

    def candidates(self, class_name: str) -> tuple[tuple[str, ...], Tensor]:
        """Names and embeddings `[NUM_CANDIDATES, D]` of a class: the trained ones first."""
        if class_name not in self._candidates:
            trained = [(thing.name, individual_of(thing)) for thing in INDIVIDUALS if thing.class_name == class_name]
            strangers = [
                (f"{class_name}-{seed}", random_individual(class_name, seed))
                for seed in range(900_000, 900_000 + NUM_CANDIDATES - len(trained))
            ]
            both = [*trained, *strangers]
            rows = torch.stack([self._embedding(individual, number) for number, (_, individual) in enumerate(both)])
            self._candidates[class_name] = (tuple(name for name, _ in both), rows)
        return self._candidates[class_name]

    def disguised(self, thing: TrainedIndividual, neighbour: TrainedIndividual) -> Tensor:
        """Embedding `[D]` of a thing of the first one's class that looks like the second one."""
        key = (thing.class_name, neighbour.name)
        if key not in self._disguised:
            other = individual_of(neighbour)
            fitting = extra_kinds(thing.class_name)
            extras = tuple(extra for extra in other.extras if extra.kind in fitting)
            self._disguised[key] = self._embedding(Individual(thing.class_name, other.look, extras), neighbour.seed)
        return self._disguised[key]

    def _embedding(self, individual: Individual, seed: int) -> Tensor:
        photos = through_autoencoder(self.base, photo_scenes(individual, seed))
        found = self.judge.embed_things(photos, individual.class_name)
        return torch.nn.functional.normalize(torch.stack([group[0] for group in found]).mean(0), dim=0)


def individual_of(thing: TrainedIndividual) -> Individual:
    """The world's individual that was taught."""
    return random_individual(thing.class_name, thing.seed)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One thing that was asked for, in a picture. `found` is None if it is not there."""

    thing: TrainedIndividual
    found: Detection | None
    in_place: bool


def judge_composition(
    gallery: Gallery, prompt: ComposedPrompt, pictures: Sequence[Image.Image], *, boxed: bool
) -> list[dict[str, object]]:
    """One record per picture of a prompt; see the module's docstring, and `score` for the keys that tables read.

    Args:
        boxed: in place is what lies in its own box of the prompt; otherwise, what stands in the prompt's order from the left.
    """
    readings = gallery.judge.read(pictures)
    return [_record(gallery, prompt, picture, reading, boxed) for picture, reading in zip(pictures, readings, strict=True)]


def judge_alone(gallery: Gallery, prompt: ComposedPrompt, drawn: Sequence[Sequence[Image.Image]]) -> list[dict[str, object]]:
    """One record per seed of single-concept pictures (see `draw_alone`): right where each thing, and the style, is by itself.

    This is what a composition could reach that costs the adapters nothing.
    """
    records: list[dict[str, object]] = []
    for seed in range(len(drawn[0])):
        parts: list[dict[str, object]] = []
        for thing, pictures in zip(prompt.things, drawn, strict=False):
            single = replace(prompt, things=(thing,), style=None)
            (found,) = judge_composition(gallery, single, [pictures[seed]], boxed=False)
            parts.append({"name": thing.name, "right": found["right"], "present": found["present"], "clear": found["clear"]})
        clear = sum(_number(part["clear"]) for part in parts) / len(parts)
        present = all(part["present"] for part in parts)
        things_right = sum(bool(part["right"]) for part in parts) / len(parts)
        if prompt.style is not None:
            (reading,) = gallery.judge.read([drawn[-1][seed]])
            parts.append({"name": prompt.style.name, "right": reading.style == prompt.style.style})
        records.append(
            {
                "present": present,
                "classes_in_place": None,
                "right": all(part["right"] for part in parts),
                "things_right": things_right,
                "leaked": [],
                "clear": clear,
                "parts": parts,
            }
        )
    return records


def place_things(prompt: ComposedPrompt, reading: Reading, *, boxed: bool) -> list[Placed]:
    """The assignment of detections to things that has most classes right, then most in place, then the surest ones.

    Who a thing looks like has no part in it.
    """
    sure = [found for found in reading.detections if found.score >= PRESENT_FROM][:MOST_FOUND]
    slots: list[Detection | None] = [*sure, *[None] * len(prompt.things)]
    best: tuple[float, list[Placed]] | None = None
    for choice in permutations(range(len(slots)), len(prompt.things)):
        found = [
            slot if slot is not None and slot.class_name == thing.class_name else None
            for thing, slot in zip(prompt.things, (slots[index] for index in choice), strict=True)
        ]
        in_place = _in_boxes(found, prompt.boxes) if boxed else _in_order(found)
        placed = [Placed(thing=t, found=f, in_place=p) for t, f, p in zip(prompt.things, found, in_place, strict=True)]
        value = sum(100.0 * (each.found is not None) + 10.0 * each.in_place for each in placed)
        value += sum(each.found.score for each in placed if each.found is not None)
        if best is None or value > best[0]:
            best = (value, placed)
    assert best is not None
    return best[1]


def _in_order(found: Sequence[Detection | None]) -> list[bool]:
    """Which stand right of all before them and left of all after them, as far as these are there."""
    centres = [None if each is None else (each.box[0] + each.box[2]) / 2 for each in found]

    def holds(index: int) -> bool:
        own = centres[index]
        if own is None:
            return False
        before = [centre for centre in centres[:index] if centre is not None]
        after = [centre for centre in centres[index + 1 :] if centre is not None]
        return all(own - centre > CLEARLY_BESIDE for centre in before) and all(centre - own > CLEARLY_BESIDE for centre in after)

    return [holds(index) for index in range(len(centres))]


def _in_boxes(found: Sequence[Detection | None], boxes: Sequence[Box]) -> list[bool]:
    return [each is not None and _lies_in(each.box, box) for each, box in zip(found, boxes, strict=True)]


def _lies_in(inner: Box, outer: Box) -> bool:
    width = min(inner[2], outer[2]) - max(inner[0], outer[0])
    height = min(inner[3], outer[3]) - max(inner[1], outer[1])
    area = (inner[2] - inner[0]) * (inner[3] - inner[1])
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    centred = outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]
    return centred and area > 0 and max(width, 0.0) * max(height, 0.0) >= INSIDE * area


def _record(gallery: Gallery, prompt: ComposedPrompt, picture: Image.Image, reading: Reading, boxed: bool) -> dict[str, object]:
    placed = place_things(prompt, reading, boxed=boxed)
    things = [_thing(gallery, prompt, each, picture) for each in placed]
    style_right = None if prompt.style is None else reading.style == prompt.style.style
    present = all(thing["present"] for thing in things)
    asked = {thing.class_name for thing in prompt.things}
    seen = {found.class_name for found in reading.detections if found.score >= PRESENT_FROM}
    leaked = [bool(thing["leaked"]) for thing in things if thing["present"]]
    if prompt.style is not None:  # what a style may bring along is the things of the pictures that taught it
        leaked = [bool(seen & {name for name, _, _ in PHOTO_THINGS} - asked)]
    return {
        "present": present,
        "classes_in_place": all(thing["present"] and thing["in_place"] for thing in things),
        "right": all(thing["right"] and thing["in_place"] for thing in things) and style_right is not False,
        "things_right": sum(bool(thing["right"]) for thing in things) / len(things),
        "leaked": leaked,
        "clear": sum(_number(thing["score"]) for thing in things) / len(things),
        "background": reading.background == prompt.background,
        "style": reading.style,
        "style_right": style_right,
        "num_seen": sum(found.score >= PRESENT_FROM for found in reading.detections),
        "things": things,
    }


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value


def _thing(gallery: Gallery, prompt: ComposedPrompt, placed: Placed, picture: Image.Image) -> Record:
    thing, found = placed.thing, placed.found
    if found is None:
        return {
            "name": thing.name, "present": False, "in_place": False, "right": False, "leaked": False, "score": 0.0,
        }  # fmt: skip
    vector = gallery.judge.embed_regions([picture], [found.box])[0]
    names, rows = gallery.candidates(thing.class_name)
    cosines = rows @ vector
    nearest = names[int(cosines.argmax())]
    neighbours = [other for other in prompt.things if other.name != thing.name]
    disguises = [gallery.disguised(thing, other) @ vector for other in neighbours if other.class_name != thing.class_name]
    same_class = {other.name for other in neighbours if other.class_name == thing.class_name}
    return {
        "name": thing.name,
        "present": True,
        "in_place": placed.in_place,
        "nearest": nearest,
        "right": nearest == thing.name,
        "leaked": nearest in same_class or any(float(cosine) > float(cosines.max()) for cosine in disguises),
        "cosine": round(float(cosines[names.index(thing.name)]), 4),
        "score": round(found.score, 4),
        "box": [round(side, 3) for side in found.box],
    }
