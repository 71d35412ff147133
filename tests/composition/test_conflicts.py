"""Conflicts are what they are by definition, on inputs that are recorded apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from studio.composition.activations import effect, input_grams
from studio.composition.conflicts import conflict_report, suggested_strengths
from studio.composition.frequency_profiles import profile_of
from studio.pipelines.adapters import ParameterPath, find_module
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from studio.pipelines.generation import draw_latents
from tests.support.scenes import lora, scene_for
from tests.support.tiny_bases import tiny_base

LAYERS = (
    ParameterPath("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"),
    ParameterPath("unet", "down_blocks.1.resnets.0.conv1"),
    ParameterPath("unet", "down_blocks.0.downsamplers.0.conv"),
    ParameterPath("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("base"))


def test_the_effect_is_that_on_real_inputs(base: BaseModel):
    """√ mean ‖ΔW x‖² from the Gram matrix equals the mean over outputs of a layer with ΔW for its weight."""
    scene = scene_for(base, [], steps=2)
    grams = input_grams(base, LAYERS, ["a cat"], scene.request)
    modules = {path: find_module(base.components()[path.component], path.module) for path in LAYERS}
    deltas = {path: torch.randn(module.weight.shape) for path, module in modules.items()}  # type: ignore[union-attr, arg-type]
    outputs: dict[ParameterPath, list[Tensor]] = {path: [] for path in LAYERS}
    hooks = []
    for path, module in modules.items():

        def record(layer, arguments, _, path=path):
            x = arguments[0]
            if isinstance(layer, torch.nn.Conv2d):
                made = layer._conv_forward(x, deltas[path], None).movedim(1, -1)
            else:
                made = torch.nn.functional.linear(x, deltas[path])
            outputs[path].append(made.flatten(0, -2))

        hooks.append(module.register_forward_hook(record))  # type: ignore[union-attr]
    draw_latents(base, replace(scene.request, prompts=("a cat",), seeds=(0,), negative_prompt="", guidance_scale=1.0))
    for hook in hooks:
        hook.remove()
    for path in LAYERS:
        mean = torch.cat(outputs[path]).square().sum(dim=1).mean().sqrt()
        assert effect(deltas[path], grams[path]) == pytest.approx(float(mean), rel=1e-4), path


def test_the_report(base: BaseModel):
    attention = {"unet": r".*attn1\.to_q"}
    cross = {"unet": r".*attn2\.to_q"}
    one, other = lora(base, 1, targets=attention), lora(base, 2, targets=cross)
    apart = conflict_report(scene_for(base, [one, other], steps=2))
    (conflict,) = apart.conflicts
    assert conflict.shared == (0.0, 0.0) and conflict.columns == 0.0
    same = conflict_report(scene_for(base, [one, one], steps=2, entries=[{}, {"strength": 0.5}]))
    (conflict,) = same.conflicts
    assert conflict.columns == pytest.approx(1.0, abs=1e-5) and conflict.shared == pytest.approx((1.0, 1.0))
    assert conflict.crosstalk == pytest.approx((0.5, 2.0), rel=1e-4)  # both on the same prompt
    assert same.strategy == "composite" and "1 and 2: crosstalk 0.50 and 2.00" in same.lines()[0]
    assert same.frequencies[0] == profile_of(scene_for(base, [one]), scene_for(base, [one]).concepts[0])
    assert same.lines()[1].startswith(f"1: {same.frequencies[0].band} frequency (0.")
    styled = conflict_report(scene_for(base, [one, one], steps=2, entries=[{}, {"role": "style"}]))
    assert styled.strategy == "switch"
    halves = [{"region": {"box": [0, 0, 0.5, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}}]
    assert conflict_report(scene_for(base, [one, one], steps=2, entries=halves)).strategy == "regional"
    with pytest.raises(UserError, match="at least two entries"):
        conflict_report(scene_for(base, [one]))


def test_strengths_bring_the_loud_ones_down():
    assert suggested_strengths([1.0, 1.0, 0.5], [1.0, 1.0, 4.0]) == (None, None, pytest.approx(0.125))
    assert suggested_strengths([1.0, 1.0], [1.0, 1.9]) == (None, None)
    assert suggested_strengths([1.0], [0.0]) == (None,)
