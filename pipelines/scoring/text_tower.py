"""The text half of the joint embedding: a one-layer transformer over the world's words."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

MAX_WORDS = 32
PAD, UNKNOWN = 0, 1


class TextTower(nn.Module):
    """Words to one vector. A word outside the vocabulary is `UNKNOWN`: it has a place but no meaning."""

    def __init__(self, words: tuple[str, ...], dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.index_of = {word: index + 2 for index, word in enumerate(words)}
        self.words = nn.Embedding(len(words) + 2, dim, padding_idx=PAD)
        self.places = nn.Parameter(torch.randn(MAX_WORDS, dim) * 0.02)
        nn.init.normal_(self.words.weight, std=0.05)
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.second_norm = nn.LayerNorm(dim)
        self.expand = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Word indices `[N, L]`, padded with `PAD`; words beyond `MAX_WORDS` are left out."""
        split = [re.findall(r"[a-z0-9]+", prompt.lower())[:MAX_WORDS] for prompt in prompts]
        length = max([1, *map(len, split)])
        tokens = torch.full((len(split), length), PAD, dtype=torch.long)
        for row, text in enumerate(split):
            indices = [self.index_of.get(word, UNKNOWN) for word in text]
            tokens[row, : len(indices)] = torch.tensor(indices, dtype=torch.long)
        return tokens

    def forward(self, prompts: list[str]) -> Tensor:
        """Vectors `[N, dim]`, not normalised. An empty prompt is read as one unknown word."""
        tokens = self.tokenize(prompts).to(self.places.device)
        tokens[:, 0] = torch.where(tokens[:, 0] == PAD, UNKNOWN, tokens[:, 0])
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        padding = tokens == PAD
        h = self.norm(x)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.expand(self.second_norm(x))
        kept = (~padding).unsqueeze(-1)
        mean = (x * kept).sum(dim=1) / kept.sum(dim=1)
        output: Tensor = self.out(mean)
        return output
