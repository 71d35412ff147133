"""How layers that read the same input, and the adapters on them, lie in one matrix.

The rows of a joint weight are the layers' own, one after the other, and then the adapters' first factors: a block of `rank`
rows for each layer that has any, A₁ … Aₙ below each other in it. One product with it gives the layers' outputs and, beside
them, what the second factors read. With `copies`, every row of the batch has such blocks of its own.
"""

from __future__ import annotations

from typing import NamedTuple


class JointLayout(NamedTuple):
    """Sizes of a joint weight.

    Attributes:
        width: N, outputs of each layer. num_layers: how many layers.
        active: which layers have adapters, in order. rank: R, rows of each one's block, padding included.
        copies: blocks for each row of the batch; 1 for blocks that all rows share.
    """

    width: int
    num_layers: int
    active: tuple[int, ...]
    rank: int
    copies: int = 1

    @property
    def num_outputs(self) -> int:
        """Rows that are the layers' own."""
        return self.width * self.num_layers

    @property
    def block(self) -> int:
        """Rows of one copy of the blocks."""
        return self.rank * len(self.active)

    @property
    def num_rows(self) -> int:
        """All rows."""
        return self.num_outputs + self.block * self.copies

    @property
    def is_run(self) -> bool:
        """Whether the active layers stand side by side, so that one batched product reaches them all."""
        return self.active == tuple(range(self.active[0], self.active[-1] + 1))

    def columns(self, layer: int) -> slice:
        """Where a layer's outputs are."""
        return slice(layer * self.width, (layer + 1) * self.width)

    def inner(self, position: int, copy: int = 0) -> slice:
        """Where the block of the `position`-th active layer is."""
        start = self.num_outputs + copy * self.block + position * self.rank
        return slice(start, start + self.rank)


def padded_rank(rank: int, least: int = 1) -> int:
    """`rank` rounded up, so that rows of a half-precision buffer stay aligned to 16 bytes: 8, 16, 32, 64 and so on by 64.

    Few sizes also mean few shapes for a compiler; `least` is the smallest.
    """
    for size in (8, 16, 32, 64):
        if max(rank, least) <= size:
            return size
    return -(-rank // 64) * 64
