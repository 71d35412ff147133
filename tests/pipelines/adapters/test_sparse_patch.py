"""Sparse changes of weights: which base they fit, how they act alone, in regions and with others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from studio.pipelines.adapters import Adapter, AdapterInfo, DoRAPatch, LoRAPatch, ParameterPath, Route, SparsePatch, patched
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.errors import AdapterMismatchError
from tests.support.adapters import TINY_MODELS, random_adapter
from tests.support.sparse import sparse_adapter, sparse_of


def weight_only(patch: SparsePatch) -> SparsePatch:
    return replace(patch, indices=None)


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_copies_of_the_base_in_half_precision_are_the_base(layer: nn.Linear, dtype: torch.dtype):
    patch = sparse_of(layer.weight)
    expected = patch.bind(layer.weight, layer_spec(layer)).delta()
    half = layer.to(dtype)
    assert torch.equal(patch.bind(half.weight, layer_spec(half)).delta(), expected)
    other = SparsePatch(patch.values, patch.shape, patch.indices, base=BaseSamples.of(half.weight))  # trained on the copy
    other.bind(half.float().weight, layer_spec(half))


def test_another_base_is_refused_by_the_tensors_name_and_the_bases(layer: nn.Linear):
    adapter = Adapter(AdapterInfo(name="mine"), {ParameterPath("unet", "layer"): sparse_of(layer.weight)})
    other = nn.Linear(64, 48).requires_grad_(False)
    with pytest.raises(AdapterMismatchError, match=r"'mine' does not fit unet\.layer\.weight.*base model 'sd15'.*64 samples"):
        with patched({"unet": nn.ModuleDict({"layer": other})}, [Route(adapter)]):
            pass
    finetuned = nn.Linear(64, 48).requires_grad_(False)
    finetuned.weight.copy_(layer.weight * (1 + 0.03 * torch.randn_like(layer.weight)))
    with pytest.raises(AdapterMismatchError):
        sparse_of(layer.weight).bind(finetuned.weight, layer_spec(finetuned))
    with pytest.raises(AdapterMismatchError, match="does not fit one of shape"):
        sparse_of(layer.weight).bind(nn.Linear(48, 64).weight, layer_spec(layer))


def test_values_alone_find_their_positions_in_the_base_they_were_trained_on(layer: nn.Linear):
    patch = sparse_of(layer.weight)
    bare = weight_only(patch)
    spec = layer_spec(layer)
    assert torch.equal(bare.bind(layer.weight, spec).delta(), patch.bind(layer.weight, spec).delta())
    assert torch.equal(bare.with_indices(layer.weight).indices, patch.indices)
    assert bare.settings() == patch.settings()
    coarse = layer.to(torch.bfloat16)  # other weights round to below θ
    with pytest.raises(AdapterMismatchError, match="precision it was trained in"):
        bare.bind(coarse.weight, spec)
    patch.bind(coarse.weight, spec)


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [([0, 2, 1], "not sorted"), ([0, 1, 1], "twice"), ([0, 1, 12], "outside"), ([0, 1], "3 values for 2 positions")],
)
def test_impossible_positions_are_refused(indices: list[int], sentence: str):
    with pytest.raises(AdapterMismatchError, match=sentence):
        SparsePatch(torch.ones(3), (3, 4), torch.tensor(indices, dtype=torch.int32))


def test_a_whole_route_costs_no_second_product_and_touches_no_parameter(layer: nn.Linear, monkeypatch: pytest.MonkeyPatch):
    patch = sparse_of(layer.weight)
    model = nn.ModuleDict({"layer": layer})
    before, x = layer.weight.clone(), torch.randn(5, 64)
    expected = torch.nn.functional.linear(x, layer.weight + 0.5 * patch.bind(layer.weight, layer_spec(layer)).delta(), layer.bias)
    products = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *inputs: products.append(None) or linear(*inputs))
    with patched({"unet": model}, [Route(Adapter(AdapterInfo(name="x"), {ParameterPath("unet", "layer"): patch}), 0.5)]):
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer.weight, before)
        assert len(products) == 1


@pytest.mark.parametrize("other", ["lora", "dora", "sparse"])
@pytest.mark.parametrize("nested", [False, True])
def test_it_adds_up_with_others_against_the_original_weight(layer: nn.Linear, other: str, nested: bool):
    """ΔW of each against the base's weight, whatever comes first and however they are opened."""
    torch.manual_seed(1)
    lora = LoRAPatch(torch.randn(2, 64), 0.1 * torch.randn(48, 2), 2.0)
    second = {"lora": lora, "dora": DoRAPatch(lora, 0.5 + torch.rand(48)), "sparse": sparse_of(layer.weight, scale=0.7)}[other]
    patches = [sparse_of(layer.weight), second]
    spec, x = layer_spec(layer), torch.randn(5, 64)
    deltas = [patch.bind(layer.weight, spec).delta() for patch in patches]
    expected = torch.nn.functional.linear(x, layer.weight + deltas[0] + 0.5 * deltas[1], layer.bias)
    path, model = ParameterPath("unet", "layer"), {"unet": nn.ModuleDict({"layer": layer})}
    routes = [Route(Adapter(AdapterInfo(name="x"), {path: patch}), s) for patch, s in zip(patches, (1.0, 0.5), strict=True)]
    for order in (routes, routes[::-1]):
        if nested:
            with patched(model, order[:1]), patched(model, order[1:]):
                ours = layer(x)
        else:
            with patched(model, order):
                ours = layer(x)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_changes_of_everything_add_up_in_norms_and_biases_too():
    model = TINY_MODELS["sd15"]()
    first = sparse_adapter(model, everything=True)
    second = replace(first, patches={path: replace(patch, values=-2 * patch.values) for path, patch in first.patches.items()})
    inputs = model.unet_inputs()
    with patched(model.components(), [Route(first, -1.0)]):
        expected = model.unet(**inputs).sample
    with patched(model.components(), [Route(first), Route(second)]) as router:
        torch.testing.assert_close(model.unet(**inputs).sample, expected, atol=1e-5, rtol=1e-4)
    assert router.report() == ()


@torch.no_grad()
def test_rows_and_regions_reach_layers_and_leave_out_norms_and_biases_with_a_reason():
    model = TINY_MODELS["sd15"]()
    adapter = sparse_adapter(model, everything=True)
    routable = {path for path in adapter.patches if path.parameter == "weight" and "norm" not in path.module}
    with patched(model.components(), [Route(adapter, rows=torch.tensor([True, False]))]) as router:
        half = model.unet(**model.unet_inputs()).sample
    reasons = {left.path: left.reason for left in router.report()}
    assert set(adapter.patches) - routable == set(reasons)
    assert all("whole batches only" in reason for reason in reasons.values())
    assert any("GroupNorm's bias" in reason for reason in reasons.values())
    base = model.unet(**model.unet_inputs()).sample
    assert torch.equal(half[1], base[1]) and not torch.equal(half[0], base[0])


@torch.no_grad()
def test_it_stands_beside_a_lora_in_a_whole_model():
    model = TINY_MODELS["embedded"]()
    lora, sparse = random_adapter(model), sparse_adapter(model)
    outputs = []
    for routes in ([Route(lora), Route(sparse)], [Route(sparse), Route(lora)]):
        with patched(model.components(), routes):
            outputs.append(model.unet(**model.unet_inputs()).sample)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
