"""Which tokens of a prompt are somebody's words: by the tokenizer's own offsets, never by counting blanks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.pipelines.errors import UserError


@dataclass(frozen=True)
class TokenSpan:
    """Some words of a prompt.

    Attributes:
        start, end: their characters in the prompt, the end not included.
        tokens: their positions in the sequence that the text encoder sees, the begin-of-text token counted.
    """

    start: int
    end: int
    tokens: tuple[int, ...]


def find_words(prompt: str, words: str, occurrence: int = 1) -> tuple[int, int] | None:
    """First and last-plus-one character of the n-th place where `words` stand as whole words; None if there is none.

    Case and the width of blanks do not matter: "Red  cat" is found by "red cat", and "cat" is not found in "cats".
    """
    parts = [re.escape(part) for part in words.split()]
    if not parts:
        return None
    pattern = r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)"
    found = list(re.finditer(pattern, prompt, re.IGNORECASE))
    return found[occurrence - 1].span() if len(found) >= occurrence else None


def token_span(tokenizer: Any, prompt: str, characters: tuple[int, int]) -> TokenSpan:
    """The tokens that cover `characters` of `prompt`.

    Args:
        tokenizer: of transformers; its length decides what the text encoder sees at all.

    Raises:
        UserError: the words stand past what the text encoder sees.
    """
    start, end = characters
    encoding = tokenizer.backend_tokenizer.encode(prompt)
    # Special tokens have the empty span (0, 0), which overlaps nothing.
    tokens = tuple(n for n, (first, last) in enumerate(encoding.offsets) if first < end and last > start)
    length = int(tokenizer.model_max_length)
    if not tokens or tokens[-1] >= length - 1:  # the last place is the end-of-text token's
        raise UserError(
            f'The words "{prompt[start:end]}" stand past the {length} tokens that the text encoder sees: shorten the prompt, '
            "or move them to its beginning."
        )
    return TokenSpan(start, end, tokens)


def overlapping(spans: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The first pair of indices whose characters overlap; None if no two do."""
    for later, second in enumerate(spans):
        for earlier, first in enumerate(spans[:later]):
            if first is not None and second is not None and first[0] < second[1] and second[0] < first[1]:
                return earlier, later
    return None
