"""LoRA inside the layer's own product: the same numbers and gradients as the plain formula, on odd shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.joint_layout import JointLayout, padded_rank
from studio.kernels.joint_lora import (
    joint_lora_conv2d,
    joint_lora_linear,
    reference_lora_linear,
    row_lora_conv2d,
    row_lora_linear,
)
from studio.kernels.joint_training import Part, joint_lora_training

ACTIVE = [(0, 1, 2), (1, 2), (0, 2), (1,)]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def joined(weight: Tensor, layout: JointLayout, downs: list[Tensor], ups: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    rows = torch.cat([weight, weight.new_zeros(layout.block, *weight.shape[1:])])
    second = weight.new_zeros(len(layout.active), layout.width, layout.rank)
    for position, (down, up) in enumerate(zip(downs, ups, strict=True)):
        rows[layout.inner(position)][: len(down)] = down.detach()
        second[position][:, : up.shape[1]] = scale * up.detach()
    return rows, second


@pytest.mark.parametrize("active", ACTIVE)
@pytest.mark.parametrize("shape", [(7,), (2, 5, 7), (3, 1, 2, 7)])
def test_forward_and_gradients_are_the_plain_formulas(active: tuple[int, ...], shape: tuple[int, ...]):
    torch.manual_seed(0)
    layout = JointLayout(5, 3, active, 8)
    weight, bias, x = random(15, 7), random(15), random(*shape).requires_grad_()
    downs = [random(3, 7).requires_grad_() for _ in active]
    ups = [random(5, 3).requires_grad_() for _ in active]
    factors = [tensor for pair in zip(downs, ups, strict=True) for tensor in pair]
    rows, second = joined(weight, layout, downs, ups, 0.7)
    bias_of_all = torch.cat([bias, bias.new_zeros(layout.block)])

    def plain(layer: int) -> Tensor:
        own = [(downs[active.index(layer)], ups[active.index(layer)], 0.7)] if layer in active else []
        return reference_lora_linear(x, weight[layout.columns(layer)], bias[layout.columns(layer)], own)

    expected = [plain(layer) for layer in range(3)]
    parts = tuple((Part(0, 3, 0.7),) for _ in active)
    for keeps_output in (True, False):
        trained = joint_lora_training(x, rows, second, layout, bias_of_all, parts, tuple(factors), keeps_output)
        torch.testing.assert_close(trained, tuple(expected))
        targets = [random(*output.shape) for output in expected]
        ours, plainly = (
            torch.autograd.grad(sum((a * b).sum() for a, b in zip(each, targets, strict=True)), [x, *factors], retain_graph=True)
            for each in (trained, expected)
        )
        torch.testing.assert_close(ours, plainly)
    with torch.no_grad():
        torch.testing.assert_close(joint_lora_linear(x, rows, second, layout, bias_of_all), tuple(expected))


def test_gradients_of_outputs_that_nobody_reads():
    torch.manual_seed(0)
    layout = JointLayout(4, 2, (0, 1), 8)
    weight, x = random(8, 6), random(5, 6).requires_grad_()
    downs, ups = [random(2, 6).requires_grad_() for _ in range(2)], [random(4, 2).requires_grad_() for _ in range(2)]
    rows, second = joined(weight, layout, downs, ups, 1.0)
    factors = (downs[0], ups[0], downs[1], ups[1])
    _, value = joint_lora_training(x, rows, second, layout, None, ((Part(0, 2, 1.0),),) * 2, factors, True)
    found = torch.autograd.grad(value.sum(), [x, *factors])
    expected = torch.autograd.grad(reference_lora_linear(x, weight[4:], None, [(downs[1], ups[1], 1.0)]).sum(), [x, *factors[2:]])
    torch.testing.assert_close((found[0], *found[3:]), expected)
    assert not found[1].any() and not found[2].any()


def test_the_way_back_of_one_layer():
    torch.manual_seed(0)
    layout = JointLayout(3, 1, (0,), 8)
    weight = random(3, 4)

    def run(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        rows, second = joined(weight, layout, [down], [up], -1.3)
        return joint_lora_training(x, rows, second, layout, None, ((Part(0, 2, -1.3),),), (down, up), False)[0]

    inputs = (random(5, 4).requires_grad_(), random(2, 4).requires_grad_(), random(3, 2).requires_grad_())
    # The factors' values reach the output through the memory, which is no part of the graph: only the way back is checked.
    expected = [reference_lora_linear(inputs[0], weight, None, [(inputs[1], inputs[2], -1.3)])]
    target = random(5, 3)
    torch.testing.assert_close(
        torch.autograd.grad((run(*inputs) * target).sum(), inputs), torch.autograd.grad((expected[0] * target).sum(), inputs)
    )


@pytest.mark.parametrize("active", [(0, 1, 2), (1, 2), (1,)])
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 7)])
def test_every_row_of_the_batch_has_its_own_adapter(active: tuple[int, ...], shape: tuple[int, ...]):
    torch.manual_seed(0)
    layout = JointLayout(5, 3, active, 8, copies=3)
    weight, bias, x = random(15, 7), random(15), random(*shape)
    downs, ups = random(3, len(active), 8, 7), random(3, len(active), 5, 8)
    expected = []
    for layer in range(3):
        columns = layout.columns(layer)
        rows = []
        for row in range(3):
            at = active.index(layer) if layer in active else None
            own = [] if at is None else [(downs[row, at], ups[row, at], 1.0)]
            rows.append(reference_lora_linear(x[row], weight[columns], bias[columns], own))
        expected.append(torch.stack(rows))
    block = torch.stack([torch.block_diag(*ups[row]) for row in range(3)])
    joint = torch.cat([weight, downs.reshape(-1, 7)])
    bias_of_all = torch.cat([bias, bias.new_zeros(layout.block * 3)])
    torch.testing.assert_close(joint_lora_linear(x, joint, block, layout, bias_of_all), tuple(expected))
    apart = downs.reshape(3, -1, 7)
    torch.testing.assert_close(row_lora_linear(x, weight, apart, block, layout, bias), tuple(expected))


def test_an_inner_factor_weighs_rows_and_places():
    torch.manual_seed(0)
    layout = JointLayout(5, 1, (0,), 8)
    weight, x, factor = random(5, 7), random(2, 6, 7), torch.rand(2, 6, 1, dtype=torch.float64)
    down, up = random(4, 7), random(5, 4)
    rows, second = joined(weight, layout, [down], [up], 1.0)
    (ours,) = joint_lora_linear(x, rows, second, layout, None, factor.expand(2, 6, 8))
    torch.testing.assert_close(ours, reference_lora_linear(x, weight, None, [(down, up, factor)]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1)])
def test_convolutions(memory_format: torch.memory_format, kernel: int, stride: int, padding: int):
    torch.manual_seed(0)
    settings = ((stride, stride), (padding, padding), (1, 1))
    x = random(2, 6, 9, 7).to(memory_format=memory_format)
    weight, bias = random(5, 6, kernel, kernel), random(5)
    downs, ups = random(2, 8, 6, kernel, kernel), random(2, 5, 8)

    def plain(row: int, index: int) -> Tensor:
        own = F.conv2d(F.conv2d(x[row : row + 1], downs[index], None, *settings), ups[index][:, :, None, None])
        return F.conv2d(x[row : row + 1], weight, bias, *settings) + own

    same = torch.cat([plain(0, 0), plain(1, 0)])
    padded = torch.cat([bias, bias.new_zeros(8)])
    rows = torch.cat([weight, downs[0]]).to(memory_format=memory_format)
    torch.testing.assert_close(joint_lora_conv2d(x, rows, ups[:1], JointLayout(5, 1, (0,), 8), padded, *settings), same)
    different = torch.cat([plain(0, 0), plain(1, 1)])
    rows = torch.cat([weight, downs.flatten(0, 1)]).to(memory_format=memory_format)
    padded = torch.cat([bias, bias.new_zeros(16)])
    joint = joint_lora_conv2d(x, rows, ups, JointLayout(5, 1, (0,), 8, copies=2), padded, *settings)
    torch.testing.assert_close(joint, different)
    torch.testing.assert_close(row_lora_conv2d(x, weight, downs, ups, bias, *settings), different)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_twice_as_much_as_the_plain_path(dtype: torch.dtype):
    torch.manual_seed(0)
    layout = JointLayout(48, 3, (0, 1, 2), 16)
    weight, x = random(144, 64), random(130, 64)
    downs, ups = [0.1 * random(16, 64) for _ in range(3)], [0.1 * random(48, 16) for _ in range(3)]
    exact = [reference_lora_linear(x, weight[layout.columns(i)], None, [(downs[i], ups[i], 0.8)]) for i in range(3)]
    weight, x = weight.to(dtype), x.to(dtype)
    rows, second = joined(weight, layout, [down.to(dtype) for down in downs], ups, 0.8)
    ours = joint_lora_linear(x, rows, second.to(dtype), layout)
    plain = [
        reference_lora_linear(x, weight[layout.columns(i)], None, [(downs[i].to(dtype), ups[i].to(dtype), 0.8)]) for i in range(3)
    ]
    for own, other, right in zip(ours, plain, exact, strict=True):
        assert (own.double() - right).norm() <= 2.0 * (other.double() - right).norm()


def test_ranks_are_padded_to_few_sizes():
    assert [padded_rank(rank) for rank in (1, 8, 9, 16, 17, 33, 64, 65, 128, 129)] == [8, 8, 16, 16, 32, 64, 64, 128, 128, 192]
