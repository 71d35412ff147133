"""The adapters of a scene with ZipLoRA's coefficients: what `ziplora` draws with, and what is exported as one."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import Annotated

from pydantic import Field

from studio.composition.column_learning import ColumnLearner, Learned, examples_of, learned_adapters
from studio.composition.merged import concept_prompt
from studio.composition.merging import Merged, Weighted, merge_exactly
from studio.composition.plan import Float, Int
from studio.composition.scene import Scene
from studio.composition.strategy import StrategyConfig
from studio.pipelines.adapters import Adapter

_MOST_KEPT = 8
_learned: OrderedDict[str, Learned] = OrderedDict()


class ZipLoraConfig(StrategyConfig):
    """Settings of `ziplora`."""

    learning_steps: Annotated[Int, Field(ge=0)] = Field(
        default=100, description="Steps of learning before the first picture, the paper's 100; 0 is merge."
    )
    learning_rate: Annotated[Float, Field(gt=0.0)] = Field(
        default=0.01,
        description="Of the coefficients, which are 1 at first. A public implementation's 5e-5 moves none by more than .005.",
    )
    penalty: Annotated[Float, Field(ge=0.0)] = Field(
        default=0.01, description="How much it counts that two adapters use the same columns: the paper's lambda."
    )
    sample_steps: Annotated[Int, Field(ge=1)] = Field(
        default=8, description="Denoising steps of the picture of each adapter alone that its part is learned on."
    )


def zipped(scene: Scene, config: ZipLoraConfig) -> tuple[list[Adapter], tuple[float, ...]]:
    """The scene's adapters, one per concept, to use together at their strengths; and the losses of the learning.

    One adapter, and all of them with `learning_steps` 0, are as they were. What was learned is kept for the next plan with the
    same adapters, prompts of their own and settings.
    """
    if len(scene.concepts) < 2 or config.learning_steps == 0:
        return [concept.adapter for concept in scene.concepts], ()
    learner = ColumnLearner(scene, config.penalty)
    key = _key(scene, config)
    learned = _learned.get(key)
    if learned is None:
        learned = learner.learn(examples_of(scene, config.sample_steps), config.learning_steps, config.learning_rate)
        _learned[key] = learned
        if len(_learned) > _MOST_KEPT:
            _learned.popitem(last=False)
    return learned_adapters(scene, learner.patches, learned), learned.losses


def zipped_adapter(scene: Scene, config: ZipLoraConfig) -> Merged:
    """The same as one adapter, to use at strength 1."""
    adapters, _ = zipped(scene, config)
    parts = [Weighted(adapter.to("cpu"), concept.strength) for adapter, concept in zip(adapters, scene.concepts, strict=True)]
    return merge_exactly(parts, scene.base.components())


def _key(scene: Scene, config: ZipLoraConfig) -> str:
    request = scene.request
    facts = [
        [scene.base.content_hash, request.height, request.width, request.guidance_scale, config.model_dump(mode="json")],
        *([c.adapter.content_hash(), c.strength, concept_prompt(scene, c), scene.own_negative(c)] for c in scene.concepts),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
