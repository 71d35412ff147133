"""Random numbers that are a pure function of what they are for: no state, so nothing to save and nothing to lose.

Each number is a BLAKE2b hash of the run's seed, a purpose and counters. It is the same on every machine, in every
version of every library, in any order of asking, and however the work is spread over processes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache


def bits(seed: int, purpose: str, *counters: int) -> int:
    """64 random bits."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def uniform(seed: int, purpose: str, *counters: int) -> float:
    """A number in [0, 1), with 53 random bits."""
    return (bits(seed, purpose, *counters) >> 11) * 2.0**-53


@lru_cache(maxsize=256)
def permutation(length: int, seed: int, purpose: str, *counters: int) -> tuple[int, ...]:
    """The numbers 0 … length − 1 in random order."""
    return tuple(sorted(range(length), key=lambda index: (bits(seed, purpose, *counters, index), index)))
