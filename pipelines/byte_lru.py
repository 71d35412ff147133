"""Things that are kept while there is room, the least recently used going first; room is counted in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class ByteLRU(Generic[Thing]):
    """A cache with a budget of bytes.

    The newest thing is always kept, even if it alone is larger than the budget: it is in use.

    Args:
        budget_bytes: how much may be kept. size_of: the bytes of one thing.

    Attributes:
        hits, misses, evictions: counts since it was made. num_bytes: kept now.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[Thing], int]) -> None:
        self.budget_bytes = budget_bytes
        self.size_of = size_of
        self.hits = self.misses = self.evictions = 0
        self.num_bytes = 0
        self._things: OrderedDict[Hashable, tuple[Thing, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._things

    def get(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """The thing called `key`, made if it is not kept."""
        known = self._things.get(key)
        if known is not None:
            self.hits += 1
            self._things.move_to_end(key)
            return known[0]
        self.misses += 1
        thing = make()
        size = self.size_of(thing)
        self._things[key] = (thing, size)
        self.num_bytes += size
        while self.num_bytes > self.budget_bytes and len(self._things) > 1:
            _, (_, freed) = self._things.popitem(last=False)
            self.num_bytes -= freed
            self.evictions += 1
        return thing

    def clear(self) -> None:
        """Keep nothing."""
        self._things.clear()
        self.num_bytes = 0
