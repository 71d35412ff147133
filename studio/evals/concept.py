"""How well a concept was learned, by the judge: identity against a floor and a ceiling, prompt fidelity, the right one of twenty.

floor: the base model on the same prompts with the class word and no token. ceiling: the same individual rendered in those scenes
and styles, through the autoencoder. *Learned* means (ours - floor) / (ceiling - floor) >= .6 in identity, prompt fidelity at
least floor - .05, and the right one of 20 individuals of the class nearest in at least 60 % of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from studio.assets.world import Individual, Scene, random_individual, render
from studio.evals.concept_prompts import ConceptPrompt, concept_prompts, photo_scenes
from studio.evals.records import Record
from studio.evals.statistics import Interval, bootstrap_interval, share_interval
from studio.pipelines.adapters import Route
from studio.pipelines.base_model import BaseModel, decode_latents, encode_images
from studio.pipelines.generation import GenerationRequest, generate, to_images
from studio.pipelines.scoring import EmbeddedScorer

NUM_SEEDS = 4
NUM_PEERS = 19
PHOTO_PIXELS = 288
ARMS = ("base", "ours", "truth")


@dataclass(frozen=True)
class Concept:
    """An individual and the photos that teach it."""

    name: str
    individual: Individual
    photos: tuple[Image.Image, ...]

    @classmethod
    def of_seed(cls, class_name: str, seed: int) -> Concept:
        """The individual of a class and seed, with five rendered photos."""
        individual = random_individual(class_name, seed)
        photos = tuple(Image.fromarray(render(scene, PHOTO_PIXELS)) for scene in photo_scenes(individual, seed))
        return cls(f"{class_name}-{seed}", individual, photos)

    @property
    def class_name(self) -> str:
        """The class noun."""
        return self.individual.class_name

    @cached_property
    def prompts(self) -> tuple[ConceptPrompt, ...]:
        """The eight prompts for this class."""
        return concept_prompts(self.class_name)


def through_autoencoder(base: BaseModel, scenes: Sequence[Scene]) -> list[Image.Image]:
    """Rendered scenes after encoding and decoding: the best that the base model could draw."""
    pixels = np.stack([render(scene, base.size) for scene in scenes])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return to_images(decode_latents(base, encode_images(base, x, torch.Generator().manual_seed(0))))


def draw_arm(
    base: BaseModel,
    concept: Concept,
    arm: str,
    *,
    token: str,
    routes: Sequence[Route] = (),
    steps: int = 30,
    num_seeds: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """The pictures of an arm, prompt by prompt: "base" (class word alone), "ours" (token, adapter), "truth".

    `num_seeds` of each prompt, `NUM_SEEDS` when it is not given.
    """
    cells = _cells(concept, num_seeds)
    if arm == "truth":
        return through_autoencoder(base, [prompt.scene(concept.individual, seed) for prompt, seed in cells])
    words = tuple(prompt.filled(concept.class_name, token if arm == "ours" else None) for prompt, _ in cells)
    seeds = tuple(seed for _, seed in cells)
    request = GenerationRequest(prompts=words, seeds=seeds, steps=steps)
    return generate(base, request, routes if arm == "ours" else (), batch_size=16, on_step=on_step)


def _cells(concept: Concept, num_seeds: int | None) -> list[tuple[ConceptPrompt, int]]:
    return [(prompt, seed) for prompt in concept.prompts for seed in range(NUM_SEEDS if num_seeds is None else num_seeds)]


def peer_embeddings(base: BaseModel, concept: Concept, judge: EmbeddedScorer) -> torch.Tensor:
    """Mean identity embeddings [1 + NUM_PEERS, D]: the concept's own photos first, then those of other individuals."""
    rows = [_mean_embedding(judge, concept.photos, concept.class_name)]
    for peer in range(NUM_PEERS):
        individual = random_individual(concept.class_name, 900_000 + peer)
        photos = through_autoencoder(base, photo_scenes(individual, peer))
        rows.append(_mean_embedding(judge, photos, concept.class_name))
    return torch.stack(rows)


def _mean_embedding(judge: EmbeddedScorer, photos: Sequence[Image.Image], class_name: str) -> torch.Tensor:
    mean = torch.stack([found[0] for found in judge.embed_things(photos, class_name)]).mean(0)
    return mean / mean.norm()


def judge_arm(
    concept: Concept,
    arm: str,
    pictures: Sequence[Image.Image],
    peers: torch.Tensor,
    judge: EmbeddedScorer,
    num_seeds: int | None = None,
) -> list[Record]:
    """One record per picture: identity, whether the right individual is nearest, prompt fidelity with its checklist."""
    cells = _cells(concept, num_seeds)
    things = judge.embed_things(pictures, concept.class_name)
    words = [prompt.filled(concept.class_name, None) for prompt, _ in cells]
    fidelity = judge.prompt_scores(pictures, words)
    records: list[Record] = []
    for i, (prompt, seed) in enumerate(cells):
        cosines = peers @ things[i][0]
        records.append(
            {
                "id": f"{concept.name}/{arm}/{concept.prompts.index(prompt)}/{seed}",
                "concept": concept.name,
                "arm": arm,
                "prompt": words[i],
                "seed": seed,
                "identity": round(float(cosines[0]), 5),
                "nearest": int(cosines.argmax()),
                "right": bool(cosines.argmax() == 0),
                "fidelity": round(fidelity[i].score, 5),
                "checks": [[name, ok] for name, ok in fidelity[i].items],
            }
        )
    return records


@dataclass(frozen=True, kw_only=True)
class ConceptVerdict:
    """What the records say of one or several concepts."""

    identity_gain: Interval
    identity: dict[str, float]
    fidelity: dict[str, float]
    right: dict[str, Interval]

    @property
    def learned(self) -> bool:
        """The three conditions of the module's docstring."""
        return (
            self.identity_gain.estimate >= 0.6
            and self.fidelity["ours"] >= self.fidelity["base"] - 0.05
            and self.right["ours"].estimate >= 0.6
        )


def verdict(records: Sequence[Record]) -> ConceptVerdict:
    """Fold records of all three arms. The interval of the gain resamples prompts of concepts, whose seeds hang together."""

    def values(arm: str, key: str) -> list[float]:
        return [float(r[key]) for r in records if r["arm"] == arm]

    identity = {arm: float(np.mean(values(arm, "identity"))) for arm in ARMS}
    span = identity["truth"] - identity["base"]
    gains = [(ours - identity["base"]) / span for ours in values("ours", "identity")]
    groups = [(r["concept"], r["prompt"]) for r in records if r["arm"] == "ours"]
    return ConceptVerdict(
        identity_gain=bootstrap_interval(gains, groups),
        identity=identity,
        fidelity={arm: float(np.mean(values(arm, "fidelity"))) for arm in ARMS},
        right={arm: share_interval([bool(v) for v in values(arm, "right")]) for arm in ARMS},
    )
