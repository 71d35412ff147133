"""Attention with its map, region attention, routed LoRA, GEGLU and DoRA's lengths: the plain paths' numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studio.kernels.attention_with_map import attention_with_map, reference_attention_with_map
from studio.kernels.bench.counting import count
from studio.kernels.dora import lengths, lengths_with_lora, reference_lengths_with_lora
from studio.kernels.gated import gated_gelu, reference_gated_gelu
from studio.kernels.region_attention import RegionPlan, reference_region_attention, region_attention
from studio.kernels.routed_lora import TokenRoutes, masked_lora_, reference_routed_lora, routed_lora_


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("length", [3, 257, 300])
@pytest.mark.parametrize("columns", [None, "shared", "by picture"])
def test_attention_with_map(length: int, columns: str | None):
    torch.manual_seed(0)
    query, key, value = (random(2, 3, n, 5).requires_grad_() for n in (length, 7, 7))
    picked = {None: None, "shared": torch.rand(7, 2), "by picture": torch.rand(2, 7, 2)}[columns]
    ours = attention_with_map(query, key, value, picked)
    plain = reference_attention_with_map(query, key, value, picked)
    torch.testing.assert_close(ours, plain)
    targets = [random(*tensor.shape) for tensor in plain]

    def gradients(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((a * b).sum() for a, b in zip(outputs, targets, strict=True)), (query, key, value))

    torch.testing.assert_close(gradients(ours), gradients(plain))


def test_attention_with_map_gradcheck():
    torch.manual_seed(0)
    inputs = tuple(random(1, 2, n, 3).requires_grad_() for n in (4, 5, 5))
    columns = torch.rand(5, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: attention_with_map(q, k, v, columns), inputs)


def test_the_map_keeps_no_scores():
    query, key, value = (torch.randn(1, 4, n, 8, requires_grad=True) for n in (600, 70, 70))
    kept = {
        name: count(lambda run=run: run(query, key, value)).kept_bytes  # type: ignore[misc]
        for name, run in {"ours": attention_with_map, "plain": reference_attention_with_map}.items()
    }
    assert kept["ours"] == 4 * (600 + 70 + 70) * 4 * 8
    assert kept["plain"] >= kept["ours"] + 4 * 4 * 600 * 70


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_with_map_in_half_precision(dtype: torch.dtype):
    torch.manual_seed(0)
    exact_inputs = [random(1, 4, n, 16) for n in (130, 77, 77)]
    exact = reference_attention_with_map(*exact_inputs)
    rough = [tensor.to(dtype) for tensor in exact_inputs]
    for ours, plain, right in zip(attention_with_map(*rough), reference_attention_with_map(*rough), exact, strict=True):
        assert (ours.double() - right).norm() <= 2.0 * (plain.double() - right).norm()


SEES = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("owner", [[0, 1, 0, 2, 2, 1, 0], [1, 1, 1, 2, 1], [2, 2]])
def test_region_attention(owner: list[int]):
    torch.manual_seed(0)
    plan = RegionPlan.make(torch.tensor(owner), SEES)
    query, key, value = (random(2, 3, len(owner), 4).requires_grad_() for _ in range(3))
    ours, plain = region_attention(query, key, value, plan), reference_region_attention(query, key, value, plan)
    torch.testing.assert_close(ours, plain)
    target = random(*plain.shape)
    torch.testing.assert_close(*(torch.autograd.grad((output * target).sum(), (query, key, value)) for output in (ours, plain)))
    assert plan.pairs() == int(plan.allowed().sum())


def test_what_is_not_seen_reaches_no_bit():
    torch.manual_seed(0)
    plan = RegionPlan.make(torch.tensor([0, 2, 0, 2, 1]), SEES)
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))
    before = region_attention(query, key, value, plan)
    for tensor in (query, key, value):
        tensor[:, :, [1, 3]] = 1e30
    after = region_attention(query, key, value, plan)
    assert torch.equal(before[:, :, [0, 2, 4]], after[:, :, [0, 2, 4]])


@pytest.mark.parametrize("num_tokens", [1, 7, 33])
def test_routed_lora_with_overlaps_and_tokens_that_nobody_has(num_tokens: int):
    torch.manual_seed(0)
    masks = torch.rand(3, num_tokens) * (torch.rand(3, num_tokens) > 0.5)
    routes = TokenRoutes.make(masks)
    x, out = random(num_tokens, 6), random(num_tokens, 5)
    downs, ups = [random(r, 6) for r in (1, 4, 2)], [random(5, r) for r in (1, 4, 2)]
    expected = reference_routed_lora(out, x, downs, ups, routes)
    factor = torch.cat([routes.masks[:, i : i + 1].expand(-1, len(down)) for i, down in enumerate(downs)], dim=1).double()
    torch.testing.assert_close(masked_lora_(out.clone(), x, torch.cat(downs), torch.cat(ups, 1), factor), expected)
    changed = out.clone()
    assert routed_lora_(changed, x, downs, ups, routes) is changed
    torch.testing.assert_close(changed, expected)
    assert routes.offsets[-1] == int((masks > 0).sum()) == len(routes.tokens)


@pytest.mark.parametrize("shape", [(6,), (3, 10), (2, 1, 4)])
def test_gated_gelu(shape: tuple[int, ...]):
    torch.manual_seed(0)
    projection = random(*shape).requires_grad_()
    torch.testing.assert_close(gated_gelu(projection), reference_gated_gelu(projection))
    assert torch.autograd.gradcheck(gated_gelu, projection)
    kept = {run: count(lambda run=run: run(projection)).kept_bytes for run in (gated_gelu, reference_gated_gelu)}  # type: ignore[misc]
    assert kept[gated_gelu] == 8 * projection.numel() < kept[reference_gated_gelu]


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_lengths_of_a_dora(kernel: tuple[int, ...]):
    torch.manual_seed(0)
    weight = random(5, 6, *kernel)
    weight[2] = 0.0
    down, up = random(2, 6, *kernel).requires_grad_(), random(5, 2, *([1] * len(kernel))).requires_grad_()
    own = lengths(weight)
    ours, plain = lengths_with_lora(weight, own, down, up, 0.7), reference_lengths_with_lora(weight, down, up, 0.7)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(each.sin().sum(), (down, up)) for each in (ours, plain)))
    still = lengths_with_lora(weight.float(), lengths(weight.float()), down.float(), torch.zeros(5, 2), 0.7)
    assert torch.equal(still[[0, 1, 3, 4]], weight.float().flatten(1).norm(dim=1)[[0, 1, 3, 4]])
