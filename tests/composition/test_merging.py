"""Merging: exact where it says so, the papers' rules where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from studio.composition.merging import Weighted, compress, merge_by_regression, merge_exactly, merge_layers
from studio.composition.merging.regression import fused
from studio.composition.merging.rules import average, dare, magnitude, ties, trimmed
from studio.pipelines.adapters import Adapter, FullPatch, LoRAPatch, ParameterPath, load_adapter, merged_parameters, save_adapter
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.adapters.files import dialects_for
from studio.pipelines.errors import AdapterMismatchError, UserError
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.tiny_models import TinyModel, tiny_sd15

SOME = {"unet": r"mid_block\..*|down_blocks\.1\..*"}
KEY = ParameterPath("unet", "conv_norm_out", "bias")


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_sd15()


def deltas_of(model: TinyModel, adapter: Adapter) -> dict[ParameterPath, Tensor]:
    return {path: dense_change(patch, path, model.components(), "x") for path, patch in adapter.patches.items()}


def weighted_sum(model: TinyModel, parts: list[Weighted]) -> dict[ParameterPath, Tensor]:
    total: dict[ParameterPath, Tensor] = {}
    for part in parts:
        for path, delta in deltas_of(model, part.adapter).items():
            total[path] = total.get(path, torch.zeros_like(delta)) + part.strength * delta
    return total


def norm_bias(model: TinyModel, adapter: Adapter, value: float) -> Adapter:
    bias = FullPatch(torch.full_like(model.unet.conv_norm_out.bias, value))
    return Adapter(adapter.info, {**adapter.patches, KEY: bias})


@pytest.fixture(scope="module")
def mixed(model: TinyModel) -> list[Weighted]:
    """A LoRA, a LoRA of another rank, a DoRA on attention, a Kronecker adapter and a bias."""
    first, second = random_adapter(model, rank=2, seed=1), random_adapter(model, rank=4, alpha=3.0, seed=2, use_rslora=True)
    dora = random_adapter(model, rank=2, seed=3, dora=True, targets={"unet": r".*attn1\.to_q"})
    return [
        Weighted(first, 0.7),
        Weighted(norm_bias(model, second, 0.5), -0.4),
        Weighted(dora, 1.2),
        Weighted(random_kronecker(model, seed=4), 0.9),
    ]


def test_the_exact_merge_is_the_sum_of_every_type(model: TinyModel, mixed: list[Weighted], tmp_path: Path):
    merged = merge_exactly(mixed, model.components())
    expected = weighted_sum(model, mixed)
    found = deltas_of(model, merged.adapter)
    assert found.keys() == expected.keys()
    for path, delta in expected.items():
        torch.testing.assert_close(found[path], delta, atol=1e-6, rtol=1e-5)
    assert merged.relative_error == 0.0
    dialect = dialects_for(merged.adapter)[0]
    save_adapter(merged.adapter, tmp_path / "one.safetensors", dialect, dtype=torch.float32)
    again = load_adapter(tmp_path / "one.safetensors")
    weights = [merged_parameters(model.components(), adapter) for adapter in (merged.adapter, again)]
    assert all(torch.equal(weights[0][path], weights[1][path]) for path in weights[0])


def test_loras_are_stacked_not_added(model: TinyModel):
    parts = [Weighted(random_adapter(model, rank=rank, seed=rank), 0.5) for rank in (2, 3)]
    merged = merge_exactly(parts)
    stacked = [patch for patch in merged.adapter.patches.values() if isinstance(patch, LoRAPatch)]
    assert stacked and {patch.rank for patch in stacked} == {5} and {patch.scale for patch in stacked} == {1.0}
    found = deltas_of(model, merged.adapter)
    for path, delta in weighted_sum(model, parts).items():
        torch.testing.assert_close(found[path], delta, atol=1e-6, rtol=1e-5)


def test_a_stack_larger_than_the_weight_is_stored_as_the_difference(model: TinyModel):
    parts = [Weighted(random_adapter(model, rank=4, seed=seed, targets={"unet": r".*attn2\.to_k"})) for seed in range(6)]
    kinds = merge_exactly(parts).adapter.kinds()
    assert kinds.keys() == {"full", "lora"} or kinds.keys() == {"full"}


def test_compression_has_the_error_of_the_tail(model: TinyModel, mixed: list[Weighted]):
    plain = [part for part in mixed if "dora" not in part.adapter.kinds()]
    exact = merge_exactly(plain, model.components())
    small = compress(exact, 2, model.components())
    lost = total = 0.0
    expected, found = deltas_of(model, exact.adapter), deltas_of(model, small.adapter)
    for path, delta in expected.items():
        if delta.ndim < 2:
            torch.testing.assert_close(found[path], delta)
            continue
        values = torch.linalg.svdvals(delta.flatten(1).double())
        assert float((found[path] - delta).norm()) == pytest.approx(float(values[2:].square().sum().sqrt()), abs=1e-5)
        lost, total = lost + float(values[2:].square().sum()), total + float(values.square().sum())
    assert small.relative_error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert 0.05 < small.relative_error < 1
    assert {patch.rank for patch in small.adapter.patches.values() if isinstance(patch, LoRAPatch)} <= {1, 2}
    assert "Compressed to rank 2" in small.notes[0]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_experts_are_the_expert_to_the_last_bit(model: TinyModel, count: int):
    expert = random_adapter(model, rank=2, seed=1, targets=SOME)
    deltas = deltas_of(model, expert)
    for rule in ("average", "ties"):
        merged = merge_layers([Weighted(expert, 0.7)] * count, rule)  # type: ignore[arg-type]
        found = deltas_of(model, merged.adapter)
        for path, delta in deltas.items():
            if rule == "average":
                assert torch.equal(found[path], 0.7 * delta)
            torch.testing.assert_close(found[path], 0.7 * delta, rtol=1e-6, atol=1e-8)


def test_the_average_counts_those_that_leave_a_layer_alone():
    one = torch.tensor([3.0, -6.0])
    assert torch.equal(average([one], 3), torch.tensor([1.0, -2.0]))
    assert torch.equal(average([one, one, one], 3), one)


def test_ties_by_hand():
    first, second, third = torch.tensor([[4.0, 1.0, -3.0, 0.0], [-2.0, 1.0, 1.0, 0.0], [2.0, -8.0, 0.5, 0.0]])
    # Nothing trimmed: signs of the sums (4, -6, -1.5, 0); means of what agrees.
    assert ties([first, second, third], 1.0).tolist() == [3.0, -8.0, -3.0, 0.0]
    # Half of each: (4, 0, -3, 0), (-2, 1, 0, 0), (2, -8, 0, 0); ties keep the earlier number.
    assert ties([first, second, third], 0.5).tolist() == [3.0, -8.0, -3.0, 0.0]
    assert ties([first], 1.0).tolist() == first.tolist()


def test_trimming_keeps_the_largest_share():
    delta = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    kept = trimmed(delta, 0.25)
    assert int((kept != 0).sum()) == 16  # 63 / 4, rounded up
    assert float(delta[kept == 0].abs().max()) <= float(kept[kept != 0].abs().min())
    assert torch.equal(trimmed(delta, 1.0), delta)
    assert torch.equal(magnitude([delta, delta], 0.25), 2 * kept)


def test_dare_drops_by_chance_and_keeps_the_expectation():
    delta = torch.randn(40, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([dare([delta, delta], 0.4, torch.Generator().manual_seed(seed)) for seed in range(3000)])
    torch.testing.assert_close(draws.mean(dim=0), 2 * delta, atol=0.25, rtol=0)
    assert torch.equal(dare([delta], 0.4, torch.Generator().manual_seed(3)), dare([delta], 0.4, torch.Generator().manual_seed(3)))
    once = dare([delta], 0.4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(once[once != 0], delta[once != 0] / 0.4)
    assert torch.equal(dare([delta], 1.0, torch.Generator()), delta)


def test_sparse_rules_warn_and_say_how_far_they_are_from_the_sum(model: TinyModel):
    parts = [Weighted(random_adapter(model, seed=seed)) for seed in (1, 2)]
    merged = merge_layers(parts, "magnitude", density=0.3)
    assert "whole concepts get lost" in merged.notes[0]
    assert 0.1 < merged.relative_error < 1
    everything = merge_layers(parts, "magnitude")
    assert everything.relative_error == pytest.approx(0.0, abs=1e-7) and not everything.notes


def gram(seed: int, size: int, rank: int) -> Tensor:
    x = torch.randn(rank, size, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / rank


def loss(result: Tensor, deltas: list[Tensor], grams: list[Tensor]) -> float:
    gaps = [(result - delta).flatten(1).double() for delta in deltas]
    return float(sum(((gap @ one.double()) * gap).sum() for gap, one in zip(gaps, grams, strict=True)))


def test_regression_is_the_minimum():
    generator = torch.Generator().manual_seed(5)
    deltas = [torch.randn(6, 2, 3, 3, generator=generator) for _ in range(3)]
    grams = [gram(seed, 18, 40) for seed in range(3)]
    best = fused(deltas, grams, 1e-9)
    least = loss(best, deltas, grams)
    assert least < loss(torch.stack(deltas).mean(dim=0), deltas, grams)
    assert least < loss(torch.stack(deltas).sum(dim=0), deltas, grams)
    for _ in range(5):
        assert least <= loss(best + 1e-2 * torch.randn(best.shape, generator=generator), deltas, grams)


def test_regression_keeps_each_effect_where_inputs_do_not_meet():
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    one, other = basis[:, :4], basis[:, 4:]
    deltas = [torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    best = fused(deltas, [one @ one.T, other @ other.T], 1e-8)
    torch.testing.assert_close(best @ one, deltas[0] @ one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(best @ other, deltas[1] @ other, atol=1e-5, rtol=1e-5)


def test_regression_of_equal_adapters_is_the_adapter(model: TinyModel):
    adapter = random_adapter(model, rank=2, seed=1, targets=SOME)
    deltas = deltas_of(model, adapter)
    sizes = {path: delta[0].numel() for path, delta in deltas.items()}
    grams = [{path: gram(seed, size, 5) for path, size in sizes.items()} for seed in (1, 2)]
    merged = merge_by_regression([Weighted(adapter, 0.8)] * 2, grams)
    found = deltas_of(model, merged.adapter)
    for path, delta in deltas.items():
        torch.testing.assert_close(found[path], 0.8 * delta, rtol=1e-6, atol=1e-8)
    missing = merge_by_regression([Weighted(adapter)] * 2, [{}, {}])
    assert "too wide" in missing.notes[0]


def test_what_cannot_be_merged(model: TinyModel):
    one = random_adapter(model, seed=1)
    foreign = Adapter(replace(one.info, family="sdxl"), one.patches)
    with pytest.raises(AdapterMismatchError, match="different families cannot be merged: sd15, sdxl"):
        merge_exactly([Weighted(one), Weighted(foreign)])
    with pytest.raises(UserError, match="nothing to merge"):
        merge_exactly([])
    path = next(iter(one.patches))
    wide = Adapter(one.info, {path: FullPatch(torch.ones(3, 5))})
    with pytest.raises(AdapterMismatchError, match="made for different base models"):
        merge_exactly([Weighted(one), Weighted(wide)])


def test_the_merge_says_what_it_is_made_of(model: TinyModel):
    one, two = (random_adapter(model, seed=seed) for seed in (1, 2))
    one = Adapter(replace(one.info, trigger="ohwx cat"), one.patches)
    info = merge_exactly([Weighted(one, 0.5), Weighted(two)]).adapter.info
    assert info.trigger == "ohwx cat" and info.family == "sd15"
    assert info.description == "Merged (sum): random 1 at 0.5, random 2 at 1."
