"""Different adapters in one pass draw what each draws alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from studio.pipelines.adapters import Adapter, AdapterInfo, FullPatch, ParameterPath, Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.grouped_generation import GroupShape, PictureOrder, can_share, draw_group
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import tiny_embedded, tiny_sdxl

SHAPE = GroupShape(steps=4, guidance_scale=3.0)


@pytest.fixture(scope="module", params=["embedded", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(request.param, tmp_path_factory.mktemp("base"))


def orders_for(base: BaseModel) -> list[PictureOrder]:
    model = tiny_sdxl() if base.family.name == "sdxl" else tiny_embedded()
    first, second = random_adapter(model, seed=1), random_adapter(model, seed=2, dora=True)
    third = random_kronecker(model, seed=3)
    return [
        PictureOrder(prompt="a cat", seed=5, adapters=((first, 3.0),)),
        PictureOrder(prompt="a dog", seed=6, negative_prompt="a tree", adapters=((second, 2.0),)),
        PictureOrder(prompt="a cat", seed=7),
        PictureOrder(prompt="a mug", seed=8, adapters=((first, 1.5), (third, 1.0))),
    ]


def alone(base: BaseModel, order: PictureOrder):
    request = GenerationRequest(
        prompts=(order.prompt,), seeds=(order.seed,), negative_prompt=order.negative_prompt, steps=4, guidance_scale=3.0
    )
    return generate(base, request, [Route(adapter, strength) for adapter, strength in order.adapters])[0]


def test_a_group_draws_what_each_order_draws_alone(base: BaseModel):
    orders = orders_for(base)
    pictures = draw_group(base, orders, SHAPE)
    separate = [alone(base, order) for order in orders]
    for picture, expected in zip(pictures, separate, strict=True):
        difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(expected, dtype=int))
        assert (difference <= 1).mean() >= 0.999
    bare = alone(base, PictureOrder(prompt="a cat", seed=5))
    assert np.abs(np.asarray(bare, dtype=int) - np.asarray(pictures[0], dtype=int)).max() > 4


def test_a_short_group_is_filled_up_and_draws_the_same_bytes(base: BaseModel):
    orders = orders_for(base)[:2]
    first = draw_group(base, orders, SHAPE, rows=4)
    again = draw_group(base, orders, SHAPE, rows=4)
    assert len(first) == 2
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]


def test_what_acts_on_whole_batches_is_drawn_alone(base: BaseModel):
    path = ParameterPath("unet", "conv_in", "bias")
    shape = base.unet.conv_in.bias.shape  # type: ignore[union-attr]
    adapter = Adapter(AdapterInfo(name="shift", family=base.family.name), {path: FullPatch(torch.full(shape, 0.5))})
    assert not can_share(base, adapter)
    ours = PictureOrder(prompt="a cat", seed=1, adapters=((adapter, 1.0),))
    with pytest.raises(UserError, match="group of their own"):
        draw_group(base, [ours, PictureOrder(prompt="a cat", seed=2)], SHAPE)
    (picture,) = draw_group(base, [ours], SHAPE)
    assert picture.tobytes() == alone(base, ours).tobytes()


def test_it_stops_between_steps(base: BaseModel):
    from studio.pipelines.errors import Cancelled

    done: list[int] = []
    with pytest.raises(Cancelled, match="after 2 of 4"):
        draw_group(
            base, orders_for(base)[:1], SHAPE, on_step=lambda step, _: done.append(step), should_stop=lambda: len(done) == 2
        )


def test_the_base_is_untouched_afterwards(base: BaseModel, tmp_path: Path):
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    draw_group(base, orders_for(base), SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())
    assert not any("forward" in module.__dict__ for module in base.unet.modules())
