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

from studio.pipelines.adapters.layers import layer_spec
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
                isolated = _IsolatedConvolution(module, control)
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

    def __init__(self, module: nn.Conv2d, control: AttentionControl) -> None:
        self.module = module
        self.forward: Callable[[Tensor], Tensor] = module.forward
        self.control = control

    def __call__(self, x: Tensor) -> Tensor:
        before = self.control.cells((x.shape[-2], x.shape[-1]), x.device)
        after = self.control.cells(self._output_grid(x), x.device)
        output: Tensor | None = None
        for inputs, places in zip(before, after, strict=True):
            if places is None:
                continue
            # A region too small for the inputs' grid has nothing to see there.
            seen = torch.where(inputs[1], x, torch.zeros_like(x)) if inputs is not None else torch.zeros_like(x)
            part = self.forward(seen)
            output = part if output is None else torch.where(places[0], part, output)
        assert output is not None
        return output

    def _output_grid(self, x: Tensor) -> tuple[int, int]:
        spec = layer_spec(self.module)
        assert not isinstance(spec.padding, str)
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, padding, dilation, kernel, stride in zip(
                x.shape[-2:], spec.padding, spec.dilation, spec.kernel, spec.stride, strict=True
            )
        )
        return height, width


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
