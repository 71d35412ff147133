"""What a piece of code costs, counted and not timed: operations, FLOPs, and bytes that are kept for the backward pass.

All three are the same on every machine, and come at full size from models on the meta device, which hold no numbers.
Attention is one operation here that keeps its inputs and its output, as the fused kernels do; its FLOPs do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
NOT_COUNTED = {aten.detach.default, aten.empty_like.default, aten.empty.memory_format, aten._unsafe_view.default}


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Attributes:
        ops: ATen calls that compute or copy; views and allocations do not count. flops: of products and convolutions.
        saved_bytes: distinct storage that autograd holds on to, parameters left out.
    """

    ops: int
    flops: int
    saved_bytes: int


class _OpCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func not in NOT_COUNTED:
            self.ops += 1
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q)
        context.save_for_backward(q, k, v, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    def attend(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        return _Attention.apply(q, k, v)

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def count(run: Callable[[], Any], not_saved: Iterable[Tensor] = ()) -> Cost:
    """The cost of `run`. `not_saved`: tensors (parameters) that are there anyway and do not count as saved."""
    known = {tensor.untyped_storage()._cdata for tensor in not_saved}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    counter = _OpCounter()
    flops = FlopCounterMode(display=False)
    with _fused_attention(), flops, counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return Cost(counter.ops, flops.get_total_flops(), sum(saved.values()))
