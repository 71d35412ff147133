"""The formulas of single patches, on single layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from studio.pipelines.adapters import DoRAPatch, LoRAPatch
from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.errors import AdapterMismatchError

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (3, 6)),
    "3×3": (lambda: nn.Conv2d(6, 5, 3, padding=1), (3, 6, 8, 7)),
    "1×1": (lambda: nn.Conv2d(6, 5, 1), (3, 6, 8, 7)),
    "strided": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 7)),
    "dilated": (lambda: nn.Conv2d(6, 5, 3, dilation=2), (3, 6, 8, 7)),
    "oblong": (lambda: nn.Conv2d(6, 5, (3, 1), stride=(2, 1), padding=(1, 0)), (3, 6, 8, 7)),
    "same": (lambda: nn.Conv2d(6, 5, 3, padding="same"), (3, 6, 8, 7)),
}


def make_layer(name):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    return build().requires_grad_(False), torch.randn(shape)


def make_lora(layer, rank=3, alpha=1.5, **settings):
    weight = layer.weight
    up_shape = (weight.shape[0], rank, 1, 1)[: weight.ndim]
    return LoRAPatch(torch.randn(rank, *weight.shape[1:]), torch.randn(up_shape), alpha, **settings)


def run(layer, weight, x, bias=None):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_fast_path_has_the_effect_of_the_dense_change(name, kind):
    layer, x = make_layer(name)
    patch = make_lora(layer)
    if kind == "dora":
        patch = DoRAPatch(patch, 0.5 + torch.rand(5))
    bound = patch.bind(layer.weight, layer_spec(layer))
    base_out = run(layer, layer.weight, x)
    expected = run(layer, layer.weight + bound.delta(), x) - base_out
    torch.testing.assert_close(bound.forward_delta(x, base_out), expected, atol=1e-5, rtol=1e-5)


def test_the_scale_is_alpha_over_rank_and_not_its_square():
    layer, _ = make_layer("linear")
    patch = make_lora(layer, rank=4, alpha=1.0)
    delta = patch.bind(layer.weight, layer_spec(layer)).delta()
    torch.testing.assert_close(delta, 0.25 * patch.up @ patch.down)


def test_rslora_divides_by_the_root_of_the_rank():
    layer, _ = make_layer("linear")
    patch = make_lora(layer, rank=4, alpha=1.0, use_rslora=True)
    torch.testing.assert_close(patch.bind(layer.weight, layer_spec(layer)).delta(), 0.5 * patch.up @ patch.down)


@pytest.mark.parametrize("name", ["linear", "3×3"])
def test_dora_is_the_closed_formula(name):
    layer, _ = make_layer(name)
    lora, magnitude = make_lora(layer), torch.rand(5) + 0.5
    changed = layer.weight + lora.bind(layer.weight, layer_spec(layer)).delta()
    axes = tuple(range(1, changed.ndim))
    norm = changed.pow(2).sum(axes, keepdim=True).sqrt()
    expected = magnitude.reshape(norm.shape) * changed / norm - layer.weight
    delta = DoRAPatch(lora, magnitude).bind(layer.weight, layer_spec(layer)).delta()
    torch.testing.assert_close(delta, expected)


@pytest.mark.parametrize("norm_gradient", ["detached", "exact"])
def test_dora_gradients_are_those_of_the_formula(norm_gradient):
    layer, x = make_layer("linear")
    lora, magnitude = make_lora(layer), torch.rand(5) + 0.5
    tensors = [tensor.clone().requires_grad_() for tensor in (lora.down, lora.up, magnitude)]
    patch = DoRAPatch(LoRAPatch(tensors[0], tensors[1], lora.alpha), tensors[2], norm_gradient)
    target = torch.randn(3, 7, 5)

    base_out = run(layer, layer.weight, x)
    fast = patch.bind(layer.weight, layer_spec(layer)).forward_delta(x, base_out)
    ours = torch.autograd.grad((fast * target).sum(), tensors)

    changed = layer.weight + lora.alpha / lora.rank * tensors[1] @ tensors[0]
    norm = changed.norm(dim=1, keepdim=True)
    norm = norm.detach() if norm_gradient == "detached" else norm
    dense = tensors[2][:, None] * changed / norm - layer.weight
    reference = torch.autograd.grad((F.linear(x, dense) * target).sum(), tensors)
    for gradient, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_a_frozen_dora_computes_its_norm_once_and_a_trained_one_every_time():
    layer, x = make_layer("linear")
    base_out = run(layer, layer.weight, x)
    patch = DoRAPatch(make_lora(layer), torch.rand(5) + 0.5)
    bound = patch.bind(layer.weight, layer_spec(layer))
    before = bound.forward_delta(x, base_out)
    patch.magnitude.mul_(2)
    assert torch.equal(bound.forward_delta(x, base_out), before)

    patch.magnitude.requires_grad_()
    bound = patch.bind(layer.weight, layer_spec(layer))
    before = bound.forward_delta(x, base_out)
    with torch.no_grad():
        patch.magnitude.mul_(2)
    assert not torch.equal(bound.forward_delta(x, base_out), before)


def test_a_float32_adapter_on_a_bfloat16_layer_computes_in_bfloat16():
    layer, x = make_layer("linear")
    layer, x = layer.bfloat16(), x.bfloat16()
    patch = make_lora(layer)
    bound = patch.bind(layer.weight, layer_spec(layer))
    effect = bound.forward_delta(x, layer(x))
    assert effect.dtype == torch.bfloat16
    assert bound.delta().dtype == torch.float32
    torch.testing.assert_close(effect.float(), F.linear(x.float(), bound.delta()), atol=0.3, rtol=0.03)


def test_factors_of_a_1x1_convolution_fit_a_linear_layer_and_the_other_way_round():
    linear, convolution = nn.Linear(6, 5), nn.Conv2d(6, 5, 1)
    flat = LoRAPatch(torch.randn(3, 6), torch.randn(5, 3), 3.0)
    deep = LoRAPatch(flat.down[..., None, None], flat.up[..., None, None], 3.0)
    delta = flat.bind(linear.weight, layer_spec(linear)).delta()
    torch.testing.assert_close(deep.bind(linear.weight, layer_spec(linear)).delta(), delta)
    torch.testing.assert_close(flat.bind(convolution.weight, layer_spec(convolution)).delta(), delta[..., None, None])


@pytest.mark.parametrize(
    ("down", "up"),
    [((3, 7), (5, 3)), ((3, 6), (4, 3)), ((3, 6, 3, 3), (5, 3, 1, 1)), ((3, 2, 3, 1), (5, 3, 1, 1))],
)
def test_factors_of_another_shape_are_refused(down, up):
    layer = nn.Linear(6, 5)
    with pytest.raises(AdapterMismatchError, match=r"do not fit a weight of shape \[5, 6\]"):
        LoRAPatch(torch.zeros(down), torch.zeros(up), 1.0).bind(layer.weight, layer_spec(layer))


@pytest.mark.parametrize(("down", "up"), [((3, 6), (5, 2)), ((0, 6), (5, 0)), ((6,), (5, 3)), ((3, 6, 1, 1), (5, 3, 3, 3))])
def test_factors_that_do_not_fit_each_other_are_refused(down, up):
    with pytest.raises(AdapterMismatchError, match="LoRA factors"):
        LoRAPatch(torch.zeros(down), torch.zeros(up), 1.0)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(6, 6, 3, groups=2), "2 groups"),
        (nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), "'circular' padding"),
        (nn.LayerNorm(6), "this is a LayerNorm"),
    ],
)
def test_layers_that_cannot_carry_a_lora_are_refused(layer, words):
    with pytest.raises(AdapterMismatchError, match=words):
        LoRAPatch(torch.zeros(3, 6, 3, 3), torch.zeros(6, 3, 1, 1), 1.0).bind(layer.weight, layer_spec(layer))
