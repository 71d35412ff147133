"""The kernels of sparse training: positions and their gaps, the threshold of a share, one step on chosen weights only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.kernels.bench.sparse_update import TARGETS, arms
from studio.kernels.sparse_index import decode_gaps, encode_gaps, indices_below, pack_gaps, threshold_of_share, unpack_gaps
from studio.kernels.sparse_update import AdamW, adamw_, adamw_reference_, gather, scatter_, sparse_adamw_


@given(st.sets(st.integers(0, 2**31 - 2), min_size=1, max_size=40), st.sampled_from([255, 65535]))
def test_gaps_give_back_every_set_of_positions(positions: set[int], largest: int):
    indices = torch.tensor(sorted(positions), dtype=torch.int64)
    if largest == 255 and int(indices[-1]) > 10_000_000:
        indices = indices % 100_003  # a gap of 2³¹ is eight million bytes
        indices = indices.unique()
    assert torch.equal(decode_gaps(encode_gaps(indices, largest), largest), indices)


def test_any_digits_are_sorted_positions_without_repetitions_or_an_error():
    digits = torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    digits[-1] = 3
    positions = unpack_gaps(digits)
    assert bool((positions[1:] > positions[:-1]).all()) and int(positions[0]) >= 0
    digits[-1] = 255
    with pytest.raises(ValueError, match="in the middle"):
        unpack_gaps(digits)
    with pytest.raises(ValueError, match="not bytes"):
        unpack_gaps(torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize(("density", "largest_bytes"), [(0.2, 1.0), (0.05, 1.0), (0.01, 1.1), (0.001, 2.1)])
def test_a_position_takes_about_a_byte(density: float, largest_bytes: float):
    chosen = torch.rand(1_000_000, generator=torch.Generator().manual_seed(1)) < density
    indices = chosen.nonzero().flatten().to(torch.int32)
    digits = pack_gaps(indices)
    assert torch.equal(unpack_gaps(digits), indices.long())
    assert digits.numel() * digits.element_size() <= largest_bytes * len(indices) + 1


def test_counts_follow_the_law_of_the_weights():
    """Uniform in ±1: P(|w| < θ) = θ. Normal: P(|w| < θ) = erf(θ / √2)."""
    generator = torch.Generator().manual_seed(2)
    uniform = 2 * torch.rand(200, 5000, generator=generator) - 1
    normal = torch.randn(200, 5000, generator=generator)
    for theta in (0.002, 0.05, 0.3):
        for weight, share in ((uniform, theta), (normal, float(torch.erf(torch.tensor(theta / 2**0.5))))):
            deviation = 4 * (share * (1 - share) * weight.numel()) ** 0.5
            assert abs(len(indices_below(weight, theta)) - share * weight.numel()) < deviation


def test_a_share_is_met_to_the_entry_and_ties_are_left_out_together():
    weight = torch.randn(40, 25, generator=torch.Generator().manual_seed(3))
    for share in (0.001, 0.1, 0.5, 1.0):
        assert len(indices_below(weight, threshold_of_share(weight, share))) == round(share * 1000)
    assert len(indices_below(torch.ones(100), threshold_of_share(torch.ones(100), 0.1))) == 0
    small = indices_below(weight, threshold_of_share(weight, 0.2))
    others = torch.ones(1000, dtype=torch.bool).index_fill(0, small.long(), False)
    assert weight.flatten()[small.long()].abs().max() < weight.flatten()[others].abs().min()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gather_and_scatter_count_in_logical_order(layout: torch.memory_format):
    dense = torch.randn(4, 3, 5, 6).to(memory_format=layout)
    indices = torch.tensor([0, 7, 200, 359], dtype=torch.int32)
    expected = dense.contiguous().flatten()[indices.long()]
    assert torch.equal(gather(dense, indices), expected)
    values = torch.arange(4.0)
    scatter_(dense, indices, values)
    assert torch.equal(dense.contiguous().flatten()[indices.long()], values)


def test_adamw_is_torchs(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(4)
    options = AdamW(lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    parameter = torch.nn.Parameter(torch.randn(50))
    reference = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    fast, plain, forced = ([parameter.detach().clone(), torch.zeros(50), torch.zeros(50)] for _ in range(3))
    for step in range(1, 6):
        gradient = torch.randn(50)
        parameter.grad = gradient.clone()
        reference.step()
        adamw_(fast[0], gradient, fast[1], fast[2], step, options)
        adamw_reference_(plain[0], gradient, plain[1], plain[2], step, options)
        with monkeypatch.context() as patch:
            patch.setenv("STUDIO_PLAIN_KERNELS", "1")
            adamw_(forced[0], gradient, forced[1], forced[2], step, options)
    torch.testing.assert_close(fast[0], parameter.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(plain[0], parameter.detach(), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(plain, forced, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_step_moves_the_chosen_as_a_dense_one_and_the_others_not_at_all(dtype: torch.dtype):
    torch.manual_seed(5)
    weight = torch.randn(30, 20).to(dtype)
    before = weight.clone()
    indices = indices_below(weight, 0.3)
    master = weight.flatten()[indices.long()].float()
    mean, square = torch.zeros_like(master), torch.zeros_like(master)
    dense = torch.nn.Parameter(before.float().clone())
    optimizer = torch.optim.AdamW([dense], lr=1e-2, weight_decay=0.01)
    for step in (1, 2, 3):
        gradient = torch.randn(30, 20).to(dtype)
        dense.grad = gradient.float()
        optimizer.step()
        sparse_adamw_(weight, gradient, indices, master, mean, square, step, AdamW(lr=1e-2, weight_decay=0.01))
    expected = dense.detach().flatten()[indices.long()]
    torch.testing.assert_close(master, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(weight.flatten()[indices.long()], master.to(dtype))
    others = torch.ones(600, dtype=torch.bool).index_fill(0, indices.long(), False)
    assert torch.equal(weight.flatten()[others], before.flatten()[others])


@pytest.mark.parametrize("density", TARGETS)
def test_two_moments_and_a_position_are_few_bytes(density: float):
    _, sizes = arms(200_000, density)
    assert sizes["sparse"] <= TARGETS[density][1] * sizes["dense"]
