"""What the denoiser reads of prompts, from the text encoders as they are at the moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from studio.pipelines.base_model import BaseModel, TextCondition, encode_text

TextSource: TypeAlias = Callable[[Sequence[str]], TextCondition]
"""From prompts to what the denoiser reads of them, on its device."""


class LiveText:
    """Reads prompts with gradients, each time anew: for text encoders that train."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base

    def __call__(self, prompts: Sequence[str]) -> TextCondition:
        """The features of `prompts`; equal prompts of a batch are read once."""
        distinct = tuple(dict.fromkeys(prompts))
        condition = read_prompts(self._base, distinct)
        if len(distinct) == len(prompts):
            return condition
        return condition.rows([distinct.index(prompt) for prompt in prompts])


def read_prompts(base: BaseModel, prompts: Sequence[str]) -> TextCondition:
    """`encode_text`, with zeros for the empty prompt where the base means zeros by it (SDXL)."""
    condition = encode_text(base, prompts)
    if not base.zero_empty_negative or all(prompts):
        return condition
    kept = torch.tensor([bool(prompt) for prompt in prompts], device=condition.prompt_embeds.device)
    pooled = None if condition.pooled is None else condition.pooled * kept[:, None]
    return TextCondition(condition.prompt_embeds * kept[:, None, None], pooled)
