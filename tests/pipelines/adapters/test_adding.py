"""A patch that adds itself to a layer's output: the same numbers and gradients as making its effect first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.adapters.patches.base import Adding
from studio.pipelines.adapters.patches.dora import DoRAPatch
from studio.pipelines.adapters.patches.lora import BoundLoRA, LoRAPatch


def bound_lora() -> tuple[nn.Linear, BoundLoRA]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).requires_grad_(False)
    down, up = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(5, 3))
    return layer, LoRAPatch(down, up, alpha=2.0).bind(layer.weight, layer_spec(layer))


@pytest.mark.parametrize("shape", [(4, 6), (2, 7, 6), (2, 3, 7, 6)])
def test_it_is_the_output_and_the_effect(shape: tuple[int, ...]):
    layer, bound = bound_lora()
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    kept = output.detach().clone()

    def gradients(result: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result.square().sum(), [x, bound.ready_down, bound.ready_up], retain_graph=True)

    together, apart = bound.added_to(output, x, 0.7), output + 0.7 * bound.forward_delta(x, output)
    assert torch.equal(output, kept)  # what others may hold stays as it is
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(gradients(together), gradients(apart))


def test_only_patches_that_can_are_asked():
    layer, bound = bound_lora()
    assert isinstance(bound, Adding)
    down, up = torch.randn(3, 6), torch.randn(5, 3)
    dora = DoRAPatch(LoRAPatch(down, up, alpha=2.0), torch.ones(5))
    assert not isinstance(dora.bind(layer.weight, layer_spec(layer)), Adding)
