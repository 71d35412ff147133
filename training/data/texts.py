"""Text features of captions, encoded once each, for runs that leave the text encoders as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from studio.pipelines.encoding import TextCondition
from studio.training.data.tensor_store import TensorStore, store_key

EncodeText = Callable[[Sequence[str]], TextCondition]
"""Captions (B of them) → `TextCondition` of B rows."""


class TextCache:
    """Encodes each caption once, by itself, so that its features don't depend on the batch it is in.

    Args:
        encode: see `EncodeText`. encoder_hash: of the text encoders' weights. store: where features are kept.
    """

    def __init__(self, encode: EncodeText, encoder_hash: str, store: TensorStore) -> None:
        self._encode = encode
        self._encoder_hash = encoder_hash
        self._store = store

    def condition(self, captions: Sequence[str]) -> TextCondition:
        """The features of `captions`, on the CPU, in their order."""
        return TextCondition.cat([self._one(caption) for caption in captions])

    def _one(self, caption: str) -> TextCondition:
        def make() -> dict[str, Tensor]:
            made = self._encode([caption])
            pooled = {} if made.pooled is None else {"pooled": made.pooled}
            return {"prompt_embeds": made.prompt_embeds, **pooled}

        entry = self._store.get(store_key("text 1", self._encoder_hash, caption), make)
        return TextCondition(entry["prompt_embeds"], entry.get("pooled"))
