"""Different adapters in one forward: each picture is the one it is alone, and a group's shape alone decides its last bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from studio.pipelines.adapters import Adapter, FullPatch, ParameterPath, Route
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.mixed_batch import MixedRow, SharedShape, draw_mixed, pattern_of
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.tiny_bases import tiny_embedded_dir
from tests.support.tiny_models import tiny_embedded

SHAPE = SharedShape(steps=3, guidance_scale=4.0, height=64, width=48)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_embedded_dir(tmp_path_factory.mktemp("bases") / "embedded"))


@pytest.fixture(scope="module")
def adapters() -> list[Adapter]:
    model = tiny_embedded()
    return [random_adapter(model, seed=1), random_adapter(model, seed=2, dora=True), random_kronecker(model, seed=3)]


@pytest.fixture(scope="module")
def rows(adapters: list[Adapter]) -> list[MixedRow]:
    lora, dora, kronecker = adapters
    return [
        MixedRow(prompt="a cat", seed=1, routes=(Route(lora, 0.7),)),
        MixedRow(prompt="a dog", seed=2, routes=(Route(dora),), negative_prompt="blue"),
        MixedRow(prompt="a cat", seed=3, routes=(Route(lora, 0.7), Route(kronecker))),
        MixedRow(prompt="a boat", seed=4),
        MixedRow(prompt="a dog", seed=5, routes=(Route(lora, 0.7),)),
    ]


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def alone(base: BaseModel, row: MixedRow) -> Image.Image:
    request = GenerationRequest(
        prompts=(row.prompt,),
        seeds=(row.seed,),
        negative_prompt=row.negative_prompt,
        steps=SHAPE.steps,
        guidance_scale=SHAPE.guidance_scale,
        height=SHAPE.height,
        width=SHAPE.width,
    )
    (image,) = generate(base, request, row.routes)
    return image


WAYS = {"folded packed": (True, True), "folded": (True, False), "routes": (False, False)}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_each_picture_is_the_one_it_is_alone(base: BaseModel, rows: list[MixedRow], way: str, guidance_scale: float):
    assert pattern_of(rows) == (0, 1, 2, 3, 0)
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    shape = replace(SHAPE, guidance_scale=guidance_scale)
    folds, packs = WAYS[way]
    drawn = draw_mixed(base, rows, shape, folds=folds, packs=packs)
    assert drawn.kernel_path == way
    if guidance_scale == SHAPE.guidance_scale:
        difference = np.abs(pixels(drawn.images) - pixels([alone(base, row) for row in rows]))
        assert difference.max() <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())
    assert not any("forward" in module.__dict__ for module in base.unet.modules())


@pytest.mark.parametrize("way", list(WAYS))
def test_a_groups_shape_decides_the_last_bits_and_its_other_pictures_do_not(base: BaseModel, rows: list[MixedRow], way: str):
    """One picture of a group again, with nothing of the others but their places."""
    folds, packs = WAYS[way]
    with_adapters = [row for row in rows if row.routes]
    whole = draw_mixed(base, with_adapters, SHAPE, folds=folds, packs=packs)
    pattern = pattern_of(with_adapters)
    for wanted in (0, 1, 3):
        own = with_adapters[wanted]
        others = [replace(own, routes=own.routes if number == pattern[wanted] else ()) for number in pattern]
        again = draw_mixed(base, others, SHAPE, pattern=pattern, folds=folds, packs=packs)
        assert np.array_equal(pixels(whole.images)[wanted], pixels(again.images)[wanted]), wanted


def test_an_adapter_that_acts_on_whole_batches_only_is_refused_in_company(base: BaseModel, adapters: list[Adapter]):
    name = "conv_norm_out"
    path = ParameterPath("unet", name, "bias")
    norm = replace(adapters[0], patches={path: FullPatch(torch.full_like(base.unet.get_submodule(name).bias, 0.5))})
    company = [MixedRow(prompt="a cat", seed=1, routes=(Route(norm),)), MixedRow(prompt="a cat", seed=1)]
    with pytest.raises(UserError, match="cannot share a forward"):
        draw_mixed(base, company, SHAPE)
    (image,) = draw_mixed(base, company[:1], SHAPE).images
    assert np.abs(pixels([image]) - pixels([alone(base, company[0])])).max() <= 1
