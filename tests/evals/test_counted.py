"""Limits on what adapters cost at SDXL's full size, in operations, bytes and FLOPs, beside PEFT; and the counter itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from studio.evals.counted import counted_rows, counted_table, four_boxes, sparse_share
from studio.kernels.bench.counting import count


@pytest.mark.slow
def test_adapters_keep_to_their_limits():
    rows = {row.name: row for row in counted_rows(with_peers=False)}
    assert [miss for row in rows.values() for miss in row.misses()] == []
    base, one, step = rows["forward, base"].ours, rows["forward, 1 adapter"], rows["LoRA training step"]
    assert base.ops == 1_855
    assert base.bytes == pytest.approx(23.4e9, rel=0.005)
    assert base.flops == pytest.approx(6.76e12, rel=0.001)
    assert one.theirs is not None and step.theirs is not None
    assert (one.theirs.ops, step.theirs.ops) == (4_095, 11_541)
    assert one.ours.ops <= base.ops
    assert rows["forward, 8 active adapters"].ours.ops == one.ours.ops
    assert "no" not in {line[-1] for line in counted_table(list(rows.values())).rows}


def test_sparse_training_keeps_few_bytes():
    assert sparse_share() <= 0.2


def test_four_boxes_cover_the_canvas_and_overlap_by_a_fifth():
    masks = four_boxes()
    assert torch.allclose(masks.sum(dim=0), torch.ones(128, 128))
    assert (masks > 0).float().mean(dim=(1, 2)).sum() == pytest.approx(1.2, abs=0.02)


@torch.library.custom_op("studio_tests::hidden_loop", mutates_args=())
def hidden_loop(x: Tensor, downs: list[Tensor], ups: list[Tensor]) -> Tensor:
    total = x.new_zeros(len(x), len(ups[0]))
    for down, up in zip(downs, ups, strict=True):
        total = total + (x @ down.t()) @ up.t()
    return total


@hidden_loop.register_fake
def _(x: Tensor, downs: list[Tensor], ups: list[Tensor]) -> Tensor:
    return x.new_empty(len(x), len(ups[0]))


def test_a_loop_hidden_in_an_operator_is_charged_in_full():
    x = torch.empty(10, 6, device="meta")
    downs = [torch.empty(2, 6, device="meta") for _ in range(8)]
    ups = [torch.empty(5, 2, device="meta") for _ in range(8)]
    hidden = count(lambda: hidden_loop(x, downs, ups))

    def openly() -> None:
        total = x.new_zeros(10, 5)
        for down, up in zip(downs, ups, strict=True):
            total = total + (x @ down.t()) @ up.t()

    assert hidden == count(openly)
    assert hidden.ops == 1 + 8 * 3
    assert hidden.flops == 8 * (2 * 10 * 6 * 2 + 2 * 10 * 2 * 5)


def test_an_operator_that_cannot_be_opened_is_an_error():
    library = torch.library.Library("studio_tests_closed", "DEF")
    library.define("closed(Tensor x) -> Tensor")
    library.impl("closed", lambda x: x.clone(), "Meta")
    with pytest.raises(NotImplementedError, match="studio_tests_closed::closed has no Python body"):
        count(lambda: torch.ops.studio_tests_closed.closed(torch.empty(2, device="meta")))


def test_views_are_free_and_bytes_are_what_is_shown():
    x = torch.empty(4, 6, dtype=torch.bfloat16, device="meta")
    assert count(lambda: x.t()[1:].reshape(4, 5).new_empty(3)).ops == 1  # the reshape of a transpose copies
    cost = count(lambda: x[:, :3] + x[:1, 3:].expand(4, 3))
    assert (cost.ops, cost.bytes) == (1, 2 * (12 + 3 + 12))


def test_what_only_a_compiler_takes_apart_is_one_operation():
    x = torch.empty(1, 2, 4, 4, device="meta")
    cost = count(lambda: nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert (cost.ops, cost.bytes) == (1, 4 * 2 * (16 + 64))
    x.requires_grad_()
    both = count(lambda: nn.functional.silu(x).backward(torch.empty_like(x)))
    assert both.by_name == {"silu": 1, "silu_backward": 1}


def test_what_is_kept_counts_each_storage_once_and_no_parameters():
    layer = nn.Linear(6, 5, device="meta")
    x = torch.empty(7, 6, device="meta")

    def run() -> None:
        hidden = layer(x)
        (hidden.sigmoid() * hidden).sum().backward()

    # x for the weight's gradient, hidden for the product and once more for nothing, its sigmoid for both.
    assert count(run, layer.parameters()).kept_bytes == 4 * (7 * 6 + 7 * 5 + 7 * 5)


def test_attention_is_one_operation_forward_and_one_backward():
    q, k, v = (torch.empty(2, 3, n, 4, device="meta", requires_grad=True) for n in (5, 7, 7))
    forward = count(lambda: nn.functional.scaled_dot_product_attention(q, k, v))
    both = count(lambda: nn.functional.scaled_dot_product_attention(q, k, v).backward(torch.empty(2, 3, 5, 4, device="meta")))
    assert (forward.by_name["attention"], forward.ops, forward.flops) == (1, 1, 2 * 2 * 3 * 5 * 7 * 8)
    assert both.by_name["attention_backward"] == 1
    assert both.flops == 3.5 * forward.flops
