"""The prompts of `studio eval selma`, which the base model finds hard, and how much is drawn and trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from studio.assets import world
from studio.evals.base_prompts import BasePrompt, word_prompt
from studio.pipelines.scoring.checklist import ObjectFacts, PromptFacts

SEEDS = {"tune": 27_182, "report": 81_828}
"""Settings are chosen on the prompts of `tune`, and reported on those of `report`, which nothing was chosen on."""

PATTERNS = world.PATTERNS[1:]
STYLES = world.STYLES[1:]


@dataclass(frozen=True)
class Group:
    """One kind of hard prompt.

    Attributes:
        num_objects: in it. num_patterns: of these have a named pattern. same_class: whether all are of one class.
        relation: whether it says how the first stands to the second. styled: whether its style is never the plain one.
    """

    num_objects: int
    num_patterns: int = 0
    same_class: bool = False
    relation: bool = False
    styled: bool = False


GROUPS: Mapping[str, Group] = {
    "three": Group(3, num_patterns=1),
    "four": Group(4, num_patterns=1),
    "same class": Group(2, num_patterns=1, same_class=True, relation=True),
    "pair": Group(2, num_patterns=2, relation=True),
    "pattern": Group(1, num_patterns=1),
    "style": Group(2, relation=True, styled=True),
}


@dataclass(frozen=True, kw_only=True)
class SelmaBudget:
    """How much is trained and drawn.

    Attributes:
        num_each: evaluated prompts of each group. num_prompts: training prompts of each skill. attempts: pictures of each.
        steps: of the sampler, everywhere. train: settings of the trainings that are not the workflow's own.
        unfiltered: whether there are also experts that learn from pictures nobody looked at, as in the paper.
    """

    num_each: int
    num_prompts: int
    attempts: int
    steps: int
    train: Mapping[str, object] = field(default_factory=dict)
    unfiltered: bool = False


BUDGETS = {
    "quick": SelmaBudget(num_each=16, num_prompts=100, attempts=2, steps=20),
    "full": SelmaBudget(num_each=60, num_prompts=400, attempts=3, steps=30, train={"schedule.steps": 800}, unfiltered=True),
}


def hard_prompts(split: str, num_each: int) -> list[BasePrompt]:
    """`num_each` prompts of each group with what they say, and the seeds of their pictures."""
    rng = np.random.default_rng(SEEDS[split])
    return [
        BasePrompt(f"{name}-{number:03d}", name, word_prompt(facts), facts, SEEDS[split] + number)
        for name, group in GROUPS.items()
        for number, facts in enumerate(_facts(group, rng) for _ in range(num_each))
    ]


def _facts(group: Group, rng: np.random.Generator) -> PromptFacts:
    count = group.num_objects
    classes = [str(name) for name in rng.choice(world.CLASSES, size=count, replace=False)]
    colours = [str(name) for name in rng.choice(world.COLOURS, size=count, replace=False)]
    patterns = [str(name) for name in rng.choice(PATTERNS, size=group.num_patterns, replace=False)]
    objects = tuple(
        ObjectFacts(classes[0 if group.same_class else place], colours[place], patterns[place] if place < len(patterns) else None)
        for place in range(count)
    )
    relation = str(rng.choice(world.RELATIONS)) if group.relation else None
    style = str(rng.choice(STYLES if group.styled else world.STYLES))
    return PromptFacts(objects, relation, str(rng.choice(world.BACKGROUNDS)), style)
