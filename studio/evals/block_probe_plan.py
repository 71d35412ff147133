"""What the block probe draws: pairs of prompts, and which attention stack is told which of them.

The measurement is the B-LoRA paper's (Frenkel et al. 2024, section 4.1) with a control. Two prompts differ in content and in
style: A, "a pencil sketch of a mug", and B, "pixel art of a house". One stack reads A and the rest of the model B; how far do
content and style go over to A? A stack that moves one and not the other is a half. A pair of stacks is measured as B-LoRA uses
it: one reads A, the other B, the rest nothing in particular; is the content A's and the style B's?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

CONTENTS = ("cat", "dog", "robot", "house", "tree", "car", "fish", "mug", "flower", "boat", "mushroom", "bird")
STYLES = ("a flat drawing", "a pencil sketch", "a watercolour painting", "pixel art")
NEUTRAL = "a picture"
SEED = 271_828
NUM_RANDOM_PAIRS = 20
PHASES = ("everywhere", "single", "choose", "confirm")


@dataclass(frozen=True, kw_only=True)
class ProbeBudget:
    """How much is drawn.

    Attributes:
        num_singles, num_choosing, num_confirming: prompt pairs for each single stack, for each pair of stacks while the best is
            chosen, and for the best and the random pairs afterwards, on prompt pairs of their own.
        num_candidates: pairs of stacks that the singles promise most of; the best is chosen from them.
        steps: denoising steps of a picture.
    """

    num_singles: int
    num_choosing: int
    num_confirming: int
    num_candidates: int
    steps: int

    def num_pictures(self, num_stacks: int) -> int:
        """Pictures of a whole probe on a base model with so many stacks."""
        candidates = min(self.num_candidates, num_stacks * (num_stacks - 1))
        controls = 1 + min(NUM_RANDOM_PAIRS, num_stacks * (num_stacks - 1) - 1)
        return (num_stacks + 2) * self.num_singles + candidates * self.num_choosing + controls * self.num_confirming


BUDGETS = {
    "quick": ProbeBudget(num_singles=8, num_choosing=8, num_confirming=12, num_candidates=6, steps=8),
    "full": ProbeBudget(num_singles=24, num_choosing=24, num_confirming=32, num_candidates=12, steps=10),
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """A content and a style in words."""

    content: str
    style: str

    @property
    def prompt(self) -> str:
        """Both in one prompt."""
        return f"{self.style} of {self.content_words}"

    @property
    def content_words(self) -> str:
        """The content alone."""
        return f"{'an' if self.content[0] in 'aeiou' else 'a'} {self.content}"


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """Two prompts that share neither content nor style, and the seed of their pictures."""

    first: Words
    second: Words
    seed: int


def prompt_pairs(phase: str, num: int) -> list[PromptPair]:
    """The first `num` prompt pairs of a phase: always the same ones; phases share none of their seeds."""
    rng = np.random.default_rng([SEED, PHASES.index(phase)])
    pairs = []
    for number in range(num):
        contents, styles = rng.choice(CONTENTS, 2, replace=False), rng.choice(STYLES, 2, replace=False)
        first, second = (Words(content=str(c), style=str(s)) for c, s in zip(contents, styles, strict=True))
        pairs.append(PromptPair(first=first, second=second, seed=10_000 * PHASES.index(phase) + number))
    return pairs


@dataclass(frozen=True, kw_only=True)
class ProbeItem:
    """One picture: which prompt goes where.

    Attributes:
        phase: see `PHASES`. number: of the prompt pair. pair: itself.
        content_stack: reads the first prompt. style_stack: reads the second. rest: what the rest of the model reads.
    """

    phase: str
    number: int
    pair: PromptPair
    rest: str
    content_stack: str | None = None
    style_stack: str | None = None

    @property
    def id(self) -> str:
        """Unique within a probe."""
        where = f"{self.content_stack or ''}+{self.style_stack or ''}"
        return f"{self.phase}/{where if self.phase != 'everywhere' else self._which}/{self.number}"

    @property
    def _which(self) -> str:
        return "first" if self.rest == self.pair.first.prompt else "second"

    @property
    def stack_prompts(self) -> dict[str, str]:
        """Attention stack -> its prompt."""
        texts = ((self.content_stack, self.pair.first), (self.style_stack, self.pair.second))
        return {stack: words.prompt for stack, words in texts if stack is not None}


def single_items(stacks: Sequence[str], budget: ProbeBudget) -> Iterator[ProbeItem]:
    """Both prompts everywhere, which are the two ends of the scale, and the first in each stack with the second elsewhere."""
    pairs = list(enumerate(prompt_pairs("single", budget.num_singles)))
    for number, pair in pairs:
        for words in (pair.first, pair.second):
            yield ProbeItem(phase="everywhere", number=number, pair=pair, rest=words.prompt)
    for stack in stacks:
        for number, pair in pairs:
            yield ProbeItem(phase="single", number=number, pair=pair, rest=pair.second.prompt, content_stack=stack)


def pair_items(phase: str, pairs: Sequence[tuple[str, str]], budget: ProbeBudget) -> Iterator[ProbeItem]:
    """For pairs of stacks (content, style): the first prompt in the one, the second in the other, no words elsewhere."""
    num = budget.num_choosing if phase == "choose" else budget.num_confirming
    for content_stack, style_stack in pairs:
        for number, words in enumerate(prompt_pairs(phase, num)):
            yield ProbeItem(
                phase=phase, number=number, pair=words, rest=NEUTRAL, content_stack=content_stack, style_stack=style_stack
            )


def random_pairs(stacks: Sequence[str], best: tuple[str, str]) -> list[tuple[str, str]]:
    """Twenty ordered pairs of stacks drawn without looking (fewer where there are not so many), the best one left out."""
    others = [pair for pair in permutations(stacks, 2) if pair != best]
    order = np.random.default_rng([SEED, len(stacks)]).permutation(len(others))
    return [others[index] for index in order[:NUM_RANDOM_PAIRS]]
