"""CMLoRA: its timetable and weights by hand, its caches, and what it costs, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import studio.assets
from studio.composition.dominance import Dominance, dominant_weights, lead_order, turn_steps
from studio.composition.strategies.cmlora import CMLora, CMLoraConfig, CMLoraStrategy, default_depth
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Branch, Passes, Step
from studio.pipelines.denoising.unet_parts import run_unet
from tests.support.scenes import compiled_for, drawn, kronecker, latents_of, lora, scene_for
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import sd15_unet_config, sdxl_unet_config

ATTENTION = {"unet": r".*attn2\.to_q"}
BARS = {2: 0.72, 3: 0.62, 4: 0.58}
"""Of composite's FLOPs, at so many adapters."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("sd15"))


def test_the_lead_changes_by_the_papers_parts_of_the_schedule():
    assert sorted(turn_steps(24, "non-uniform")) == [0, 2, 4, 6, 8, 9, 12, 15, 18, 21, 23]
    assert len(turn_steps(220, "non-uniform")) == 41 + 37 + 14
    assert turn_steps(7, 3) == {0, 3, 6}


def test_high_leads_early_and_low_late():
    assert lead_order([3, 0], [1, 2], is_early=True) == [3, 0]
    assert lead_order([3, 0], [1, 2], is_early=False) == [0, 1, 2]
    assert lead_order([0, 1], [], is_early=False) == [0, 1] and lead_order([], [1, 2], is_early=True) == [1, 2]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_weights_sum_to_the_number_of_adapters_and_decay_to_no_less_than_equal(count: int):
    ratios = []
    for change in range(6):
        weights = dominant_weights(count, 1, change)
        assert sum(weights) == pytest.approx(count) and weights[0] == pytest.approx(weights[-1] if count > 2 else weights[0])
        ratios.append(weights[1] / weights[0])
        assert dominant_weights(count, 1, change, decays=False) == dominant_weights(count, 1, 0)
    expected = [max(1.0, count - 0.5 - lost) for lost in (0, 0.5, 0.75, 0.875, 0.9375, 0.96875)]
    assert ratios == pytest.approx(expected)


def test_published_weights():
    assert dominant_weights(2, 0, 0) == pytest.approx([1.2, 0.8])
    assert dominant_weights(5, 0, 0)[:2] == pytest.approx([2.647, 0.588], abs=1e-3)


def test_features_are_refreshed_by_the_lead_and_by_age():
    walk = Dominance([0, 1], [2], refresh="dominant")
    turns = [walk.step([0, 1, 2], is_turn=step % 2 == 0, is_early=step < 4) for step in range(8)]
    assert [turn.dominant for turn in turns] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert [sorted(turn.fresh) for turn in turns] == [[0, 1, 2], [0], [1], [1], [1], [1], [2], [2]]
    aged = Dominance([0, 1], [], refresh=3)
    assert [sorted(aged.step([0, 1], is_turn=step == 0, is_early=True).fresh) for step in range(5)] == [
        [0, 1],
        [0],
        [0],
        [0, 1],
        [0],
    ]
    once = Dominance([0, 1], [], refresh="dominant", leads_fresh=False)
    assert [sorted(once.step([0, 1], is_turn=step % 2 == 0, is_early=True).fresh) for step in range(4)] == [[0, 1], [], [1], []]


def test_one_whose_time_begins_anew_computes_its_features_anew():
    walk = Dominance([0, 1], [], refresh="dominant")
    active = [[0, 1], [1], [1], [0, 1]]
    turns = [walk.step(those, is_turn=step == 0, is_early=True) for step, those in enumerate(active)]
    assert [(turn.dominant, sorted(turn.fresh)) for turn in turns] == [(0, [0, 1]), (1, [1]), (1, [1]), (1, [0, 1])]


@pytest.mark.parametrize("weights", ["equal", "constant"])
def test_equal_weights_refreshed_at_every_step_are_composite_to_the_bit(base: BaseModel, weights: str):
    adapters = [lora(base, 1), kronecker(base, 2), lora(base, 3)]
    values: dict[str, Any] = {"steps": 3, "num_images": 2, "entries": [{}, {"strength": 0.5}, {"role": "background"}]}
    composite = drawn(base, adapters, "composite", **values)
    cmlora = drawn(base, adapters, {"name": "cmlora", "refresh_interval": 1, "weights": weights}, **values)
    assert torch.equal(composite, cmlora) == (weights == "equal")


def test_kept_features_change_the_picture_a_little_and_runs_do_not_mix(base: BaseModel):
    adapters = [lora(base, 1, targets=ATTENTION), lora(base, 2, targets=ATTENTION)]
    equal = {"name": "cmlora", "weights": "equal"}
    compiled = compiled_for(base, adapters, equal, steps=6)
    first, again = latents_of(compiled), latents_of(compiled)
    assert torch.equal(first, again), "nothing is left of the run before"
    composite = drawn(base, adapters, "composite", steps=6)
    distance = (first - composite).norm() / composite.norm()
    assert 0 < distance < 0.1


@pytest.mark.parametrize("phases", ["offline", "online"])
def test_every_setting_draws(base: BaseModel, phases: str):
    adapters = [lora(base, n, targets=ATTENTION) for n in range(3)]
    strategy = {"name": "cmlora", "phases": phases, "frequencies": "roles", "leader": "once", "refresh_interval": "dominant"}
    entries = [{"role": "background"}, {"active_to": 0.6}, {"active_from": 0.3}]
    latents = drawn(base, adapters, strategy | {"turns": 2, "depth": 40}, steps=5, entries=entries)
    assert torch.isfinite(latents).all()


def branches_of(strategy: CMLoraStrategy, count: int) -> list[list[Branch]]:
    """Branches of all steps of a noise schedule."""
    steps = [Step(index, count, torch.tensor(999 - index * 1000 // count)) for index in range(count)]
    return [list(strategy.branches(step)) for step in steps]


def test_each_adapter_and_half_has_features_of_its_own(base: BaseModel):
    scene = scene_for(base, [lora(base, n, targets=ATTENTION) for n in range(3)], steps=8)
    strategy = CMLora().build(scene, CMLoraConfig(frequencies="roles"))
    for branches in branches_of(strategy, 8):
        keys = [branch.features.key for branch in branches if branch.features is not None]
        assert keys == [(index, half) for index in range(3) for half in ("negative", "positive")]


def full_share(base: BaseModel, num_adapters: int, steps: int) -> float:
    """Which share of the passes runs in full, with the default settings, at the worst split of frequencies."""
    shares = []
    for num_low in range(num_adapters):
        roles = [{"role": "background"}] * num_low + [{}] * (num_adapters - num_low)
        adapters = [lora(base, n, targets=ATTENTION) for n in range(num_adapters)]
        scene = scene_for(base, adapters, entries=roles, steps=steps)
        strategy = CMLora().build(scene, CMLoraConfig(frequencies="roles"))
        kept: set[object] = set()
        fresh = total = 0
        for branches in branches_of(strategy, steps):
            for branch in branches:
                use = branch.features
                assert use is not None
                fresh += use.refreshes or use.key not in kept
                kept.add(use.key)
                total += 1
        shares.append(fresh / total)
    return max(shares)


def flops(config: dict[str, Any], size: tuple[int, int], text: tuple[int, int], depth: int | None) -> int:
    """Of a pass of a UNet without numbers at full size: in full, or with a feature kept at `depth`."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        sample, words, timestep = torch.empty(2, unet.config.in_channels, *size), torch.empty(2, *text), torch.empty(())
        added = None
        if unet.config.addition_embed_type == "text_time":
            added = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
    with torch.no_grad():
        feature = None if depth is None else run_unet(unet, sample, timestep, words, added, depth=depth).deep_feature
        with FlopCounterMode(display=False) as counter:
            run_unet(unet, sample, timestep, words, added, depth=depth, deep_feature=feature)
    return counter.get_total_flops()


def check_cost(name: str, base: BaseModel, config: dict[str, Any], size: tuple[int, int], text: tuple[int, int]) -> None:
    with torch.device("meta"):
        depth = default_depth(UNet2DConditionModel(**config))
    short = flops(config, size, text, depth) / flops(config, size, text, None)
    for steps in (30, 50):
        costs = {}
        for num_adapters, bar in BARS.items():
            share = full_share(base, num_adapters, steps)
            costs[num_adapters] = share + (1 - share) * short
            assert costs[num_adapters] <= bar, f"{name}: {costs}"
        found = ", ".join(f"{count} adapters {cost:.3f}" for count, cost in costs.items())
        print(f"\n  {name}, {steps} steps: a short pass {short:.3f} of a full one; of composite's FLOPs at {found}", end="")


def test_cost_against_composite_on_the_embedded_base(base: BaseModel):
    path = Path(studio.assets.__file__).parent / "base" / "unet" / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("_")}
    check_cost("embedded", base, config, (12, 12), (32, 128))


@pytest.mark.bench
def test_cost_against_composite_at_full_size(base: BaseModel, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        test_cost_against_composite_on_the_embedded_base(base)
        check_cost("SD1.5", base, sd15_unet_config(), (64, 64), (77, 768))
        check_cost("SDXL", base, sdxl_unet_config(), (128, 128), (77, 2048))


def test_counted_passes_are_the_passes_that_run(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    """The loop reuses a feature where the timetable says so, and only there."""
    asked: list[bool] = []
    has_feature = Passes._has_feature
    monkeypatch.setattr(Passes, "_has_feature", lambda self, branch: asked.append(has_feature(self, branch)) or asked[-1])
    adapters = [lora(base, n, targets=ATTENTION) for n in range(2)]
    compiled = compiled_for(base, adapters, {"name": "cmlora", "frequencies": "roles"}, steps=12)
    asked.clear()
    latents_of(compiled)
    strategy: Any = compiled.strategy
    expected = [index not in strategy._turns[step][1].fresh for step in range(12) for index in (0, 0, 1, 1)]
    assert asked == expected
