"""Any adapter as a LoRA or as full differences: what is kept, and what it says about it."""

import math

import pytest
import torch
from torch import nn

from studio.pipelines.adapters import Adapter, AdapterInfo, DoRAPatch, FullPatch, LoRAPatch, ParameterPath, Patch, Route, patched
from studio.pipelines.adapters.conversion import dense_change, to_full, to_lora
from studio.pipelines.adapters.spectrum import spectrum_of_matrix, spectrum_of_product
from studio.pipelines.errors import AdapterMismatchError, UserError
from tests.support.adapters import mixed_ranks
from tests.support.tiny_models import tiny_sdxl

PLACE = ParameterPath("unet", "layer")
SHAPES = {"linear": (12, 10), "3×3": (6, 5, 3, 3), "1×1": (6, 5, 1, 1)}


def adapter_of(patch: Patch) -> Adapter:
    return Adapter(AdapterInfo(name="x"), {PLACE: patch})


def change(adapter: Adapter) -> torch.Tensor:
    return dense_change(adapter.patches[PLACE], PLACE, None, "x")


@pytest.fixture(params=SHAPES)
def full(request) -> Adapter:
    torch.manual_seed(0)
    return adapter_of(FullPatch(torch.randn(SHAPES[request.param])))


def test_without_a_limit_it_is_exact(full):
    converted = to_lora(full)
    torch.testing.assert_close(change(converted.adapter), change(full), atol=1e-5, rtol=1e-5)
    assert converted.relative_error < 1e-6
    assert converted.energy == pytest.approx(1.0)
    assert converted.adapter.info.type == "lora"


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_gives_the_best_approximation_and_its_true_error(full, rank):
    converted = to_lora(full, rank=rank)
    delta, kept = change(full).flatten(1), change(converted.adapter).flatten(1)
    values = torch.linalg.svdvals(delta)
    best = values[rank:].norm() / values.norm()
    assert ((delta - kept).norm() / delta.norm()).item() == pytest.approx(best.item(), rel=1e-4)
    assert converted.layers[PLACE].relative_error == pytest.approx(best.item(), rel=1e-4)
    assert converted.relative_error == converted.layers[PLACE].relative_error
    assert converted.energy == pytest.approx(1 - best.item() ** 2, rel=1e-4)
    assert converted.adapter.patches[PLACE].parameters()["down"].shape[0] == rank


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_an_energy_takes_the_smallest_rank_that_keeps_it(full, energy):
    fit = to_lora(full, energy=energy).layers[PLACE]
    assert fit.energy >= energy - 1e-9
    assert fit.rank == 1 or to_lora(full, rank=fit.rank - 1).energy < energy
    assert to_lora(full, energy=energy, rank=2).layers[PLACE].rank == min(2, fit.rank)


def test_the_error_of_all_layers_weighs_them_by_their_size():
    torch.manual_seed(0)
    small, large = torch.eye(4), 10 * torch.eye(4)
    patches = {
        ParameterPath("unet", "small"): FullPatch(small),
        ParameterPath("unet", "large"): LoRAPatch(large, torch.eye(4), 4.0),
    }
    converted = to_lora(Adapter(AdapterInfo(name="x"), patches), rank=3)
    assert [fit.relative_error for fit in converted.layers.values()] == [pytest.approx(0.5)] * 2
    assert converted.relative_error == pytest.approx(0.5)
    converted = to_lora(
        Adapter(AdapterInfo(name="x"), {**patches, ParameterPath("unet", "huge"): FullPatch(torch.ones(40, 40))}), rank=3
    )
    lost = (1 + 100) / (4 + 400 + 1600)
    assert converted.relative_error == pytest.approx(math.sqrt(lost), rel=1e-6)


def test_a_lora_stays_what_it_is_and_can_be_cut_without_its_dense_matrix():
    torch.manual_seed(0)
    patch = LoRAPatch(torch.randn(4, 10), torch.randn(12, 4), 2.0, use_rslora=True)
    assert to_lora(adapter_of(patch)).adapter.patches[PLACE] is patch
    converted = to_lora(adapter_of(patch), rank=2)
    values = torch.linalg.svdvals(change(adapter_of(patch)))
    assert converted.relative_error == pytest.approx((values[2:].norm() / values.norm()).item(), rel=1e-4)
    difference = change(converted.adapter) - change(adapter_of(patch))
    assert (difference.norm() / values.norm()).item() == pytest.approx(converted.relative_error, rel=1e-4)


def test_a_change_of_nothing_is_a_lora_that_changes_nothing():
    converted = to_lora(adapter_of(FullPatch(torch.zeros(4, 3))), energy=0.9)
    assert (converted.relative_error, converted.layers[PLACE].rank) == (0.0, 1)
    assert change(converted.adapter).abs().max() == 0


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_whole_adapter_draws_the_same_as_full_differences_and_as_an_exact_lora(kind):
    model = tiny_sdxl()
    adapter = mixed_ranks(model, dora=kind == "dora")

    def drawn(each: Adapter) -> torch.Tensor:
        with torch.no_grad(), patched(model.components(), [Route(each, 0.7)]):
            return model.unet(**model.unet_inputs()).sample

    expected = drawn(adapter)
    for other in (to_full(adapter, components=model.components()), to_lora(adapter, components=model.components()).adapter):
        torch.testing.assert_close(drawn(other), expected, atol=5e-5, rtol=1e-4)
    assert set(to_full(adapter, components=model.components()).kinds()) == {"full"}


def test_what_cannot_be_is_refused_with_the_reason():
    dora = adapter_of(DoRAPatch(LoRAPatch(torch.ones(1, 3), torch.ones(4, 1), 1.0), torch.ones(4)))
    with pytest.raises(AdapterMismatchError, match="without the base model; name it with --base"):
        to_lora(dora)
    with pytest.raises(AdapterMismatchError, match="has no unet"):
        to_full(dora, components={"text_encoder": nn.Linear(3, 4)})
    bias = Adapter(AdapterInfo(name="x"), {PLACE._replace(parameter="bias"): FullPatch(torch.ones(4))})
    with pytest.raises(UserError, match=r"unet\.layer\.bias.*export --format diff"):
        to_lora(bias)
    assert to_full(bias).content_hash() == bias.content_hash()
    with pytest.raises(UserError, match="norm.weight, a parameter of shape"):
        to_lora(Adapter(AdapterInfo(name="x"), {ParameterPath("unet", "norm"): FullPatch(torch.ones(4))}))
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(UserError, match=r"rank is at least 1|between 0 and 1"):
            to_lora(dora, **wrong)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_spectrum_of_a_product_is_that_of_the_matrix(rank):
    torch.manual_seed(0)
    left, right = torch.randn(5, rank), torch.randn(rank, 6)
    ours, expected = spectrum_of_product(left, right), spectrum_of_matrix(left @ right)
    common = min(len(ours.values), len(expected.values), rank)
    torch.testing.assert_close(ours.values[:common], expected.values[:common], atol=1e-5, rtol=1e-5)
    one, two = ours.factors(common)
    torch.testing.assert_close((one * ours.values[:common]) @ two, (left @ right).double(), atol=1e-5, rtol=1e-5)
