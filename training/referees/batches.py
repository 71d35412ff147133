"""Which pictures a step learns from: a pure function of the recipe and the step, so that a run resumes exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from studio.training.referees.recipe import RefereeRecipe
from studio.training.referees.targets import UNKNOWN

VIEWS_PER_BATCH = 2


def batch_indices(recipe: RefereeRecipe, step: int) -> NDArray[np.int64]:
    """Picture numbers of a step: free scenes, then two views each of some individuals, all of one class.

    The class changes from step to step; only individuals of one class are hard to tell apart.
    """
    plan, num_classes = recipe.renders, len(recipe.network.classes)
    scenes = _take((recipe.seed, 1), plan.num_scenes, recipe.scenes_per_batch, step)
    class_index, turn = step % num_classes, step // num_classes
    of_class = np.arange(class_index, plan.num_individuals, num_classes)
    individuals = of_class[_take((recipe.seed, 2, class_index), len(of_class), recipe.individuals_per_batch, turn)]
    rng = np.random.default_rng([recipe.seed, 4, step])
    views = np.stack([rng.permutation(plan.views)[:VIEWS_PER_BATCH] for _ in individuals])
    return np.concatenate([scenes, (plan.num_scenes + individuals[:, None] * plan.views + views).ravel()])


def individual_of(recipe: RefereeRecipe, index: int) -> int:
    """Number of the individual that a picture shows first, or UNKNOWN for a free scene."""
    plan = recipe.renders
    return UNKNOWN if index < plan.num_scenes else (index - plan.num_scenes) // plan.views


def step_generator(recipe: RefereeRecipe, step: int) -> np.random.Generator:
    """The random numbers of a step: captions, augmentation, jitter."""
    return np.random.default_rng([recipe.seed, 3, step])


def _take(stream: tuple[int, ...], num: int, per_step: int, step: int) -> NDArray[np.int64]:
    """`per_step` of `num` items by going through one random order after the other."""
    picks = np.arange(step * per_step, (step + 1) * per_step)
    orders = {int(epoch): np.random.default_rng([*stream, int(epoch)]).permutation(num) for epoch in np.unique(picks // num)}
    return np.array([orders[int(pick // num)][pick % num] for pick in picks], dtype=np.int64)
