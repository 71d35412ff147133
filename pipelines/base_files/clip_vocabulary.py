"""CLIP's byte-pair vocabulary, for checkpoints that come without a tokenizer.

`assets/configs/clip_bpe_merges.txt.gz` holds the 48,894 merges that CLIP uses of `bpe_simple_vocab_16e6.txt.gz` (OpenAI
CLIP and open_clip, MIT licence; see `assets/configs/LICENSE-clip.txt`). Everything else follows from them.
"""

from __future__ import annotations

import gzip
from importlib import resources
from typing import Any

MERGES_FILE = "configs/clip_bpe_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77


def clip_tokenizer(*, pad_token: str) -> Any:
    """CLIP's tokenizer of 49,408 tokens.

    Args:
        pad_token: what fills a prompt up to 77 tokens: the end token for CLIP ViT-L, "!" (id 0) for OpenCLIP's models.
    """
    from transformers import CLIPTokenizer

    merges = read_merges()
    return CLIPTokenizer(vocab=vocabulary(merges), merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS)


def read_merges() -> list[tuple[str, str]]:
    """The merges in their order, as pairs of token parts."""
    data = resources.files("studio.assets").joinpath(MERGES_FILE).read_bytes()
    lines = gzip.decompress(data).decode("utf-8").splitlines()
    return [(left, right) for left, right in (line.split(" ") for line in lines)]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token ids: the 256 bytes, the 256 bytes that end a word, what each merge makes, and the two marks."""
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
