"""Kronecker layers against the dense product: values, gradients, and the work they do."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from studio.kernels import kronecker
from studio.kernels.kronecker import (
    cheaper_order,
    kronecker_conv2d,
    kronecker_linear,
    reference_kronecker_conv2d,
    reference_kronecker_linear,
)

# (a_out, a_in), (b_out, b_in): square, tall, wide, tiny, odd, and with a factor of one number.
FACTORS = [
    ((4, 4), (5, 3)),
    ((16, 2), (3, 8)),
    ((2, 16), (8, 3)),
    ((16, 16), (1, 2)),
    ((3, 5), (7, 11)),
    ((1, 1), (6, 5)),
    ((6, 5), (1, 1)),
    ((40, 1), (1, 9)),
]
KERNELS = {
    "3×3": ((3, 3), {"padding": (1, 1)}),
    "1×1": ((1, 1), {}),
    "strided": ((3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "oblong, dilated": ((3, 1), {"stride": (2, 1), "padding": (2, 0), "dilation": (2, 1)}),
    "same": ((3, 3), {"padding": "same"}),
}


def factors(first, second, kernel=(), dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(first, dtype=dtype), torch.randn(*second, *kernel, dtype=dtype)


@pytest.mark.parametrize(("first", "second"), FACTORS)
@pytest.mark.parametrize("leading", [(7,), (), (2, 3, 5)])
def test_a_linear_layer_with_the_kronecker_product_as_its_weight(first, second, leading):
    a, b = factors(first, second)
    weight, x = torch.randn(first[0] * second[0], first[1] * second[1]), torch.randn(*leading, first[1] * second[1])
    expected = F.linear(x, weight + torch.kron(a, b))
    torch.testing.assert_close(F.linear(x, weight) + kronecker_linear(x, a, b), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(F.linear(x, weight) + reference_kronecker_linear(x, a, b), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("first", "second"), FACTORS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_convolution_with_the_kronecker_product_as_its_weight(first, second, kernel):
    size, settings = KERNELS[kernel]
    a, b = factors(first, second, size)
    x = torch.randn(2, first[1] * second[1], 7, 6)
    expected = F.conv2d(x, torch.kron(a[..., None, None], b), **settings)
    torch.testing.assert_close(kronecker_conv2d(x, a, b, **settings), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reference_kronecker_conv2d(x, a, b, **settings), expected, atol=1e-4, rtol=1e-4)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(kronecker_conv2d(channels_last, a, b, **settings), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("first", "second"), [((3, 2), (2, 4)), ((2, 3), (4, 2)), ((8, 8), (1, 2)), ((8, 8), (2, 1))])
def test_gradients(first, second):
    a, b = factors(first, second, dtype=torch.float64)
    x = torch.randn(3, first[1] * second[1], dtype=torch.float64)
    assert torch.autograd.gradcheck(kronecker_linear, [tensor.requires_grad_() for tensor in (x, a, b)])
    _, kernel = factors(first, second, (2, 2), torch.float64)
    picture = torch.randn(2, first[1] * second[1], 3, 3, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (picture, a, kernel)]
    assert torch.autograd.gradcheck(lambda *tensors: kronecker_conv2d(*tensors, padding=(1, 1)), inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_has_the_error_of_its_rounding_only(dtype, tolerance):
    a, b = factors((16, 16), (8, 8), dtype=dtype)
    x = torch.randn(32, 128, dtype=dtype)
    ours, exact = kronecker_linear(x, a, b), reference_kronecker_linear(x.float(), a.float(), b.float())
    assert ours.dtype == dtype
    assert (ours.float() - exact).norm() / exact.norm() < tolerance


def flops(function, *inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops())


# The rule by hand, for one position: B first costs 2·a_in·b_out·(b_in + a_out), A first 2·a_out·b_in·(a_in + b_out).
@pytest.mark.parametrize(
    ("first", "second", "order", "per_position"),
    [
        ((16, 16), (80, 80), "second-first", 2 * 16 * 80 * (80 + 16)),
        ((64, 4), (20, 320), "second-first", 2 * 4 * 20 * (320 + 64)),
        ((4, 64), (320, 20), "first-first", 2 * 4 * 20 * (64 + 320)),
        ((32, 32), (40, 40), "second-first", 2 * 32 * 40 * (40 + 32)),
    ],
)
def test_the_cheaper_order_is_taken_and_nothing_else_is_computed(first, second, order, per_position):
    assert cheaper_order(first, second) == order
    a, b = (torch.empty(shape, device="meta") for shape in (first, second))
    x = torch.empty(5, 1280, device="meta")
    assert flops(kronecker_linear, x, a, b) == 5 * per_position
    dense = flops(F.linear, x, torch.empty(1280, 1280, device="meta"))
    assert 5 * per_position < 0.08 * dense


def test_backward_makes_no_dense_product_either():
    a, b = (torch.empty(shape, device="meta", requires_grad=True) for shape in ((16, 16), (80, 80)))
    x = torch.empty(64, 1280, device="meta", requires_grad=True)
    forward = flops(kronecker_linear, x, a, b)
    assert flops(lambda *inputs: kronecker_linear(*inputs).sum().backward(), x, a, b) == 3 * forward
    assert 3 * forward < 0.08 * flops(
        lambda x, w: F.linear(x, w).sum().backward(), x, torch.empty(1280, 1280, device="meta", requires_grad=True)
    )


def test_what_is_kept_for_backward_grows_with_the_positions_and_not_with_the_weight():
    a, b = torch.randn(16, 16, requires_grad=True), torch.randn(80, 80, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        kronecker_linear(torch.randn(2, 1280, requires_grad=True), a, b)
    assert max(kept) < 1280 * 10


def test_a_convolutions_work_is_a_share_of_the_dense_one():
    x = torch.empty(1, 128, 12, 12, device="meta")
    a, b = torch.empty(16, 16, device="meta"), torch.empty(8, 8, 3, 3, device="meta")
    ours = flops(lambda *inputs: kronecker_conv2d(*inputs, padding=(1, 1)), x, a, b)
    dense = flops(lambda x, w: F.conv2d(x, w, padding=1), x, torch.empty(128, 128, 3, 3, device="meta"))
    assert ours == 2 * 144 * 16 * 8 * (8 * 9 + 16)
    assert ours < 0.08 * dense


def test_the_switch_takes_the_plain_path(monkeypatch):
    a, b = factors((4, 4), (3, 3))
    x = torch.randn(2, 12)
    work = flops(kronecker_linear, x, a, b)
    monkeypatch.setattr(kronecker, "PLAIN", True)
    assert flops(kronecker_linear, x, a, b) == 2 * 2 * 12 * 12 > work
    torch.testing.assert_close(kronecker_linear(x, a, b), reference_kronecker_linear(x, a, b))
    kernel = torch.randn(3, 3, 3, 3)
    picture = torch.randn(1, 12, 4, 4)
    assert torch.equal(kronecker_conv2d(picture, a, kernel), reference_kronecker_conv2d(picture, a, kernel))
