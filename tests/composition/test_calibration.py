"""Calibrated strengths: the curve and its inverse, and that equal strengths are equal effects for every kind of adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.cli.main import main
from studio.composition.calibration import EffectCurve, Measuring, measure, rising, scenes_of
from studio.composition.plan_files import read_plan
from studio.pipelines.adapters import Adapter, SparsePatch, save_adapter
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import UserError
from studio.pipelines.scoring import embedded_referee
from studio.workflows.calibrate import Calibrator
from studio.workflows.compose import open_plan
from tests.support.scenes import kronecker, lora, plan_for
from tests.support.tiny_bases import tiny_embedded_dir

SMALL = Measuring(num_seeds=2, steps=1, strengths=(0.25, 0.5, 1.0, 2.0))
CURVE = EffectCurve((0.0, 0.5, 1.0, 2.0), (0.0, 0.2, 0.6, 0.6))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_embedded_dir(tmp_path_factory.mktemp("base")))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 2), min_size=1, max_size=8))
def test_curves_do_not_fall_and_rising_points_stay(effects: list[float]):
    strengths = [0.25 * (index + 1) for index in range(len(effects))]
    curve = rising(strengths, effects)
    assert list(curve.effects) == sorted(curve.effects) and curve.effects[0] == 0.0 and curve.strengths[0] == 0.0
    again = rising(strengths, curve.effects[1:])
    assert again.effects == curve.effects
    assert sum(curve.effects[1:]) == pytest.approx(sum(max(effect, 0.0) for effect in effects))


def test_the_inverse_finds_the_smallest_strength():
    for effect in (0.05, 0.2, 0.4, 0.6):
        strength = CURVE.strength_for(effect)
        assert strength is not None and CURVE.effect_of(strength) == pytest.approx(effect)
    assert CURVE.strength_for(0.6) == pytest.approx(1.0)
    assert CURVE.strength_for(0.0) == 0.0
    assert CURVE.strength_for(0.61) is None
    assert CURVE.effect_of(5.0) == 0.6


def test_what_cannot_be_had_is_refused_by_name():
    with pytest.raises(UserError, match=r"entry 1 \(cat\): its effect is 0.60 at the most, at strength 2"):
        CURVE.calibrated(0.9, "entry 1 (cat)")
    with pytest.raises(UserError, match="0 or more"):
        CURVE.calibrated(-0.1, "entry 1 (cat)")


def test_adapters_are_measured_with_their_own_words(base: BaseModel):
    assert scenes_of(lora(base, 1, trigger="ohwx cat"))[1] == "a photo of a ohwx cat"
    assert scenes_of(lora(base, 1))[0] == "a house"


def sparse(base: BaseModel, seed: int) -> Adapter:
    """A random change of single weights of the UNet's attention."""
    generator = torch.Generator().manual_seed(seed)
    made = lora(base, seed)
    patches = {}
    for path in [path for path in made.patches if path.module.endswith(("attn1.to_q", "attn2.to_v"))]:
        weight = base.unet.get_submodule(path.module).weight
        chosen = torch.randperm(weight.numel(), generator=generator)[: weight.numel() // 5].sort().values
        patches[path] = SparsePatch(torch.randn(len(chosen), generator=generator), tuple(weight.shape), chosen.int())
    return Adapter(replace(made.info, type="sparse"), patches)


def test_one_strength_is_one_effect_for_lora_kronecker_and_sparse(base: BaseModel):
    guide = embedded_referee("guide")
    for adapter in (lora(base, 1, rank=4), kronecker(base, 2), sparse(base, 3)):
        curve = measure(base, adapter, guide, SMALL)
        wish = 0.5 * curve.effects[-1]
        strength = curve.strength_for(wish)
        assert strength is not None and curve.effects[-1] > 0.0
        (found,) = measure(base, adapter, guide, replace(SMALL, strengths=(strength,))).effects[1:]
        assert found == pytest.approx(wish, abs=0.25 * curve.effects[-1])


def test_each_adapter_is_measured_once(base: BaseModel, tmp_path: Path):
    drawn: list[int] = []
    adapter = lora(base, 1)
    for name in ("first", "second"):
        calibrator = Calibrator(base, embedded_referee("guide"), tmp_path, SMALL, on_step=lambda done, total: drawn.append(total))
        named = replace(adapter, info=replace(adapter.info, name=name))  # what it is called does not count
        curve = calibrator.curve(named)
    assert len(drawn) == 1 + len(SMALL.strengths) and len(list(tmp_path.iterdir())) == 1
    (file,) = tmp_path.iterdir()
    file.write_text("{", encoding="utf-8")
    assert Calibrator(base, embedded_referee("guide"), tmp_path, SMALL).curve(adapter) == curve
    assert Calibrator(base, embedded_referee("guide"), tmp_path, SMALL).curve(lora(base, 9)) != curve
    assert len(list(tmp_path.iterdir())) == 2


def test_plans_get_sliders_and_keep_them_in_the_recipe(base: BaseModel, tmp_path: Path):
    save_adapter(lora(base, 1), tmp_path / "1.safetensors", family=base.family)
    plan = plan_for(1, strength_unit="calibrated", entries=[{"strength": 0.01}])
    calibrator = Calibrator(base, embedded_referee("guide"), tmp_path / "known", SMALL)
    opened = open_plan(plan, base, [tmp_path], calibrator)
    (concept,) = opened.scene.concepts
    assert concept.strength != 0.01 and opened.recipe.strength_unit == "raw"
    assert opened.recipe.entries[0].strength == concept.strength
    with pytest.raises(UserError, match="entry 1 .* at the most"):
        open_plan(plan_for(1, strength_unit="calibrated", entries=[{"strength": 99.0}]), base, [tmp_path], calibrator)


def test_the_commands(base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    folder, file = str(base.root_dir), tmp_path / "cat.safetensors"
    save_adapter(lora(base, 1), file, family=base.family)
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", str(file), "--base", folder, "--seeds", "2", "--steps", "1", "--device", "cpu"])
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert "cat.safetensors" in said.out and "for 0.8" in said.out
    flags = ["--strength-unit", "calibrated", "--save-plan", str(tmp_path / "p.yaml")]
    with pytest.raises(SystemExit) as stopped:
        main(["compose", "-p", "a cat", "-a", f"{file}:0.01", *flags])
    assert stopped.value.code == 0
    assert read_plan(tmp_path / "p.yaml").strength_unit == "calibrated"
