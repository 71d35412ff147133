"""Every strategy at real sizes on the structures of SD1.5 and SDXL: 512×512, 512×768, 896×512 and an odd size, batches of three.

Each strategy meets each structure once; sizes and samplers are spread so that every size meets every sampler, and each of them
both structures. The full product runs with `pytest -m bench`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from studio.composition.strategies import STRATEGIES
from studio.pipelines.base_model import BaseModel, load_base
from tests.support.scenes import drawn, kronecker, lora
from tests.support.tiny_bases import write_base
from tests.support.tiny_models import tiny_sd15, tiny_sdxl

FAMILIES = ("sd15", "sdxl")
SIZES = ((512, 512), (768, 512), (512, 896), (520, 328))
"""(height, width)."""
SCHEDULERS = ("euler", "dpm++", "ddim")
ATTENTION = {"unet": r".*(attn|proj).*", "text_encoder": r".*(q|v)_proj"}
SHORT: dict[str, dict[str, Any]] = {"ziplora": {"learning_steps": 1, "sample_steps": 1}, "cmlora": {"frequencies": "roles"}}
"""What is prepared once for a set of adapters is the same at every size, and has tests of its own."""

HALVES = [{"region": {"box": [0, 0, 0.5, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}}]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    """Tiny weights, real classes; with one head in the widest layers, whose 5,824 places would else take most of the time."""
    found = {}
    for family, make in (("sd15", tiny_sd15), ("sdxl", tiny_sdxl)):
        model = make()
        config = {**model.unet.config, "attention_head_dim": (1, 2, 2, 2) if family == "sd15" else (1, 1, 2)}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet: Any = UNet2DConditionModel.from_config(config).requires_grad_(False).eval()
        found[family] = load_base(write_base(replace(model, unet=unet), tmp_path_factory.mktemp(family)))
    return found


def cover() -> list[tuple[str, str, tuple[int, int], str]]:
    """(strategy, structure, size, sampler)."""
    cells = [(kind.name, family) for family in FAMILIES for kind in STRATEGIES]
    pairs = [(SIZES[turn % 4], SCHEDULERS[turn % 3]) for turn in range(12)]  # 4 and 3 have no common divisor: all 12 pairs
    return [(*cell, *pairs[place % len(pairs)]) for place, cell in enumerate(cells)]


def check(
    base: BaseModel, strategy: str, size: tuple[int, int], scheduler: str, steps: int, settings: dict[str, Any] | None = None
) -> None:
    """Three pictures with a LoRA and a Kronecker adapter, in halves of the canvas where the strategy takes regions."""
    height, width = size
    kind = next(kind for kind in STRATEGIES if kind.name == strategy)
    adapters = [lora(base, 1, targets=ATTENTION), kronecker(base, 2)]
    values: dict[str, Any] = {"height": height, "width": width, "scheduler": scheduler, "num_images": 3, "steps": steps}
    if kind.uses_regions:
        values["entries"] = HALVES
    latents = drawn(base, adapters, {"name": strategy, **(settings or {})}, **values)
    assert latents.shape == (3, 4, height // 8, width // 8)
    assert torch.isfinite(latents).all()
    assert not torch.allclose(latents[0], latents[1]) and not torch.allclose(latents[1], latents[2])


def test_the_cover_has_all_pairs():
    cells = cover()
    assert {(strategy, family) for strategy, family, _, _ in cells} == set(product([k.name for k in STRATEGIES], FAMILIES))
    for family in FAMILIES:
        mine = [(size, scheduler) for _, other, size, scheduler in cells if other == family]
        assert {size for size, _ in mine} == set(SIZES) and {scheduler for _, scheduler in mine} == set(SCHEDULERS)
    assert {(size, scheduler) for _, _, size, scheduler in cells} == set(product(SIZES, SCHEDULERS))


@pytest.mark.parametrize(("strategy", "family", "size", "scheduler"), cover())
def test_it_draws_three_pictures(bases: dict[str, BaseModel], strategy: str, family: str, size: tuple[int, int], scheduler: str):
    check(bases[family], strategy, size, scheduler, steps=1, settings=SHORT.get(strategy))


@pytest.mark.bench
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", [kind.name for kind in STRATEGIES])
def test_bench_the_full_product(bases: dict[str, BaseModel], strategy: str, family: str, size: tuple[int, int], scheduler: str):
    check(bases[family], strategy, size, scheduler, steps=3)
