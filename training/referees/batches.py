"""Which pictures a step learns from: a pure function of the recipe and the step, so that a run resumes exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from studio.training.referees.recipe import RefereeRecipe
from studio.training.referees.targets import UNKNOWN


def batch_indices(recipe: RefereeRecipe, step: int) -> NDArray[np.int64]:
    """Picture numbers of a step: free scenes, then all views of some individuals."""
    plan = recipe.renders
    scenes = _take(recipe.seed, 1, plan.num_scenes, recipe.scenes_per_batch, step)
    individuals = _take(recipe.seed, 2, plan.num_individuals, recipe.individuals_per_batch, step)
    views = plan.num_scenes + individuals[:, None] * plan.views + np.arange(plan.views)
    return np.concatenate([scenes, views.ravel()])


def individual_of(recipe: RefereeRecipe, index: int) -> int:
    """Number of the individual that a picture shows first, or UNKNOWN for a free scene."""
    plan = recipe.renders
    return UNKNOWN if index < plan.num_scenes else (index - plan.num_scenes) // plan.views


def step_generator(recipe: RefereeRecipe, step: int) -> np.random.Generator:
    """The random numbers of a step: captions, augmentation, jitter."""
    return np.random.default_rng([recipe.seed, 3, step])


def _take(seed: int, stream: int, num: int, per_step: int, step: int) -> NDArray[np.int64]:
    """`per_step` of `num` items by going through one random order after the other."""
    picks = np.arange(step * per_step, (step + 1) * per_step)
    orders = {int(epoch): np.random.default_rng([seed, stream, epoch]).permutation(num) for epoch in np.unique(picks // num)}
    return np.array([orders[int(pick // num)][pick % num] for pick in picks], dtype=np.int64)
