"""What a piece of code costs, counted and not timed: operations, FLOPs, bytes moved, and the most bytes alive at once.

The figures are the same on every machine, and come at full size from models on the meta device, which hold no numbers.
Attention counts as one operation that reads queries, keys and values and writes its output, as the fused kernels do; or, on
request, as the plain three with all scores in memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_NOT_COUNTED = {
    _aten.detach.default,
    _aten.empty_like.default,
    _aten.empty.memory_format,
    _aten.new_empty.default,
    _aten._unsafe_view.default,
}


@dataclass(frozen=True)
class Cost:
    """Of some calls.

    Attributes:
        ops: ATen calls that compute or copy; views and allocations do not count. flops: of products, convolutions, attention.
        moved_bytes: of inputs and outputs of these calls. evaluations: rows that the denoiser was run on.
    """

    ops: int = 0
    flops: int = 0
    moved_bytes: int = 0
    evaluations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.ops + other.ops,
            self.flops + other.flops,
            self.moved_bytes + other.moved_bytes,
            self.evaluations + other.evaluations,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.ops - other.ops,
            self.flops - other.flops,
            self.moved_bytes - other.moved_bytes,
            self.evaluations - other.evaluations,
        )


class CostCounter(TorchDispatchMode):
    """Counts what runs inside the block, backward passes too.

    Attributes:
        cost: so far. live_bytes: of tensors that were made inside and are still there. peak_bytes: the most of these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one ATen call, and book it."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.is_view:
            return output
        made = _tensors_of(output)
        for tensor in made:
            self._book(tensor)
        if func not in _NOT_COUNTED:
            read = [tensor for each in (*args, *kwargs.values()) for tensor in _tensors_of(each)]
            count_flops = flop_registry.get(func._overloadpacket)
            flops = 0 if count_flops is None else int(count_flops(*args, **kwargs, out_val=output))
            self.add(1, flops, [*read, *made])
        return output

    def add(self, ops: int, flops: int, tensors: list[Tensor]) -> None:
        """Book operations that read or write `tensors`."""
        self.cost += Cost(ops, flops, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    def evaluated(self, rows: int) -> None:
        """Book a run of the denoiser."""
        self.cost += Cost(evaluations=rows)

    def _book(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if self._known.get(storage._cdata) is storage:
            return
        size = storage.nbytes()
        self._known[storage._cdata] = storage
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live_bytes -= size


def _tensors_of(value: Any) -> list[Tensor]:
    """Tensors in an argument or a result, which are single or in a list."""
    if isinstance(value, Tensor):
        return [value]
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, list | tuple) else []


@contextmanager
def counting(counter: CostCounter | None = None, *, all_scores: bool = False) -> Iterator[CostCounter]:
    """Count what runs inside the block.

    Args:
        counter: to go on with; None for a new one.
        all_scores: attention keeps its scores in memory, as plain implementations do.
    """
    counter = CostCounter() if counter is None else counter

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
        if all_scores:
            return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        return _Attention.apply(counter, q, k, v)

    with patch.object(F, "scaled_dot_product_attention", attend), counter:
        yield counter


class _Attention(torch.autograd.Function):
    """Fused attention without numbers: keeps queries, keys, values and output, as the kernels do."""

    @staticmethod
    def forward(context: Any, counter: CostCounter, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)
        context.save_for_backward(q, k, v, output)
        context.counter = counter
        counter.add(1, _attention_flops(q, k), [q, k, v, output])
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        q, k, v, output = context.saved_tensors
        made = tuple(torch.empty_like(tensor) for tensor in (q, k, v))
        # Five products instead of two: the scores are computed again.
        context.counter.add(1, 5 * _attention_flops(q, k) // 2, [q, k, v, output, *gradients, *made])
        return None, *made


def _attention_flops(q: Tensor, k: Tensor) -> int:
    """Two products of [Q, d] × [d, K] for every head."""
    return 4 * q.numel() * k.shape[-2]
