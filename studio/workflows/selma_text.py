"""How alike two prompts are, and a pool that takes no near copies: ROUGE-L (Lin 2004), as SELMA and Self-Instruct use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_ALIKE = 0.8
"""The paper's limit: a prompt is taken if no prompt of the pool has a ROUGE-L above it."""


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers; everything else parts them."""
    return re.findall(r"[^\W_]+", text.lower())


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with one machine word's worth of the table at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched) | (row - matched)
    return (~row & all_ones).bit_count()


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 of two texts: 2 · LCS / (words of both), 0 for texts without words."""
    left, right = words_of(first), words_of(second)
    return 2 * lcs_length(left, right) / (len(left) + len(right)) if left and right else 0.0


class PromptPool:
    """Prompts that all differ: none is more like another one than the limit.

    Attributes:
        prompts: in the order in which they came.
    """

    def __init__(self, most_alike: float = MOST_ALIKE, prompts: Iterable[str] = (), *, never: Iterable[str] = ()) -> None:
        """`prompts` are in it from the beginning; `never` names prompts that are refused if they are the same words."""
        self.most_alike = most_alike
        self.prompts: list[str] = []
        self._words: list[list[str]] = []
        self._never = {tuple(words_of(prompt)) for prompt in never}
        for prompt in prompts:
            self._add(prompt, words_of(prompt))

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, prompt: str) -> bool:
        """Put `prompt` into the pool, unless it has no words, is refused, or is too much like one that is there."""
        words = words_of(prompt)
        if not words or tuple(words) in self._never or any(self._is_alike(words, other) for other in self._words):
            return False
        self._add(prompt, words)
        return True

    def _add(self, prompt: str, words: list[str]) -> None:
        self.prompts.append(prompt)
        self._words.append(words)

    def _is_alike(self, words: list[str], other: list[str]) -> bool:
        total = len(words) + len(other)
        if 2 * min(len(words), len(other)) <= self.most_alike * total:
            return False  # even if the shorter one were all in the longer one
        return 2 * lcs_length(words, other) > self.most_alike * total
