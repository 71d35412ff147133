"""How much each adapter matters to a prompt, by the text encoder alone (W-Switch and W-Composite, arXiv 2606.03792).

The paper names two measures: how far the prompt's embedding turns when the adapter's words are taken out of it, and how near
these words are to the prompt. Its exact normalisation is not known here; weights are scaled to the sum 1.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.composition.scene import Concept, Scene
from studio.pipelines.encoding import TextCondition, token_ids

Weighting: TypeAlias = Literal["equal", "prompt", "trigger"]


def concept_weights(scene: Scene, weighting: Weighting) -> list[float]:
    """One weight per concept, not negative, with the sum 1; a concept without words in the prompt gets the others' mean.

    Args:
        weighting: "prompt": 1 − cos(e(prompt), e(prompt without the words)). "trigger": cos(e(words), e(prompt)), not below 0.
            The base's text encoder makes e, without adapters.
    """
    count = len(scene.concepts)
    if weighting == "equal" or count == 0:
        return [1 / count] * count
    prompt = scene.plan.prompt
    whole = _embedding(scene, prompt)
    found: list[float | None] = []
    for concept in scene.concepts:
        if concept.words is None or concept.span is None:
            found.append(None)
            continue
        other = _embedding(scene, _without(prompt, concept) if weighting == "prompt" else concept.words)
        cosine = float(F.cosine_similarity(whole, other, dim=0))
        found.append(max(0.0, 1.0 - cosine if weighting == "prompt" else cosine))
    known = [weight for weight in found if weight is not None]
    mean = sum(known) / len(known) if known and sum(known) > 0 else 1.0
    weights = [mean if weight is None else weight for weight in found]
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else [1 / count] * count


def _without(prompt: str, concept: Concept) -> str:
    assert concept.span is not None
    return " ".join((prompt[: concept.span.start] + prompt[concept.span.end :]).split())


def _embedding(scene: Scene, prompt: str) -> Tensor:
    """One vector for a prompt `[D]`, float32: the pooled one, or the features of the end-of-text token."""
    condition: TextCondition = scene.condition(prompt)
    if condition.pooled is not None:
        return condition.pooled[0].float()
    tokenizer = scene.base.tokenizers[0]
    ids = token_ids(tokenizer, [prompt])[0]
    end = int(torch.nonzero(ids == tokenizer.eos_token_id)[0])
    return condition.prompt_embeds[0, end].float()
