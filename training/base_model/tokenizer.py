"""A CLIP byte-level BPE tokenizer in which every word of the toy world, and every rare token, is exactly one token."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE (Radford et al., 2019), in byte order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def merge_once(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, left to right."""
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def segment(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Split a word as BPE does: join the pair of lowest rank until no known pair is left."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        best = min(zip(pieces, pieces[1:], strict=False), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            return pieces
        pieces = merge_once(pieces, best)
    return pieces


def merges_for(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that make each word one piece. A later merge never disturbs an earlier word: at each of that word's steps a pair of
    lower rank is still waiting, and BPE always joins the lowest."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = segment(word, ranks)
        while len(pieces) > 1:
            ranks[(pieces[0], pieces[1])] = len(ranks)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            # The new pair may also stand elsewhere in the word.
            pieces = segment(word, ranks)
    return list(ranks)


def build_tokenizer(words: Sequence[str], max_tokens: int) -> CLIPTokenizer:
    """Tokenizer over `words` (lower case, letters only); any other text still tokenizes, byte by byte."""
    letters = byte_alphabet()
    merges = merges_for(words)
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)
    for word in words:
        if len(tokenizer(word, add_special_tokens=False).input_ids) != 1:
            raise AssertionError(f"'{word}' is not one token")
    return tokenizer
