"""Counting a generation beforehand: what the dry run says is what a real run of the same strategy takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.composition.drawing import Compiled, batch_request
from studio.composition.thrift import Thrift, checkpointed
from studio.pipelines.base_model import BaseModel
from studio.pipelines.counting import counting
from studio.pipelines.denoising import denoise
from studio.pipelines.denoising.attention.text_cache import cache_of
from studio.pipelines.denoising.dry_run import DryModel, dry_run, on_meta
from tests.support.scenes import compiled_for, kronecker, lora
from tests.support.tiny_bases import tiny_base

HALVES = [{"region": {"box": [0, 0, 0.5, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}}]
WORDS = [{"words": "cat"}, {"words": "dog"}]
PLANS: dict[str, Any] = {"merge": None, "composite": None, "regional": HALVES, "clora": WORDS}


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    """Fresh each time: weights that move once to have room for adapters are no activations."""
    return tiny_base("sd15", tmp_path)


@pytest.fixture
def compiled(base: BaseModel) -> Callable[[str], Compiled]:
    adapters = [lora(base, 1), kronecker(base, 2)]

    def make(strategy: str) -> Compiled:
        values = {} if PLANS[strategy] is None else {"entries": PLANS[strategy]}
        return compiled_for(base, adapters, strategy, steps=3, num_images=2, height=64, width=64, **values)

    return make


def counted(compiled: Compiled, thrift: Thrift) -> tuple[Any, Any]:
    """(dry run, real run under the counter), of the same batch."""
    base = compiled.scene.base
    twin = replace(base, unet=on_meta(base.unet))
    seeds = compiled.scene.request.seeds[: thrift.batch_size]
    with checkpointed(twin.unet, thrift.checkpointing):
        dry = dry_run(DryModel(base=twin), batch_request(compiled.scene, seeds, thrift), compiled.strategy)
    cache_of(base.unet).clear()  # what an earlier generation left there would be counted, and not computed
    fresh = replace(base, unet=copy.deepcopy(base.unet))  # weights that are kept joined with adapters' belong to a model
    with checkpointed(fresh.unet, thrift.checkpointing), counting() as real:
        denoise(fresh, batch_request(compiled.scene, seeds, thrift), compiled.strategy)
    return dry, real


@pytest.mark.parametrize("strategy", PLANS)
def test_flops_and_peak_are_those_of_a_real_run(compiled: Callable[[str], Compiled], strategy: str):
    dry, real = counted(compiled(strategy), Thrift(batch_size=2))
    assert dry.total.flops == pytest.approx(real.cost.flops, rel=0.001)
    assert dry.total.moved_bytes == pytest.approx(real.cost.moved_bytes, rel=0.15)
    assert dry.peak_bytes == pytest.approx(real.peak_bytes, rel=0.2)
    assert len(dry.steps) == 3 and sum(step.flops for step in dry.steps) == dry.total.flops


def test_so_are_those_of_the_most_sparing_way(compiled: Callable[[str], Compiled]):
    thrift = Thrift(batch_size=1, one_by_one=True, captured_share=0.2, checkpointing=True)
    dry, real = counted(compiled("clora"), thrift)
    assert dry.peak_bytes == pytest.approx(real.peak_bytes, rel=0.2)


def test_evaluations_are_rows_of_passes(compiled: Callable[[str], Compiled]):
    dry, _ = counted(compiled("composite"), Thrift(batch_size=2))
    assert dry.total.evaluations == 3 * 2 * 2 * 2  # steps, pictures, adapters, halves of the guidance


def test_whole_pipelines_cost_more(base: BaseModel, compiled: Callable[[str], Compiled]):
    ready = compiled("regional")
    twin = replace(base, unet=on_meta(base.unet))
    request = batch_request(ready.scene, (0,), Thrift(batch_size=1))
    ours = dry_run(DryModel(base=twin), request, ready.strategy)
    apart = dry_run(DryModel(base=twin, whole_pipelines=True, region_passes=True), request, ready.strategy)
    assert apart.total.evaluations == 3 * ours.total.evaluations
    assert apart.total.flops > 2 * ours.total.flops
    assert apart.total.moved_bytes > ours.total.moved_bytes


def test_a_copy_on_meta_shares_nothing_and_leaves_the_model_alone(base: BaseModel):
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    twin = on_meta(base.unet)
    assert {parameter.device.type for parameter in twin.parameters()} == {"meta"}
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in base.unet.named_parameters()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())
