"""K-LoRA: the choice by hand, along the steps, for any type of adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from studio.composition.content_style import content_and_style
from studio.composition.layer_choice import LayerSize, choose, layer_size, level, style_scale, top_count
from studio.composition.strategies.k_lora import KLora, KLoraConfig, KLoraStrategy
from studio.pipelines.adapters import Adapter, LoRAPatch, ParameterPath, Route, patched
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Step
from studio.pipelines.generation import draw_latents
from tests.support.scenes import compiled_for, drawn, kronecker, latents_of, lora, scene_for
from tests.support.tiny_bases import tiny_base

ATTENTION = {"unet": r".*attn2\.to_[qk]"}
STYLE = [{}, {"role": "style"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("sd15"))


def at(progress: float) -> Step:
    return Step(0, 10, torch.tensor(999.0 - 1000 * progress))


def test_sizes_and_levels_are_by_definition():
    delta = torch.tensor([[3.0, -5.0], [0.5, 1.0]])
    assert layer_size(delta, 2) == LayerSize(top=8.0, all=9.5) and layer_size(delta, 99).top == 9.5
    assert (top_count([4], [8]), top_count([4, 2], []), top_count([], []), top_count([0], [6])) == (32, 16, 64, 36)
    assert level([(2.0, 1.0), (4.0, 1.0), (1.0, 0.0), (0.0, 1.0)]) == 3.0
    assert level([(1.0, 1.0)] * 9 + [(100.0, 1.0)]) == 1.0, "what is above three times the mean does not count"
    assert level([]) == 1.0


def test_the_style_gains_along_the_steps():
    assert [style_scale(progress) for progress in (0.0, 0.5, 1.0)] == [0.5, 1.25, 2.0]
    assert style_scale(1.0, "s*") == pytest.approx(0.5) and style_scale(0.5, "s*") == 1.25
    assert style_scale(1.0, alpha=1.0, beta=0.25) == 1.25


def test_a_layer_is_the_one_whose_sum_is_larger():
    first, second, lone = (ParameterPath("unet", name) for name in ("a", "b", "c"))
    sizes = {
        first: {0: LayerSize(top=4.0, all=1.0), 1: LayerSize(top=3.0, all=1.0)},
        second: {0: LayerSize(top=2.0, all=1.0), 1: LayerSize(top=3.0, all=1.0)},
        lone: {1: LayerSize(top=0.0, all=0.0)},
    }
    levels, style, both = {0: 2.0, 1: 1.0}, frozenset({1}), frozenset({0, 1})

    def owners(scale: float, active: frozenset[int] = both) -> list[int]:
        return [owner for _, owner in choose(sizes, levels, style, active, scale)]

    assert owners(0.5) == [0, 1, 1] and owners(0.2) == [0, 0, 1] and owners(1.0) == [1, 1, 1]
    assert owners(2.0 / 3.0) == [1, 1, 1], "at equality the style"
    assert choose(sizes, levels, style, frozenset({0}), 9.0) == ((first, 0), (second, 0))
    assert choose(sizes, levels, style, frozenset(), 1.0) == ()


def strategy_for(base: BaseModel, adapters: list[Adapter], **config: object) -> KLoraStrategy:
    return KLora().build(scene_for(base, adapters, entries=STYLE), KLoraConfig(**config))


def test_the_strategy_chooses_as_the_paper_writes(base: BaseModel):
    adapters = [lora(base, 1, rank=2), lora(base, 2, rank=3)]
    strategy = strategy_for(base, adapters)
    deltas = [
        {p: dense_change(q, p, base.components(), "x").abs() for p, q in a.patches.items() if p.component == "unet"}
        for a in adapters
    ]
    ratios = [float(deltas[0][path].sum() / deltas[1][path].sum()) for path in deltas[0]]
    mean = sum(ratios) / len(ratios)
    gamma_of = [ratio for ratio in ratios if ratio <= 3 * mean]
    gamma = sum(gamma_of) / len(gamma_of)
    for progress in (0.0, 0.4, 0.9):
        scale = 1.5 * progress + 0.5
        for path, owner in strategy.chosen(at(progress)):
            content, style = (delta[path].flatten().topk(6).values.sum() for delta in deltas)
            assert owner == (0 if content / gamma > style * scale else 1), path


def test_the_content_wins_early_and_the_style_late(base: BaseModel):
    strategy = strategy_for(base, [lora(base, 1), lora(base, 2)])
    shares = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        owners = [owner for _, owner in strategy.chosen(at(progress))]
        shares.append(sum(owners) / len(owners))
    assert shares == sorted(shares) and shares[0] < 0.2 and shares[-1] > 0.8


def test_it_does_not_depend_on_how_loud_an_adapter_is(base: BaseModel):
    """γ brings both to one level."""
    one, other = lora(base, 1), lora(base, 2)
    patches = {p: replace(q, up=10 * q.up) if isinstance(q, LoRAPatch) else q for p, q in one.patches.items()}
    loud = Adapter(one.info, patches)
    for progress in (0.1, 0.5):
        expected = strategy_for(base, [one, other]).chosen(at(progress))
        assert strategy_for(base, [loud, other]).chosen(at(progress)) == expected


@pytest.mark.parametrize("style", [0.0, 1000.0])
def test_the_loser_everywhere_does_not_act(base: BaseModel, style: float):
    """With a weight of nothing for the style the picture is the content's, and the other way round."""
    adapters = [lora(base, 1, targets={"unet": r".*"}), lora(base, 2, targets={"unet": r".*"})]
    strategy = {"name": "k-lora", "alpha": 0.0, "beta": style}
    compiled = compiled_for(base, adapters, strategy, entries=[{"strength": 0.7}, {"role": "style", "strength": 0.7}])
    with torch.no_grad(), patched(base.components(), [Route(adapters[1 if style else 0], 0.7)]):
        alone = draw_latents(base, compiled.scene.request)
    torch.testing.assert_close(latents_of(compiled), alone, rtol=0, atol=0)


def test_layers_of_one_alone_are_its_own_and_types_mix(base: BaseModel):
    adapters = [kronecker(base, 1), lora(base, 2, targets=ATTENTION)]
    strategy = strategy_for(base, adapters)
    owners = dict(strategy.chosen(at(1.0)))
    content, style = ({path for path in adapter.patches if path.component == "unet"} for adapter in adapters)
    assert owners.keys() == content | style
    assert all(owners[path] == 0 for path in content - style) and all(owners[path] == 1 for path in style - content)
    assert torch.isfinite(drawn(base, adapters, "k-lora", entries=STYLE)).all()


def test_who_is_for_the_style(base: BaseModel):
    adapters = [lora(base, n, targets=ATTENTION) for n in range(3)]
    said = content_and_style(scene_for(base, adapters, entries=[{"role": "style"}, {}, {}]).concepts, "k-lora")
    assert [len(said.content), len(said.style), len(said.notes)] == [2, 1, 0]
    guessed = compiled_for(base, adapters, "k-lora")
    assert any("entry 3 (3) is taken for it" in note for note in guessed.notes)
    alone = content_and_style(scene_for(base, adapters[:1]).concepts, "k-lora")
    assert (len(alone.content), len(alone.style), alone.notes) == (1, 0, ())
