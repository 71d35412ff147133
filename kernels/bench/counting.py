"""Counting what a piece of code costs, without running it: operations, bytes, FLOPs, and what is kept for the backward pass.

On the meta device a model of full size takes no memory and no time, and the counts are the same everywhere; so tests can hold
them to a limit. What is counted:

* operations: ATen calls that compute or copy. Views and allocations do not count, fused attention is one.
* bytes: of every operation's inputs and outputs, each time anew; a view counts what it shows.
* FLOPs: of products, convolutions and attention.
* kept bytes: distinct storage that autograd holds on to, parameters left out.

Operators of `torch.library` are opened: what their Python body calls is counted, so that nothing hides in one. One that has no
such body is an error.
"""

from __future__ import annotations

from collections import Counter
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
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten
FREE = {
    "alias", "detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh",
    "set_", "resize_", "_reshape_alias",
}  # fmt: skip
"""Names of ATen calls that neither compute nor copy."""

OPEN_NAMESPACES = ("aten", "prims", "prim")
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@dataclass(frozen=True)
class Cost:
    """Of one call; see the module.

    Attributes:
        ops, bytes, flops, kept_bytes: the counts. by_name: how often each operation was called.
    """

    ops: int
    bytes: int
    flops: int
    kept_bytes: int
    by_name: Counter[str]


def count(run: Callable[[], Any], not_kept: Iterable[Tensor] = ()) -> Cost:
    """The cost of `run()`.

    Args:
        not_kept: tensors that are there anyway (parameters), which do not count as kept.
    """
    known = {tensor.untyped_storage()._cdata for tensor in not_kept}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    counter = _Counter()
    flops = FlopCounterMode(display=False)
    with _one_attention(counter), flops, counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    total = flops.get_total_flops() + counter.flops
    return Cost(sum(counter.names.values()), counter.bytes, total, sum(kept.values()), counter.names)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.bytes = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in OPEN_NAMESPACES:
            with self:
                return _body_of(func)(*args, **kwargs)
        if _is_composite(func):  # what autograd takes apart, it does not inside of an operator
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.add(name, [*tree_leaves(args), *tree_leaves(kwargs)], tree_leaves(result))
        return result

    def add(self, name: str, inputs: Iterable[Any], outputs: Iterable[Any], flops: int = 0) -> None:
        """One operation."""
        self.names[name] += 1
        self.bytes += sum(size_of(each) for each in (*inputs, *outputs) if isinstance(each, Tensor))
        self.flops += flops


def _is_composite(func: Any) -> bool:
    """Whether it runs as several calls: it has no kernel of its own, and a composition. Decompositions in Python do not count,
    which only compilers use, nor compositions for devices without a kernel: an upsampling would be eleven operations, and the
    backward pass of SiLU seven.
    """
    has_kernel_for = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel_for(func.name(), _COMPOSITE) and not has_kernel_for(func.name(), torch._C.DispatchKey.CPU)


def size_of(tensor: Tensor) -> int:
    """Bytes of what a tensor shows; a value repeated by `expand` counts once."""
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= 1 if stride == 0 and size > 1 else size
    return numel * tensor.element_size()


def _body_of(func: Any) -> Callable[..., Any]:
    """The Python function behind an operator of `torch.library`."""
    from torch._library.custom_ops import OPDEFS

    name = f"{func.namespace}::{func.overloadpacket.__name__}"
    if name not in OPDEFS:
        raise NotImplementedError(f"The operator {name} has no Python body, so that its cost cannot be counted.")
    body: Callable[..., Any] = OPDEFS[name]._init_fn
    return body


class _Attention(torch.autograd.Function):
    """Fused attention as one operation that knows its cost."""

    @staticmethod
    def forward(context: Any, counter: _Counter, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        shape = (*q.shape[:-1], v.shape[-1])
        output = torch.empty_like(q) if shape == q.shape else q.new_empty(shape)
        counter.add("attention", [q, k, v, mask], [output], _attention_flops(q, k, v))
        context.save_for_backward(q, k, v, output)
        context.counter = counter
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        q, k, v, output = context.saved_tensors
        found = tuple(torch.empty_like(tensor) for tensor in (q, k, v))
        # Five products instead of two: the scores are computed anew.
        context.counter.add("attention_backward", [*gradients, q, k, v, output], found, _attention_flops(q, k, v) * 5 // 2)
        return (None, *found, None)


def _attention_flops(q: Tensor, k: Tensor, v: Tensor) -> int:
    batch = q.shape[:-2].numel()
    return 2 * batch * q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1])


@contextmanager
def _one_attention(counter: _Counter) -> Iterator[None]:
    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *positional: Any, **settings: Any
    ) -> Tensor:
        result: Tensor = _Attention.apply(counter, query, key, value, attn_mask)
        return result

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def _in_place_product_flops(self_shape: Any, first: Any, second: Any, *rest: Any, **named: Any) -> int:
    return 2 * first[-2] * first[-1] * second[-1] * (first[0] if len(first) == 3 else 1)


for _packet in (aten.addmm_, aten.baddbmm_):
    if _packet not in flop_registry:
        torch.utils.flop_counter.register_flop_formula(_packet)(_in_place_product_flops)
