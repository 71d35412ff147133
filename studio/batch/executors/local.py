"""Work in this process, one piece after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from studio.batch.executors import Stop
from studio.batch.work import Outcome, Work, do_work
from studio.batch.workshop import Workshop
from studio.pipelines.errors import Cancelled


class LocalExecutor:
    """One workshop, whose base model and adapters stay at hand from group to group."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def run(self, work: Sequence[Work], should_stop: Stop) -> Iterator[Outcome]:
        """In the order given, which loads the fewest models."""
        for piece in work:
            if should_stop():
                raise Cancelled("Stopped between two groups.")
            yield do_work(piece, self.workshop, should_stop=should_stop)
