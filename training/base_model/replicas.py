"""Several processes that train one model on one batch: each takes its share of the rows, all take the same step.

On a few CPU cores, processes of one thread each waste less than threads do: they wait for one another once a step instead of
in every layer, so a core that somebody else uses for a moment costs a moment only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


@dataclass(frozen=True)
class Replica:
    """This process among `count` equal ones; alone it shares nothing."""

    rank: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are this process's share."""
        share = batch_size // self.count
        assert share * self.count == batch_size, f"a batch of {batch_size} does not divide by {self.count}"
        return slice(self.rank * share, (self.rank + 1) * share)

    def average(self, parameters: Iterable[nn.Parameter], loss: float, stop: bool) -> tuple[float, bool]:
        """Make all gradients the mean over the processes; returns the mean loss, and whether anybody wants to stop."""
        if self.count == 1:
            return loss, stop
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        extra = torch.tensor([loss, float(stop)])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), extra])
        dist.all_reduce(flat)
        flat /= self.count
        *means, extra = flat.split([*(gradient.numel() for gradient in gradients), 2])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view(gradient.shape))
        return float(extra[0]), bool(extra[1] > 0)


@contextmanager
def replicas(count: int, meeting_point: Path, helper: Callable[[Replica], None]) -> Iterator[Replica]:
    """Start `count - 1` processes that run `helper`, and join them as the first one.

    Args:
        meeting_point: a file, made anew, by which the processes find each other.
        helper: a function that can be sent to a process (defined at a module's top level, or a partial of one).
    """
    if count == 1:
        yield Replica()
        return
    meeting_point.unlink(missing_ok=True)
    children = [
        mp.get_context("spawn").Process(target=_join, args=(Replica(rank, count), meeting_point, helper), daemon=True)
        for rank in range(1, count)
    ]
    for child in children:
        child.start()
    first = Replica(0, count)
    _meet(first, meeting_point)
    try:
        yield first
    finally:
        dist.destroy_process_group()
        for child in children:
            child.join(timeout=60)
        meeting_point.unlink(missing_ok=True)


def _join(replica: Replica, meeting_point: Path, helper: Callable[[Replica], None]) -> None:
    torch.set_num_threads(1)
    _meet(replica, meeting_point)
    try:
        helper(replica)
    finally:
        dist.destroy_process_group()


def _meet(replica: Replica, meeting_point: Path) -> None:
    dist.init_process_group("gloo", init_method=meeting_point.absolute().as_uri(), rank=replica.rank, world_size=replica.count)
