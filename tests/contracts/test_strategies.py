"""What every composition strategy must do. A strategy in the registry is tested here without another line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from studio.composition.plan_files import plan_from_values, plan_text
from studio.composition.strategies import STRATEGIES, strategy_named
from studio.composition.strategy import StrategyKind, configured
from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import ConfigError
from studio.pipelines.generation import draw_latents
from tests.support.scenes import compiled_for, drawn, kronecker, latents_of, lora, plan_for
from tests.support.tiny_bases import tiny_base

FAMILIES = ("sd15", "sdxl")
SIZES = ((64, 64), (96, 64), (64, 112), (72, 40))
"""An eighth of 512×512, 512×768 and 896×512, and one odd size; (height, width)."""
SCHEDULERS = ("euler", "dpm++", "ddim")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    """Tiny random base models, shared: strategies may not change them."""
    return {name: tiny_base(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(params=STRATEGIES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> StrategyKind[Any]:
    """Each strategy."""
    return request.param  # type: ignore[no-any-return]


def cover() -> list[tuple[int, str, tuple[int, int], str]]:
    """(number of the strategy, family, size, scheduler): each strategy × family once; sizes × schedulers all come up, as far as
    there are strategies, and each size and each scheduler with both families."""
    cells = [(number, family) for number in range(len(STRATEGIES)) for family in FAMILIES]
    pairs = [
        (size, scheduler) for turn in range(3) for size, scheduler in zip(SIZES, (SCHEDULERS * 3)[turn : turn + 4], strict=True)
    ]
    return [(number, family, *pairs[place % len(pairs)]) for place, (number, family) in enumerate(cells)]


def bound(kind: StrategyKind[Any]) -> list[dict[str, Any]]:
    """Two entries with words of their own, the first with a region where the strategy knows them."""
    region = {"region": {"box": [0.5, 0.25, 1, 1]}} if kind.uses_regions else {}
    return [{"words": "cat"} | region, {"words": "dog"}]


@pytest.mark.parametrize(("number", "family", "size", "scheduler"), cover())
def test_it_draws_batches_on_every_structure_size_and_sampler(
    bases: dict[str, BaseModel], number: int, family: str, size: tuple[int, int], scheduler: str
):
    base, kind = bases[family], STRATEGIES[number]
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    adapters = [lora(base, 1), kronecker(base, 2)]
    values: dict[str, Any] = {"height": size[0], "width": size[1], "scheduler": scheduler, "num_images": 3}
    latents = drawn(base, adapters, kind.name, entries=bound(kind), **values)
    assert latents.shape == (3, 4, size[0] // 8, size[1] // 8)
    assert torch.isfinite(latents).all()
    assert not torch.allclose(latents[0], latents[1])
    after = base.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "forward" not in vars(base.unet.conv_in)


@pytest.mark.parametrize(("family", "guidance"), [("sd15", 1.0), ("sdxl", 4.0)], ids=["bare", "guided"])
def test_one_adapter_is_that_adapter(bases: dict[str, BaseModel], kind: StrategyKind[Any], family: str, guidance: float):
    base, adapter = bases[family], lora(bases[family], 1)
    compiled = compiled_for(base, [adapter], kind.name, guidance_scale=guidance, entries=[{"strength": 0.7}])
    with torch.no_grad(), patched(base.components(), [Route(adapter, 0.7)]):
        alone = draw_latents(base, compiled.scene.request)
    torch.testing.assert_close(latents_of(compiled), alone, rtol=0, atol=0)


def test_a_picture_does_not_depend_on_its_batch(bases: dict[str, BaseModel], kind: StrategyKind[Any]):
    base = bases["sd15"]
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], kind.name, num_images=2)
    both = latents_of(compiled)
    second = drawn(base, [lora(base, 1), lora(base, 2)], kind.name, seed=1)
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


def test_forty_adapters(bases: dict[str, BaseModel], kind: StrategyKind[Any]):
    base = bases["sd15"]
    target = {"unet": r"mid_block\..*\.attn2\.to_[kv]"}
    adapters = [lora(base, seed, targets=target) for seed in range(4)] * 10
    assert torch.isfinite(drawn(base, adapters, kind.name, steps=1)).all()


def test_its_settings_are_explained_and_closed(kind: StrategyKind[Any]):
    assert strategy_named(kind.name) is kind
    assert kind.title and all(field.description for field in kind.Config.model_fields.values())
    assert kind.Config.model_config["frozen"] and kind.Config.model_config["extra"] == "forbid"
    with pytest.raises(ConfigError, match=f"strategy {kind.name}: nonsense is no key here"):
        configured(kind, {"nonsense": 1})


def test_its_settings_travel_in_the_plan(kind: StrategyKind[Any]):
    settings = kind.Config().model_dump(mode="json", exclude_none=True)
    plan = plan_for(2, strategy={"name": kind.name, **settings})
    for as_json in (False, True):
        read = plan_from_values(yaml.safe_load(plan_text(plan, as_json=as_json)))
        assert read == plan
        assert dict(read.strategy.settings) == settings


def test_a_region_is_used_or_refused(bases: dict[str, BaseModel], kind: StrategyKind[Any]):
    base = bases["sd15"]
    adapters = [lora(base, 1), lora(base, 2)]
    entries = [{"region": {"box": [0, 0, 0.5, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}}]
    if kind.uses_regions:
        assert not torch.allclose(drawn(base, adapters, kind.name, entries=entries), drawn(base, adapters, kind.name))
    else:
        with pytest.raises(Exception, match=rf"{kind.name} knows no regions, and entry 1 \(1\)"):
            compiled_for(base, adapters, kind.name, entries=entries)


def test_an_unknown_name_has_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean composite"):
        strategy_named("composit")


@pytest.mark.bench
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("size", [(512, 512), (768, 512), (512, 896), (520, 328)])
@pytest.mark.parametrize("family", FAMILIES)
def test_bench_the_full_product_at_full_sizes(
    bases: dict[str, BaseModel], kind: StrategyKind[Any], family: str, size: tuple[int, int], scheduler: str
):
    base = bases[family]
    values: dict[str, Any] = {"height": size[0], "width": size[1], "scheduler": scheduler, "num_images": 3, "steps": 2}
    latents = drawn(base, [lora(base, 1), kronecker(base, 2)], kind.name, **values)
    assert latents.shape == (3, 4, size[0] // 8, size[1] // 8) and torch.isfinite(latents).all()
