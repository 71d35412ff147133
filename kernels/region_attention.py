"""Self-attention in which regions do not see each other, without computing what they do not see.

The positions are put in order by region once, so that every region is one run of them, and each run attends to the runs that
it sees. Masked scores are never made, every attention kernel can do it, forward and backward, and what is not seen cannot
reach the result by a single bit. With a mask over all pairs instead, every score is computed and most kernels step aside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.paths import pinned_path

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RegionPlan:
    """Who sees whom on one grid, made once for all layers and steps.

    Attributes:
        order: `[Q]` int64, the positions by region. inverse: back again.
        runs: for each region that has positions its slice of `order`. seen: for each, the slices that it sees, neighbours joined.
        owner, sees: what it was made from.
    """

    order: Tensor
    inverse: Tensor
    runs: tuple[slice, ...]
    seen: tuple[tuple[slice, ...], ...]
    owner: Tensor
    sees: Tensor

    @classmethod
    def make(cls, owner: Tensor, sees: Tensor) -> RegionPlan:
        """From the region of each position, `[Q]` int64 in 0…R−1, and `sees[i, j]`: whether region i sees region j."""
        order = torch.argsort(owner, stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        counts = torch.bincount(owner, minlength=len(sees)).tolist()
        ends = torch.tensor(counts).cumsum(0).tolist()
        slices = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
        present = [index for index, count in enumerate(counts) if count]
        seen = tuple(_joined([slices[other] for other in present if bool(sees[index, other])]) for index in present)
        return cls(order, inverse, tuple(slices[index] for index in present), seen, owner, sees)

    def allowed(self) -> Tensor:
        """The same as a mask for all pairs, bool `[Q, Q]`: what the plain path takes."""
        return self.sees.to(self.owner.device)[self.owner][:, self.owner]

    def pairs(self) -> int:
        """How many (query, key) pairs are computed."""
        return sum(_length(run) * sum(map(_length, seen)) for run, seen in zip(self.runs, self.seen, strict=True))


def region_attention(query: Tensor, key: Tensor, value: Tensor, plan: RegionPlan, attend: Attend | None = None) -> Tensor:
    """Attention `[B, H, Q, d]` in which each position reads what its region sees.

    Args:
        attend: computes one part; None for torch's own.
    """
    if pinned_path() == "plain":
        return reference_region_attention(query, key, value, plan)
    compute = F.scaled_dot_product_attention if attend is None else attend
    queries, keys, values = (tensor.index_select(2, plan.order) for tensor in (query, key, value))
    parts = [
        compute(queries[:, :, run], _taken(keys, seen), _taken(values, seen))
        for run, seen in zip(plan.runs, plan.seen, strict=True)
    ]
    return torch.cat(parts, dim=2).index_select(2, plan.inverse)


def reference_region_attention(query: Tensor, key: Tensor, value: Tensor, plan: RegionPlan) -> Tensor:
    """The plain path: one mask for all pairs."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=plan.allowed())


def _joined(slices: Sequence[slice]) -> tuple[slice, ...]:
    found: list[slice] = []
    for each in slices:
        if found and found[-1].stop == each.start:
            found[-1] = slice(found[-1].start, each.stop)
        else:
            found.append(each)
    return tuple(found)


def _taken(tensor: Tensor, slices: Sequence[slice]) -> Tensor:
    parts = [tensor[:, :, each] for each in slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _length(run: slice) -> int:
    return int(run.stop - run.start)
