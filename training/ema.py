"""An exponential moving average of the trainable tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def ema_decay(num_updates: int, decay: float) -> float:
    """min(decay, (1+n)/(10+n)): a short memory at first, so that the average isn't made of the initial weights."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


class ExponentialMovingAverage:
    """Keeps a slow copy of `tensors` (name → live tensor), updated after every optimizer step."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._live = dict(tensors)
        self._average = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average ← average + (1 − decay)·(live − average)."""
        weight = 1.0 - ema_decay(self.num_updates, self.decay)
        torch._foreach_lerp_(list(self._average.values()), [t.detach() for t in self._live.values()], weight)
        self.num_updates += 1

    def state(self) -> dict[str, Tensor]:
        """The averaged tensors by name (not copies)."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Put back what `state()` and `num_updates` gave."""
        for name, average in self._average.items():
            average.copy_(tensors[name])
        self.num_updates = num_updates

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The live tensors hold the average inside the block and are bit-identical to before after it."""
        kept = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        with torch.no_grad():
            for name, tensor in self._live.items():
                tensor.copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._live.items():
                    tensor.copy_(kept[name])
