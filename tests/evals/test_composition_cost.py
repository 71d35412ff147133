"""Costs at full size: known figures of SD1.5's UNet come out, and whole pipelines cost what they must."""

from __future__ import annotations

import pytest
import torch

from studio.evals.composition_cost import Setting, compiled_for, cost_table, counted
from studio.evals.full_size_bases import FullSize, full_size
from studio.pipelines.families import SD15, SDXL

SETTING = Setting(num_adapters=2, rank=16, steps=3)


@pytest.fixture(scope="module")
def sd15() -> FullSize:
    return full_size(SD15)


def test_merge_costs_the_unets_own_operations_and_little_more(sd15: FullSize):
    compiled = compiled_for(sd15, SETTING, "merge")
    ours = counted(sd15, compiled, SETTING)
    assert ours.total.evaluations == 2 * 3
    # SD1.5's forward is 803 GFLOP at 64×64 latents, attention included; two LoRAs of rank 16 add about one in a hundred.
    assert 2 * 803e9 < ours.steps[-1].flops < 1.02 * 2 * 803e9
    whole = counted(sd15, compiled, SETTING, whole_pipelines=True)
    assert whole.total.evaluations == ours.total.evaluations
    assert whole.steps[-1].flops < ours.steps[-1].flops  # adapters merged in, the same attention
    assert whole.total.moved_bytes > 3 * ours.total.moved_bytes and whole.peak_bytes > ours.peak_bytes


def test_a_table_says_what_it_leaves_out(sd15: FullSize):
    with torch.no_grad():
        table = cost_table(sd15, Setting(num_adapters=1, steps=1), ["switch", "weighted-switch"])
    assert [row[0] for row in table.rows] + [note for note in table.notes if "left out" in note]
    assert table.columns[1] == "evaluations" and table.rows[0][1] == "2.0"


def test_narrow_and_full_have_the_same_layers():
    model = full_size(SDXL)
    narrow, full = (dict(base.unet.named_modules()) for base in (model.narrow, model.full))
    assert list(narrow) == list(full)
    assert sum(p.numel() for p in model.full.unet.parameters()) == 2_567_463_684
    assert sum(p.numel() for p in model.narrow.unet.parameters()) < 10**8
    assert [each.content_hash for each in (model.narrow, model.full)] == ["", ""]
