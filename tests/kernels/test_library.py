"""The ops as operators of torch: schema, shapes and gradients as torch checks them, and one compiled block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from studio.kernels import library
from studio.kernels.joint_layout import JointLayout
from studio.kernels.joint_lora import joint_lora_linear


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def arguments(name: str) -> tuple[Any, ...]:
    torch.manual_seed(0)
    return {
        "joint_lora": lambda: (leaf(2, 3, 4), leaf(3 * 5 + 2 * 2, 4), leaf(2, 5, 2), leaf(3 * 5 + 2 * 2), 5, 3, [0, 2]),
        "gated_gelu": lambda: (leaf(3, 6),),
        "kronecker_linear": lambda: (leaf(2, 3, 6), leaf(4, 2), leaf(5, 3)),
        "attention_with_map": lambda: (leaf(1, 2, 4, 3), leaf(1, 2, 5, 3), leaf(1, 2, 5, 3), torch.rand(5, 2), 0.5),
    }[name]()


OPS: dict[str, Callable[..., Any]] = {
    name: getattr(library, name) for name in ("joint_lora", "gated_gelu", "kronecker_linear", "attention_with_map")
}


@pytest.mark.parametrize("name", OPS)
def test_torch_finds_no_fault(name: str):
    torch.library.opcheck(OPS[name], arguments(name))


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name: str):
    given = arguments(name)
    inputs = tuple(each for each in given if isinstance(each, Tensor) and each.requires_grad)

    def run(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        return OPS[name](*(next(rest) if isinstance(each, Tensor) and each.requires_grad else each for each in given))

    assert torch.autograd.gradcheck(run, inputs)


def test_the_operator_is_the_function():
    x, rows, ups, bias, width, num_layers, active = arguments("joint_lora")
    for own in (bias, None):
        with torch.no_grad():
            expected = joint_lora_linear(x, rows, ups, JointLayout(width, num_layers, tuple(active), 2), own)
            found = library.joint_lora(x, rows, ups, own, width, num_layers, active)[..., : width * num_layers]
        torch.testing.assert_close(found, torch.cat(expected, dim=-1))


class Block(nn.Module):
    """A tiny attention block of the operators."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(3 * 8 + 3 * 8, 8))
        self.ups = nn.Parameter(torch.randn(3, 8, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        joint = library.joint_lora(self.norm(x), self.rows, self.ups, None, 8, 3, [0, 1, 2])
        query, key, value = joint[..., :24].chunk(3, dim=-1)
        output, maps = library.attention_with_map(query[:, None], key[:, None], value[:, None], torch.eye(x.shape[1]), 0.5)
        return library.gated_gelu(output[:, 0]) + maps[..., :4]


@pytest.mark.slow
def test_a_block_compiles_whole():
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 5, 8, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    expected = block(x)
    torch.testing.assert_close(compiled(x), expected)
    wanted = torch.autograd.grad(expected.sum(), [x, *block.parameters()])
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), [x, *block.parameters()]), wanted)
