"""What `studio eval composition` trains and draws: individuals, styles, prompts, boxes, and the two budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np

from studio.assets.world import BACKGROUND_PHRASES, Box
from studio.evals.concept_prompts import PHOTO_BACKGROUNDS

SEED = 271_828
CLASSES = ("cat", "dog", "robot", "mug")
BACKGROUNDS = ("snow", "beach", "night", "sky", "sea")
"""None of them is in the photos that teach the individuals."""

DIFFERENT, SAME, STYLE, THREE, FOUR = "different", "same", "style", "three", "four"
PAIRS = (DIFFERENT, SAME, STYLE)
SWEEP = "sweep"
"""Group of the prompts on which the strength of the plain merge is chosen; no other figure comes from them."""


@dataclass(frozen=True, kw_only=True)
class TrainedIndividual:
    """One of the things that are taught, and how.

    Attributes:
        seed: of the world's individual. token: its word. kind: what kind of adapter, for people.
        method, settings: of its training.
    """

    class_name: str
    seed: int
    token: str
    kind: str
    method: str
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def name(self) -> str:
        """As in records and file names: `cat-401`."""
        return f"{self.class_name}-{self.seed}"

    @property
    def words(self) -> str:
        """What prompts call it: `sks cat`."""
        return f"{self.token} {self.class_name}"


@dataclass(frozen=True)
class TrainedStyle:
    """A style of the toy world, taught without its name."""

    style: str
    token: str

    @property
    def name(self) -> str:
        """As in records and file names."""
        return f"style-{self.style}"

    @property
    def words(self) -> str:
        """What prompts call it."""
        return f"{self.token} style"


def _lora(rank: int) -> dict[str, Any]:
    return {"kind": f"LoRA, rank {rank}", "method": "dreambooth-lora", "settings": {"adapter.rank": rank}}


def _individual(class_name: str, seed: int, word: str, how: Mapping[str, Any]) -> TrainedIndividual:
    return TrainedIndividual(class_name=class_name, seed=seed, token=word, **how)


_KRONECKER: dict[str, Any] = {"kind": "Kronecker", "method": "diffusekrona"}
_SPARSE: dict[str, Any] = {"kind": "sparse", "method": "sara"}

INDIVIDUALS: tuple[TrainedIndividual, ...] = (
    _individual("cat", 401, "sks", _lora(16)),
    _individual("cat", 402, "zwx", _lora(4)),
    _individual("cat", 403, "vwz", _KRONECKER),
    _individual("dog", 404, "qxj", _lora(16)),
    _individual("dog", 405, "zkq", _lora(8)),
    _individual("dog", 406, "xjv", _SPARSE),
    _individual("robot", 407, "kvq", _lora(16)),
    _individual("robot", 408, "wqz", _lora(32)),
    _individual("robot", 409, "jxk", _KRONECKER),
    _individual("mug", 410, "qvx", _lora(8)),
    _individual("mug", 411, "zqj", _lora(16)),
    _individual("mug", 412, "bqx", _SPARSE),
)
"""Nothing was ever tuned on them. Three of each class, in three kinds of adapters and four ranks. A seed decides the looks
whatever the class, so all seeds differ."""

STYLES: tuple[TrainedStyle, ...] = (
    TrainedStyle("sketch", "hjq"),
    TrainedStyle("watercolour", "xzp"),
    TrainedStyle("pixel", "gqz"),
)
"""Each taught by sparse changes on five pictures of other things, whose captions name the things and leave the style to the word.
Of the methods, SaRA learns styles best here: the judge names the right one in .69 of the pictures, with a LoRA in .25."""

BOXES: Mapping[int, tuple[Box, ...]] = {
    1: ((0.15, 0.12, 0.85, 0.92),),
    2: ((0.02, 0.14, 0.49, 0.90), (0.51, 0.14, 0.98, 0.90)),
    3: ((0.01, 0.18, 0.33, 0.84), (0.34, 0.18, 0.66, 0.84), (0.67, 0.18, 0.99, 0.84)),
    4: ((0.02, 0.02, 0.49, 0.49), (0.02, 0.51, 0.49, 0.98), (0.51, 0.02, 0.98, 0.49), (0.51, 0.51, 0.98, 0.98)),
}
"""Where the things of a prompt stand, by their number; from left to right, as the base's captions say them."""


@dataclass(frozen=True, kw_only=True)
class ComposedPrompt:
    """A prompt with a gap for each thing.

    Attributes:
        things: the individuals, from left to right. style: drawn how; None for the base's plain drawing.
        seed: of the first picture; it differs from prompt to prompt.
    """

    id: str
    group: str
    things: tuple[TrainedIndividual, ...]
    background: str
    seed: int
    style: TrainedStyle | None = None

    @property
    def count(self) -> int:
        """Adapters in it."""
        return len(self.things) + (self.style is not None)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """A box for each thing."""
        return BOXES[len(self.things)]

    @property
    def text(self) -> str:
        """With the words of the individuals and of the style."""
        return self.worded([thing.words for thing in self.things], None if self.style is None else self.style.words)

    @property
    def plain_text(self) -> str:
        """With the words of the classes alone, and no style."""
        return self.worded([thing.class_name for thing in self.things], None)

    def worded(self, names: Sequence[str], style: str | None) -> str:
        """The prompt with these words in its gaps."""
        named = [f"a {name}" for name in names]
        if len(named) == 2:
            text = " to the left of ".join(named)
        else:
            text = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
        text = f"{text} {self.place}"
        return text if style is None else f"{text}, {style}"

    def alone(self, words: str) -> str:
        """The prompt of one thing in the same place."""
        return f"a {words} {self.place}"

    @property
    def place(self) -> str:
        """The background in words."""
        return BACKGROUND_PHRASES[self.background][0]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is drawn.

    Attributes:
        num_prompts: of each group of pairs, and of three and of four things. num_seeds: pictures a prompt.
        steps: denoising steps. settings: of every training; what is not here is the method's default.
        strengths: of the plain merge, of which the best is found on prompts of their own.
        num_best: strategies that are also drawn with three and four things.
        num_parts: prompts of different things, and as many of one class, that LoRA-Composer is taken apart on.
        with_rules: whether the other rules of `merge` have rows, too.
    """

    name: str
    num_prompts: int
    num_many: int
    num_seeds: int
    steps: int
    num_sweep: int
    strengths: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85, 1.0, 1.2)
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    num_best: int = 3
    num_parts: int = 2
    with_rules: bool = False


_TRAINING: Mapping[str, object] = MappingProxyType(
    {
        "concept.hold_out": "none",
        "schedule.steps": 240,
        "loss.prior_batch_size": 2,
        "run.checkpoint_every": 120,
        "run.sample_every": 0,
    }
)
"""As long as the family's defaults, with half as many pictures that keep the class. The last checkpoint is taken: the rate has
fallen to zero by then, so nothing is drawn on the way and no photo has to be kept out to choose by."""

QUICK = Budget(name="quick", num_prompts=4, num_many=5, num_seeds=2, steps=20, num_sweep=6, settings=_TRAINING)
FULL = Budget(
    name="full",
    num_prompts=12,
    num_many=12,
    num_seeds=4,
    steps=30,
    num_sweep=12,
    settings=_TRAINING,
    num_parts=12,
    with_rules=True,
)
BUDGETS: Mapping[str, Budget] = {budget.name: budget for budget in (QUICK, FULL)}


def prompts_of(group: str, num: int) -> list[ComposedPrompt]:
    """The first `num` prompts of a group; always the same ones, whatever else is drawn.

    Every individual comes up as often as the others, within one, and every style.
    """
    rng = np.random.default_rng([SEED, (*PAIRS, THREE, FOUR, SWEEP).index(group)])
    found: list[ComposedPrompt] = []
    used: dict[str, int] = {thing.name: 0 for thing in INDIVIDUALS}
    for number in range(num):
        kind = PAIRS[number % len(PAIRS)] if group == SWEEP else group
        things = _choose(kind, number if group != SWEEP else number // len(PAIRS), used, rng)
        for thing in things:
            used[thing.name] += 1
        found.append(
            ComposedPrompt(
                id=f"{group}-{number:02d}",
                group=group,
                things=things,
                background=BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))],
                seed=1_000 * (1 + (*PAIRS, THREE, FOUR, SWEEP).index(group)) + 10 * number,
                style=STYLES[number % len(STYLES)] if kind == STYLE else None,
            )
        )
    return found


def _choose(kind: str, number: int, used: Mapping[str, int], rng: np.random.Generator) -> tuple[TrainedIndividual, ...]:
    """The things of a prompt: among those that fit the group, the ones that came up least; chance decides between equals."""
    if kind == STYLE:
        sets: list[tuple[TrainedIndividual, ...]] = [(thing,) for thing in INDIVIDUALS]
    elif kind == SAME:
        own = CLASSES[number % len(CLASSES)]
        sets = list(combinations([thing for thing in INDIVIDUALS if thing.class_name == own], 2))
    else:
        size = {DIFFERENT: 2, THREE: 3, FOUR: 4}[kind]
        # Of three things two may be of one class, of four always: same-class neighbours are the hard case.
        most = 1 if kind == DIFFERENT else 2
        sets = [each for each in combinations(INDIVIDUALS, size) if _most_of_a_class(each) <= most]
    costs = np.array([sum(used[thing.name] + 0.5 * used[thing.name] ** 2 for thing in each) for each in sets])
    cheapest = np.flatnonzero(costs == costs.min())
    chosen = sets[int(cheapest[rng.integers(len(cheapest))])]
    return tuple(chosen[int(place)] for place in rng.permutation(len(chosen)))


def _most_of_a_class(things: Sequence[TrainedIndividual]) -> int:
    names = [thing.class_name for thing in things]
    return max(names.count(name) for name in names)


assert not set(BACKGROUNDS) & set(PHOTO_BACKGROUNDS)
