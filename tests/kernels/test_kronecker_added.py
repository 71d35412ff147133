"""Adding a Kronecker product's effect to an output in one go: the numbers and gradients of doing it in two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studio.kernels.kronecker import kronecker_linear_added, reference_kronecker_linear

SHAPES = [((16, 16), (4, 4)), ((2, 3), (5, 4)), ((1, 8), (6, 2)), ((8, 2), (3, 5)), ((64, 4), (2, 3))]


@pytest.mark.parametrize(("first", "second"), SHAPES)
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_it_is_the_output_and_the_effect(first: tuple[int, int], second: tuple[int, int], factor: float):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, a, b = random(2, 3, first[1] * second[1]), random(*first), random(*second)
    output = random(2, 3, first[0] * second[0])
    kept = output.detach().clone()
    together = kronecker_linear_added(output, x, a, b, factor)
    apart = output + factor * reference_kronecker_linear(x, a, b)
    torch.testing.assert_close(together, apart)
    assert torch.equal(output, kept)
    everything = (output, x, a, b)
    gradients = [torch.autograd.grad(result.square().sum(), everything) for result in (together, apart)]
    torch.testing.assert_close(*gradients)
