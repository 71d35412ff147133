"""The sparse AdamW step in one pass over the list of positions, see `studio.kernels.sparse_update`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from studio.kernels.sparse_update import AdamW

BLOCK = 1024


@triton.jit
def _step(  # type: ignore[no-untyped-def]  # noqa: ANN202
    weight, gradient, indices, master, mean, square, count,  # noqa: ANN001
    rate, beta1, beta2, eps, decay, correction1, correction2,  # noqa: ANN001
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    position = tl.load(indices + at, mask=inside, other=0)
    slope = tl.load(gradient + position, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(mean + at, mask=inside, other=0.0)
    second = tl.load(square + at, mask=inside, other=0.0)
    value = tl.load(master + at, mask=inside, other=0.0)
    first = beta1 * first + (1.0 - beta1) * slope
    second = beta2 * second + (1.0 - beta2) * slope * slope
    step = (first / correction1) / (tl.sqrt(second / correction2) + eps)
    value = value * (1.0 - rate * decay) - rate * step
    tl.store(mean + at, first, mask=inside)
    tl.store(square + at, second, mask=inside)
    tl.store(master + at, value, mask=inside)
    tl.store(weight + position, value.to(weight.dtype.element_ty), mask=inside)


def sparse_adamw_(
    weight: Tensor,
    gradient: Tensor,
    indices: Tensor,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    options: AdamW,
) -> None:
    """Gather, AdamW and scatter for one contiguous weight; see the function of this name in `studio.kernels.sparse_update`."""
    beta1, beta2 = options.betas
    count = len(indices)
    if not count:
        return
    _step[(triton.cdiv(count, BLOCK),)](
        weight, gradient, indices, master, mean, square, count,
        options.lr, beta1, beta2, options.eps, options.weight_decay, 1.0 - beta1**step, 1.0 - beta2**step,
        BLOCK=BLOCK,
    )  # fmt: skip
