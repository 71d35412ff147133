"""Classifier-free guidance: the plain way to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from studio.pipelines.denoising.request import Branch, Step, Strategy
from studio.pipelines.encoding import TextCondition


class GuidanceStrategy(Strategy):
    """noise_pred = uncond + guidance_scale · (cond − uncond), Ho and Salimans (2022), both in one batched pass.

    Args:
        condition: of the prompts, a row per picture.
        negative: of the negative prompt, a row per picture; not used when `guidance_scale` is 1 or less.
        rescale: φ of Lin et al. (2023), eq. 15 and 16: how far the guided prediction is brought back to the standard
            deviation of the conditional one, 0 (diffusers' default) to 1.
        block_conditions: attention stack -> prompts of its own, a row per picture, in the pass with the prompt.
    """

    def __init__(
        self,
        condition: TextCondition,
        negative: TextCondition,
        guidance_scale: float,
        rescale: float = 0.0,
        block_conditions: Mapping[str, TextCondition] | None = None,
    ) -> None:
        self.condition = condition
        self.negative = negative
        self.guidance_scale = guidance_scale
        self.rescale = rescale
        self.block_conditions = {} if block_conditions is None else dict(block_conditions)

    @property
    def is_guided(self) -> bool:
        """Whether there is a pass without the prompt."""
        return self.guidance_scale > 1.0

    def branches(self, step: Step) -> Sequence[Branch]:
        """Without and with the prompt; only with it where there is no guidance."""
        prompted = Branch(self.condition, block_conditions=self.block_conditions)
        return [Branch(self.negative), prompted] if self.is_guided else [prompted]

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """The guided prediction."""
        if not self.is_guided:
            return predictions[0]
        unconditional, conditional = predictions
        guided = unconditional + self.guidance_scale * (conditional - unconditional)
        if self.rescale == 0.0:
            return guided
        dimensions = tuple(range(1, guided.ndim))
        rescaled = guided * (conditional.std(dim=dimensions, keepdim=True) / guided.std(dim=dimensions, keepdim=True))
        return self.rescale * rescaled + (1.0 - self.rescale) * guided
