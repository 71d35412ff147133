"""Isolation beyond attention: convolutions and group norms that compute from visible places alone.

Self-attention is not all that carries one region's features to another: a 3×3 convolution reads across the edge, a strided
one too, and a group norm divides every place by statistics of the whole picture. Here each region has these layers computed
for itself, with what it may not see set to zero (as beyond the canvas's edge), or left out of the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.pipelines.denoising.attention.control import AttentionControl

_ABSENT = object()


@contextmanager
def isolated_layers(unet: nn.Module, control: AttentionControl) -> Iterator[None]:
    """Inside the block the UNet's convolutions and group norms are isolated too, if the isolation's reach is "everything".

    Open it inside of `patched`: a layer's adapters then see what the layer sees.
    """
    if control.isolation is None or control.isolation.reach != "everything" or not control.isolation_masks:
        yield
        return
    with ExitStack() as restore:
        for module in unet.modules():
            isolated: _IsolatedNorm | _IsolatedConvolution
            if isinstance(module, nn.GroupNorm):
                isolated = _IsolatedNorm(module, control)
            elif isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                isolated = _IsolatedConvolution(module.forward, control)
            else:
                continue
            restore.callback(_restore, module, module.__dict__.get("forward", _ABSENT))
            module.__dict__["forward"] = isolated
        yield


def _restore(module: nn.Module, present: Any) -> None:
    if present is _ABSENT:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = present


class _IsolatedConvolution:
    """For each region the convolution of what it sees, at its own places."""

    def __init__(self, forward: Callable[[Tensor], Tensor], control: AttentionControl) -> None:
        self.forward = forward
        self.control = control

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        output: Tensor | None = None
        for index, visible in self.control.visible((height, width), x.device):
            part = self.forward(torch.where(visible, x, torch.zeros_like(x)))
            if output is None:
                output = part
                continue
            own = self.control.owner((part.shape[-2], part.shape[-1]), x.device) == index
            output = torch.where(own, part, output)
        assert output is not None
        return output


class _IsolatedNorm:
    """For each region the group norm of what it sees, at its own places."""

    def __init__(self, norm: nn.GroupNorm, control: AttentionControl) -> None:
        self.norm = norm
        self.control = control

    def __call__(self, x: Tensor) -> Tensor:
        grid = (x.shape[-2], x.shape[-1])
        flat = x.flatten(2)
        output = torch.empty_like(flat)
        for places, seen in self.control.views(grid, x.device):
            norm = self.norm
            part = F.group_norm(flat.index_select(2, seen), norm.num_groups, norm.weight, norm.bias, norm.eps)
            own = torch.isin(seen, places)
            output = output.index_copy(2, places, part[:, :, own])
        return output.view(x.shape)
