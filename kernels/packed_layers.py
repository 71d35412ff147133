"""Linear layers and convolutions on a CPU with their weights laid out once, by oneDNN.

torch's own linear layers go through MKL, which on AMD's processors reaches half of what oneDNN does with the same product as a
1×1 convolution; and its convolutions lay out the weights anew at every call. Where many forwards run with the same weights,
both can be had: `Packed` lays a weight out at its first call with inputs of a size, and computes with that from then on.

The operators are those that torch's own compiler emits for frozen CPU models. Where they are missing, and where
`STUDIO_KERNELS=plain` asks for it, nothing is packed. No gradients.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.paths import pinned_path

Pair = tuple[int, int]


@cache
def has_packed_layers() -> bool:
    """Whether this build of torch has the operators, and they compute what they should."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight, x = torch.ones(8, 8), torch.ones(16, 8)
        return bool(torch.equal(Packed(weight, None)(x), F.linear(x, weight)))
    except (AttributeError, RuntimeError, TypeError):
        return False


def packs_layers() -> bool:
    """Whether anything is packed here: there are the operators, and it is not switched off."""
    return pinned_path() != "plain" and has_packed_layers()


def can_pack(weight: Tensor) -> bool:
    """Whether a layer with this weight can be packed: float32 on a CPU, where anything is."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and packs_layers()


class Packed:
    """A layer's product with a weight that is laid out once for each size of inputs.

    Args:
        weight: `[out, in]` of a linear layer, or `[out, in/groups, kh, kw]`, float32 on the CPU. It must not change afterwards.
        bias: `[out]` or None. stride, padding, dilation, groups: of a convolution.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> None:
        self.is_linear = weight.ndim == 2
        self.weight = weight.detach()[:, :, None, None] if self.is_linear else weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.stride, self.padding, self.dilation, self.groups = list(stride), list(padding), list(dilation), groups
        self._laid_out: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output: `[…, out]` of `[…, in]`, or `[B, out, h, w]` of `[B, in, H, W]`."""
        if not self.is_linear:
            return self._product(x.contiguous())
        rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # [1, in, rows, 1], channels last: no copy
        return self._product(rows).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        size = tuple(x.shape)
        if size not in self._laid_out:
            # torch's own types know nothing of the last argument, the inputs' size.
            self._laid_out[size] = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                self.weight.contiguous().to_mkldnn(), self.padding, self.stride, self.dilation, self.groups, list(size)
            )
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._laid_out[size], self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )
        return output
