"""ZipLoRA: coefficients of one are merge, the loss falls, and every type of adapter takes part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from studio.composition import zipped as zipped_module
from studio.composition.column_learning import ColumnLearner, examples_of
from studio.composition.columns import ColumnScaledPatch, scalable, with_columns
from studio.composition.zipped import ZipLoraConfig, zipped, zipped_adapter
from studio.pipelines.adapters import Adapter, FullPatch, LoRAPatch, ParameterPath, Route, patched
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.base_model import BaseModel
from tests.support.adapters import random_adapter
from tests.support.scenes import compiled_for, drawn, kronecker, lora, scene_for, tiny_of
from tests.support.tiny_bases import tiny_base

QUICK = ZipLoraConfig(learning_steps=3, sample_steps=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    zipped_module._learned.clear()
    yield
    zipped_module._learned.clear()


@pytest.fixture(scope="module")
def mixed(base: BaseModel) -> dict[str, Adapter]:
    """One of every way in which columns are scaled."""
    full = {
        ParameterPath("unet", "conv_in"): FullPatch(torch.randn_like(base.unet.conv_in.weight)),
        ParameterPath("unet", "conv_norm_out", "bias"): FullPatch(torch.ones_like(base.unet.conv_norm_out.bias)),
    }
    one = lora(base, 1)
    dora = random_adapter(tiny_of(base), rank=2, seed=3, dora=True, targets={"unet": r".*attn1\.to_q|.*resnets\.0\.conv1"})
    return {"lora": one, "kronecker": kronecker(base, 2), "dora": dora, "full": Adapter(one.info, full)}


@pytest.mark.parametrize("kind", ["lora", "kronecker", "dora", "full"])
def test_columns_are_scaled_in_every_type(base: BaseModel, mixed: dict[str, Adapter], kind: str):
    """Δ · diag(m), dense and by its own fast way, in linear layers and convolutions; fixed coefficients are the same."""
    adapter, checked = mixed[kind], 0
    for path, patch in adapter.patches.items():
        if path.component != "unet":
            continue
        ready = scalable(patch, path, base.components(), "x")
        if ready is None:
            assert path.parameter == "bias"
            continue
        dense = dense_change(patch, path, base.components(), "x")
        m = torch.rand(dense.shape[1])
        expected = dense * m.reshape(1, -1, *[1] * (dense.ndim - 2))
        for scaled in (ColumnScaledPatch(ready, m), with_columns(ready, m)):
            found = dense_change(scaled, path, base.components(), "x")
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        checked += 1
    assert checked
    ones = {
        path: patch if (ready := scalable(patch, path, base.components(), "x")) is None else ColumnScaledPatch(ready, m)
        for path, patch in adapter.patches.items()
        if path.component == "unet"
        for m in [torch.rand(dense_change(patch, path, base.components(), "x").shape[1] if path.parameter == "weight" else 1)]
    }
    dense_ones = {path: FullPatch(dense_change(patch, path, base.components(), "x")) for path, patch in ones.items()}
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 24)
    outputs = []
    for patches in (ones, dense_ones):
        with torch.no_grad(), patched(base.components(), [Route(Adapter(adapter.info, patches), 0.7)]):
            outputs.append(base.unet(x, torch.tensor(500), encoder_hidden_states=text, return_dict=False)[0])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-3)


def test_coefficients_of_one_are_merge(base: BaseModel):
    adapters = [lora(base, 1), kronecker(base, 2)]
    entries: list[dict[str, Any]] = [{"strength": 0.7}, {"active_from": 0.3}]
    nothing = {"name": "ziplora", "learning_steps": 0}
    assert torch.equal(drawn(base, adapters, nothing, entries=entries), drawn(base, adapters, "merge", entries=entries))
    scene = scene_for(base, adapters, entries=entries)
    learner = ColumnLearner(scene, 0.01)
    assert float(learner.similarity().detach()) == 1.0
    merged = [Route(concept.adapter, concept.strength) for concept in scene.concepts]
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 24)
    outputs = []
    for routes in (merged, learner.routes()):
        with torch.no_grad(), patched({"unet": base.unet}, routes):
            outputs.append(base.unet(x, torch.tensor(500), encoder_hidden_states=text, return_dict=False)[0])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


def test_the_loss_is_by_definition_and_falls(base: BaseModel):
    targets = {"unet": r".*attn[12]\.to_[qkv]"}
    scene = scene_for(base, [lora(base, seed, rank=4, targets=targets) for seed in range(2)])
    learner = ColumnLearner(scene, 0.01)
    examples = examples_of(scene, 2)

    def fit() -> float:
        with torch.no_grad(), patched(base.components(), learner.routes()):
            return sum(float(learner.fit(example)) for own in examples for example in own)

    seen, text = examples[1][0].seen, examples[1][0].text
    with torch.no_grad(), patched(base.components(), [Route(concept.adapter) for concept in scene.concepts]):
        together = base.unet(seen.latents, seen.timestep, encoder_hidden_states=text.prompt_embeds, return_dict=False)[0]
    with torch.no_grad(), patched(base.components(), [Route(scene.concepts[1].adapter)]):
        alone = base.unet(seen.latents, seen.timestep, encoder_hidden_states=text.prompt_embeds, return_dict=False)[0]
    torch.testing.assert_close(alone, seen.predictions[0])
    with torch.no_grad(), patched(base.components(), learner.routes()):
        assert float(learner.fit(examples[1][0])) == pytest.approx(float((together - alone).square().mean()), rel=1e-3)
    before = fit()
    learned = learner.learn(examples, 12, 0.02)
    after = fit()
    assert after < 0.8 * before, (before, after)
    assert sum(learned.losses[-4:]) < sum(learned.losses[:4])
    assert len(learned.losses) == 12 and not any(tensor.requires_grad for own in learned.coefficients for tensor in own.values())


def test_the_penalty_parts_the_columns(base: BaseModel):
    """A column that both use costs, so that a heavy penalty brings the products down."""
    targets = {"unet": r"mid_block\..*attn1\.to_q"}
    scene = scene_for(base, [lora(base, seed, targets=targets) for seed in range(2)])
    learner = ColumnLearner(scene_for(base, [lora(base, seed) for seed in range(3)]), 0.0)
    for own in learner.coefficients:
        for tensor in own.values():
            tensor.data.normal_()
    pairs = [(learner.coefficients[i], learner.coefficients[j]) for i in range(3) for j in range(i)]
    products = [(one[path] * two[path]).abs().mean() for one, two in pairs for path in one]
    torch.testing.assert_close(learner.similarity(), torch.stack(products).mean())
    similarities = []
    for penalty in (0.0, 10.0):
        learner = ColumnLearner(scene, penalty)
        learner.learn(examples_of(scene, 2), 6, 0.02)
        similarities.append(float(learner.similarity().detach()))
    assert similarities[1] < similarities[0] - 0.05


def test_what_was_learned_is_in_the_adapters_and_kept(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    adapters = [lora(base, 1), kronecker(base, 2)]
    scene = scene_for(base, adapters, entries=[{"strength": 0.7}, {}])
    found, losses = zipped(scene, QUICK)
    assert len(losses) == 3 and found[0].kinds() == {"lora": len(adapters[0].patches)}
    assert any(isinstance(patch, ColumnScaledPatch) for patch in found[1].patches.values())
    before = scene.concepts[0].adapter.patches
    changed = [path for path, patch in found[0].patches.items() if isinstance(patch, LoRAPatch) and patch is not before[path]]
    assert {path.component for path in changed} == {"unet"}
    monkeypatch.setattr(zipped_module, "examples_of", lambda *given: pytest.fail("learned again"))
    again, _ = zipped(scene_for(base, adapters, entries=[{"strength": 0.7}, {}]), QUICK)
    path = changed[0]
    assert torch.equal(found[0].patches[path].down, again[0].patches[path].down)  # type: ignore[attr-defined]
    merged = zipped_adapter(scene, QUICK).adapter
    for path in list(merged.patches)[::40]:
        parts = [
            strength * dense_change(adapter.patches[path], path, base.components(), "x")
            for adapter, strength in zip(found, (0.7, 1.0), strict=True)
            if path in adapter.patches
        ]
        torch.testing.assert_close(
            dense_change(merged.patches[path], path, base.components(), "x"), sum(parts), atol=1e-5, rtol=1e-4
        )


def test_it_draws_with_what_it_learned(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    settings = {"name": "ziplora", "learning_steps": 4, "sample_steps": 2, "learning_rate": 0.1}
    compiled = compiled_for(base, adapters, settings)
    assert any("the loss went from" in note and "in 4 steps" in note for note in compiled.notes)
    assert not torch.allclose(drawn(base, adapters, settings), drawn(base, adapters, "merge"))
    assert not any(parameter.grad is not None for parameter in base.unet.parameters())
