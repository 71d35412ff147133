"""Kronecker and Hadamard patches: their formulas, their scales, and how they become LoRAs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from studio.pipelines.adapters import Adapter, AdapterInfo, Factor, KroneckerPatch, LoHaPatch, ParameterPath, Patch
from studio.pipelines.adapters.conversion import dense_change, to_full, to_lora
from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.errors import AdapterMismatchError

PLACE = ParameterPath("unet", "layer")
LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (3, 7, 12)),
    "3×3": (lambda: nn.Conv2d(12, 10, 3, stride=2, padding=1), (2, 12, 8, 7)),
    "1×1": (lambda: nn.Conv2d(12, 10, 1), (2, 12, 8, 7)),
}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


# First and second factor by their shape's sizes and kernel; ranks are chosen so that alpha / rank is not 1.
FIRSTS = {"full": lambda: Factor(random(5, 4)), "low rank": lambda: Factor(a=random(5, 2), b=random(2, 4))}
SECONDS = {
    "full": lambda *kernel: Factor(random(2, 3, *kernel)),
    "low rank": lambda *kernel: Factor(a=random(2, 3), b=random(3, 3, *kernel)),
    "Tucker": lambda *kernel: Factor(a=random(3, 2), b=random(3, 3), core=random(3, 3, *kernel)),
}


def run(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x, weight, None, layer.stride, layer.padding)


def kronecker(first: str, second: str, layer: nn.Module, **settings: object) -> KroneckerPatch:
    kernel = () if isinstance(layer, nn.Linear) else tuple(layer.weight.shape[2:])
    return KroneckerPatch(FIRSTS[first](), SECONDS[second](*kernel), **settings)


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_fast_path_has_the_effect_of_the_kronecker_product(layer_name, first, second, interleaved):
    if second == "Tucker" and layer_name == "linear":
        return
    torch.manual_seed(0)
    build, shape = LAYERS[layer_name]
    layer, x = build().requires_grad_(False), torch.randn(shape)
    patch = kronecker(first, second, layer, alpha=1.5, interleaved=interleaved)
    bound = patch.bind(layer.weight, layer_spec(layer))
    a, b = patch.first.value(), patch.second.value()
    expected = patch.scale * torch.kron(a.reshape(*a.shape, *[1] * (b.ndim - 2)), b)
    if interleaved:  # channel s·b_out + r becomes channel r·a_out + s
        expected = expected[torch.arange(10).reshape(5, 2).T.flatten()]
    torch.testing.assert_close(bound.delta(), expected, atol=1e-5, rtol=1e-5)
    assert patch.weight_shape == tuple(layer.weight.shape)
    torch.testing.assert_close(bound.forward_delta(x, torch.empty(0)), run(layer, expected, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "scale"),
    [("full", "full", 1.0), ("low rank", "full", 0.75), ("full", "low rank", 0.5), ("low rank", "low rank", 0.5)],
)
def test_the_scale_is_that_of_the_loaders(first, second, scale):
    """alpha / rank, of the second factor before the first; with two full factors alpha means nothing."""
    assert kronecker(first, second, nn.Linear(12, 10), alpha=1.5).scale == scale
    assert kronecker(first, second, nn.Linear(12, 10)).scale == 1.0


def test_it_is_no_shuffled_product():
    """The published DiffuseKronA computes neither A ⊗ B nor B ⊗ A; ours is A ⊗ B, as `torch.kron` has it."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 10)
    patch = kronecker("full", "full", layer)
    a, b = patch.first.value(), patch.second.value()
    delta = patch.bind(layer.weight, layer_spec(layer)).delta()
    assert torch.equal(delta, torch.kron(a, b))
    shuffled = KroneckerPatch(patch.first, patch.second, interleaved=True).bind(layer.weight, layer_spec(layer)).delta()
    assert not torch.allclose(shuffled, delta)
    assert not torch.allclose(shuffled, torch.kron(b, a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_half_precision_layers_and_patches(dtype, layer_name):
    torch.manual_seed(0)
    build, shape = LAYERS[layer_name]
    layer, x = build().requires_grad_(False), torch.randn(shape)
    patch = kronecker("full", "full", layer)
    bound = patch.to(dtype=dtype).bind(layer.to(dtype).weight, layer_spec(layer))
    assert bound.delta().dtype == torch.float32
    effect, expected = bound.forward_delta(x.to(dtype), torch.empty(0)), run(layer, bound.delta(), x.to(dtype).float())
    assert effect.dtype == dtype
    assert (effect.float() - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("second", SECONDS)
def test_its_lora_comes_from_the_factors_and_is_exact(kernel, interleaved, second):
    if second == "Tucker" and not kernel:
        return
    torch.manual_seed(0)
    patch = KroneckerPatch(FIRSTS["full"](), SECONDS[second](*kernel), alpha=1.0, interleaved=interleaved)
    adapter = Adapter(AdapterInfo(name="x"), {PLACE: patch})
    delta = dense_change(patch, PLACE, None, "x")
    exact = to_lora(adapter)
    torch.testing.assert_close(dense_change(exact.adapter.patches[PLACE], PLACE, None, "x"), delta, atol=1e-5, rtol=1e-5)
    assert exact.layers[PLACE].rank == torch.linalg.matrix_rank(delta.flatten(1)) <= 4 * 2
    assert exact.relative_error < 1e-6
    values = torch.linalg.svdvals(delta.flatten(1))
    for rank in (1, 3):
        cut = to_lora(adapter, rank=rank)
        kept = dense_change(cut.adapter.patches[PLACE], PLACE, None, "x")
        assert cut.relative_error == pytest.approx(((delta - kept).norm() / delta.norm()).item(), rel=1e-4)
        assert cut.relative_error == pytest.approx((values[rank:].norm() / values.norm()).item(), rel=1e-4)
    assert torch.equal(to_full(adapter).patches[PLACE].parameters()["difference"], delta)


def test_the_dense_matrix_is_not_made_for_its_lora():
    patch = KroneckerPatch(Factor(random(16, 16)), Factor(random(40, 40)))
    with FlopCounterMode(display=False) as counter:
        to_lora(Adapter(AdapterInfo(name="x"), {PLACE: patch}), rank=8)
    assert counter.get_total_flops() < 640 * 640


LOHA_FACTORS = {
    "low rank": lambda rank, *kernel: Factor(a=random(10, rank), b=random(rank, 12, *kernel)),
    "Tucker": lambda rank, *kernel: Factor(a=random(rank, 10), b=random(rank, 12), core=random(rank, rank, *kernel)),
}


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("factors", LOHA_FACTORS)
@pytest.mark.parametrize("rank", [1, 2, 4])  # 1 and 2 run as LoRAs of rank 1 and 4, 4 as the dense product
def test_loha_is_the_element_wise_product(layer_name, factors, rank):
    if factors == "Tucker" and layer_name == "linear":
        return
    torch.manual_seed(0)
    build, shape = LAYERS[layer_name]
    layer, x = build().requires_grad_(False), torch.randn(shape)
    kernel = () if isinstance(layer, nn.Linear) else tuple(layer.weight.shape[2:])
    patch = LoHaPatch(LOHA_FACTORS[factors](rank, *kernel), LOHA_FACTORS[factors](rank, *kernel), alpha=0.5)
    bound = patch.bind(layer.weight, layer_spec(layer))
    expected = 0.5 / rank * patch.first.value() * patch.second.value()
    torch.testing.assert_close(bound.delta(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bound.forward_delta(x, torch.empty(0)), run(layer, expected, x), atol=1e-4, rtol=1e-4)
    assert len(bound.running_form()) == (2 if factors == "low rank" and rank < 3 else 1)
    trained = patch.to()
    for tensor in trained.parameters().values():
        tensor.requires_grad_()
    again = trained.bind(layer.weight, layer_spec(layer))
    assert again.ready is None
    torch.testing.assert_close(again.forward_delta(x, torch.empty(0)), run(layer, expected, x), atol=1e-4, rtol=1e-4)


WRONG: dict[str, tuple] = {
    "another width": (KroneckerPatch(Factor(torch.ones(5, 4)), Factor(torch.ones(2, 2))), nn.Linear(12, 10)),
    "a kernel": (KroneckerPatch(Factor(torch.ones(5, 4)), Factor(torch.ones(2, 3, 3, 3))), nn.Linear(12, 10)),
    "no kernel": (KroneckerPatch(Factor(torch.ones(5, 4)), Factor(torch.ones(2, 3))), nn.Conv2d(12, 10, 3)),
    "groups": (KroneckerPatch(Factor(torch.ones(5, 4)), Factor(torch.ones(2, 3, 3, 3))), nn.Conv2d(12, 10, 3, groups=2)),
    "a LoHa's width": (LoHaPatch(*[Factor(a=torch.ones(10, 2), b=torch.ones(2, 9))] * 2), nn.Linear(12, 10)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_layer_of_another_shape_is_refused(name):
    patch, layer = WRONG[name]
    with pytest.raises(AdapterMismatchError, match=r"do not fit one of shape|2 groups"):
        patch.bind(layer.weight, layer_spec(layer))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Factor(torch.ones(3)),
        lambda: Factor(a=torch.ones(3, 2), b=torch.ones(3, 2)),
        lambda: Factor(a=torch.ones(2, 3), b=torch.ones(2, 4), core=torch.ones(2, 3, 3, 3)),
        lambda: KroneckerPatch(Factor(torch.ones(2, 2, 3, 3)), Factor(torch.ones(2, 2))),
        lambda: LoHaPatch(Factor(torch.ones(2, 2)), Factor(torch.ones(2, 2))),
        lambda: LoHaPatch(Factor(a=torch.ones(2, 1), b=torch.ones(1, 2)), Factor(a=torch.ones(3, 1), b=torch.ones(1, 2))),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(build):
    with pytest.raises(AdapterMismatchError):
        build()


def test_what_can_be_said_of_them_in_a_table():
    full = KroneckerPatch(Factor(random(64, 4)), Factor(random(20, 320)), alpha=1.0)
    cut = KroneckerPatch(Factor(random(16, 16)), Factor(a=random(80, 8), b=random(8, 80)), alpha=4.0)
    patches: dict[ParameterPath, Patch] = {ParameterPath("unet", "a"): full, ParameterPath("unet", "b"): cut}
    adapter = Adapter(AdapterInfo(name="x"), patches)
    assert adapter.factors() == {"16×16": 1, "64×4": 1}
    assert (adapter.ranks(), adapter.type) == ({8: 1}, "lokr")
    assert full.num_parameters() == 64 * 4 + 20 * 320
