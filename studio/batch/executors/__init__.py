"""Where the groups of a batch are worked on: in this process, on a Ray cluster, or as jobs of SLURM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from studio.batch.work import Outcome, Work

Stop = Callable[[], bool]
Tell = Callable[[str], None]


class Executor(Protocol):
    """Does work, in any order, and gives back what came of each piece as soon as it is there."""

    def run(self, work: Sequence[Work], should_stop: Stop) -> Iterator[Outcome]:
        """Do all of it.

        Raises:
            Cancelled: `should_stop` said so, in the middle of a picture.
        """
        ...
