"""Ways to draw a composition in less memory, in the order in which they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Thrift:
    """How sparingly to draw.

    Attributes:
        batch_size: pictures at once. one_by_one: branches one after the other, where they could be one batch.
        captured_share: share of the attention layers whose maps are read. checkpointing: parts of the denoiser run a second
            time for gradients, rather than keep what they computed.
    """

    batch_size: int = 4
    one_by_one: bool = False
    captured_share: float = 1.0
    checkpointing: bool = False

    @property
    def most_rows(self) -> int | None:
        """Rows of a batch of the denoiser; None for no limit."""
        return self.batch_size if self.one_by_one else None

    def sentences(self, before: Thrift) -> list[str]:
        """What is done that `before` did not, a sentence each."""
        found = []
        if self.one_by_one and not before.one_by_one:
            found.append("branches run one after the other (slower, the same pictures within rounding)")
        if self.batch_size < before.batch_size:
            found.append(f"{self.batch_size} of {before.batch_size} pictures are drawn at once (the same within rounding)")
        if self.captured_share < before.captured_share:
            found.append(f"{self.captured_share:.0%} of the attention layers are read (regions may be found less well)")
        if self.checkpointing and not before.checkpointing:
            found.append("gradients by checkpointing (slower, the same pictures within rounding)")
        return found


def ladder(asked: Thrift) -> list[Thrift]:
    """`asked`, and below it step by step what takes less memory: first what leaves the pictures as they are.

    Branches one after the other; fewer pictures at once; a half, a quarter, an eighth of the captured layers; checkpointing.
    """
    steps = [asked, replace(asked, one_by_one=True)]
    while steps[-1].batch_size > 1:
        steps.append(replace(steps[-1], batch_size=steps[-1].batch_size // 2))
    for share in (0.5, 0.25, 0.125):
        steps.append(replace(steps[-1], captured_share=min(share, asked.captured_share)))
    steps.append(replace(steps[-1], checkpointing=True))
    return list(dict.fromkeys(steps))


@contextmanager
def checkpointed(unet: Any, wanted: bool) -> Iterator[None]:
    """Inside the block the UNet keeps little for gradients, if it is `wanted`; afterwards it is as it was."""
    was = bool(unet.is_gradient_checkpointing)
    if not wanted or was:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
