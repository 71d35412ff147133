"""What every kind of patch must do."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    DoRAPatch,
    FullPatch,
    KroneckerPatch,
    LoHaPatch,
    LoRAPatch,
    ParameterPath,
    Patch,
    Route,
    SparsePatch,
    patched,
)
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.adapters.patches import PATCH_TYPES, Factor


def lora(weight: torch.Tensor) -> LoRAPatch:
    up_shape = (weight.shape[0], 2, 1, 1)[: weight.ndim]
    return LoRAPatch(torch.randn(2, *weight.shape[1:]), torch.randn(up_shape), 3.0)


def dora(weight: torch.Tensor) -> DoRAPatch:
    return DoRAPatch(lora(weight), 0.5 + torch.rand(weight.shape[0]))


def full(weight: torch.Tensor) -> FullPatch:
    return FullPatch(torch.randn_like(weight))


def lokr(weight: torch.Tensor) -> KroneckerPatch:
    second = torch.randn(1, weight.shape[1] // 2, *weight.shape[2:])
    return KroneckerPatch(Factor(torch.randn(weight.shape[0], 2)), Factor(second))


def loha(weight: torch.Tensor) -> LoHaPatch:
    first, second = (Factor(a=torch.randn(weight.shape[0], 2), b=torch.randn(2, *weight.shape[1:])) for _ in range(2))
    return LoHaPatch(first, second, alpha=1.0)


def sparse(weight: torch.Tensor) -> SparsePatch:
    indices = torch.randperm(weight.numel())[: weight.numel() // 3].sort().values.to(torch.int32)
    return SparsePatch(torch.randn(len(indices)), tuple(weight.shape), indices, base=BaseSamples.of(weight))


EXAMPLES: dict[type, Callable[[torch.Tensor], Patch]] = {
    LoRAPatch: lora,
    DoRAPatch: dora,
    FullPatch: full,
    KroneckerPatch: lokr,
    LoHaPatch: loha,
    SparsePatch: sparse,
}
LAYERS = {"linear": (lambda: nn.Linear(6, 5), (2, 7, 6)), "conv2d": (lambda: nn.Conv2d(6, 5, 3, 2, 1), (2, 6, 8, 8))}
CASES = [(patch_type, layer) for patch_type in PATCH_TYPES for layer in LAYERS]


def test_every_kind_has_an_example_and_a_name_of_its_own():
    assert set(EXAMPLES) == set(PATCH_TYPES)
    assert len({patch_type.kind for patch_type in PATCH_TYPES}) == len(PATCH_TYPES)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].kind}-{case[1]}")
def case(request):
    patch_type, layer_name = request.param
    torch.manual_seed(0)
    build, shape = LAYERS[layer_name]
    layer = build().requires_grad_(False)
    return layer, EXAMPLES[patch_type](layer.weight), torch.randn(shape)


def run_changed(layer: nn.Module, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(layer, {"weight": layer.weight + delta}, (x,))


def test_the_dense_change_has_the_weights_shape_and_the_layer_is_only_read(case):
    layer, patch, _ = case
    before = layer.weight.clone()
    delta = patch.bind(layer.weight, layer_spec(layer)).delta()
    assert delta.shape == layer.weight.shape
    assert delta.dtype == torch.float32
    assert delta.abs().max() > 0
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0, 2.0])
def test_a_patched_layer_computes_with_the_changed_weight(case, strength):
    layer, patch, x = case
    adapter = Adapter(AdapterInfo(name="x"), {ParameterPath("unet", "layer"): patch})
    with patched({"unet": nn.ModuleDict({"layer": layer})}, [Route(adapter, strength)]):
        ours = layer(x)
    delta = patch.bind(layer.weight, layer_spec(layer)).delta()
    torch.testing.assert_close(ours, run_changed(layer, x, strength * delta), atol=2e-5, rtol=1e-5)


def test_gradients_of_the_fast_and_the_dense_way_are_the_same(case):
    layer, patch, x = case
    tensors = list(patch.parameters().values())
    for tensor in tensors:
        tensor.requires_grad_()
    bound = patch.bind(layer.weight, layer_spec(layer))
    target = torch.randn_like(layer(x))
    base_out = torch.func.functional_call(layer, {"bias": torch.zeros(5)}, (x,))
    fast = torch.autograd.grad((bound.forward_delta(x, base_out) * target).sum(), tensors)
    dense = torch.autograd.grad((run_changed(layer, x, bound.delta()) * target).sum(), tensors)
    for gradient, expected in zip(fast, dense, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_moving_keeps_the_values_and_the_kind(case):
    layer, patch, _ = case
    double = patch.to(dtype=torch.float64)
    assert type(double) is type(patch)
    assert {tensor.dtype for tensor in double.parameters().values()} == {torch.float64}
    assert double.num_parameters() == patch.num_parameters() == sum(tensor.numel() for tensor in patch.parameters().values())
    first, second = (each.bind(layer.weight, layer_spec(layer)).delta() for each in (patch, double))
    torch.testing.assert_close(first, second.float())


def test_the_content_hash_sees_every_tensor_and_setting(case):
    _, patch, _ = case
    adapter = Adapter(AdapterInfo(name="x"), {ParameterPath("unet", "layer"): patch})
    hashes = [adapter.content_hash()]
    for tensor in patch.parameters().values():
        tensor.view(-1)[0] += 1
        hashes.append(adapter.content_hash())
    assert len(set(hashes)) == len(hashes)
