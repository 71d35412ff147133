"""Routes confined to a part of the canvas."""

import pytest
import torch

from studio.pipelines.adapters import Adapter, AdapterInfo, LoRAPatch, ParameterPath, Route, find_module, patched
from studio.pipelines.adapters.routing import token_grid
from studio.pipelines.families import module_axis
from tests.support.adapters import TINY_MODELS, random_adapter


@pytest.fixture(params=["sd15", "sdxl"])
def model(request):
    """Convolutional and linear projections."""
    return TINY_MODELS[request.param]()


def run(model, height=8, width=16):
    with torch.no_grad():
        return model.unet(**model.unet_inputs(height=height, width=width)).sample


def left_half(height=64, width=128):
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1.0
    return mask


def single(model, module):
    """A LoRA of rank one on one layer."""
    shape = find_module(model.unet, module).weight.shape
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(1, *shape[1:], generator=generator)
    patch = LoRAPatch(down, torch.ones((shape[0], 1, 1, 1)[: len(shape)]), 1.0)
    return Adapter(AdapterInfo(name="single"), {ParameterPath("unet", module): patch})


def test_a_mask_of_ones_is_no_mask_wherever_a_place_is_meant(model):
    adapter = random_adapter(model, targets={"unet": r".*(attn1.*|to_q|to_out\.0|proj_in|proj_out|ff\..*|conv1|conv_shortcut)"})
    with patched(model.components(), [Route(adapter)]):
        expected = run(model)
    with patched(model.components(), [Route(adapter, mask=torch.ones(64, 128))]) as router:
        torch.testing.assert_close(run(model), expected, atol=2e-6, rtol=1e-5)
    assert router.report() == ()


@pytest.mark.parametrize("kind", ["convolution", "tokens"])
def test_only_the_masked_places_of_a_layer_change(model, kind):
    attention = "mid_block.attentions.0"
    module = "conv_in" if kind == "convolution" else f"{attention}.transformer_blocks.0.attn1.to_v"
    layer, captured = find_module(model.unet, module), []
    handle = layer.register_forward_hook(lambda module, arguments, output: captured.append(output))
    run(model)
    with patched(model.components(), [Route(single(model, module), mask=left_half())]):
        run(model)
    handle.remove()
    change = captured[1] - captured[0]
    if kind == "tokens":
        height, width = token_grid(change.shape[1], 64, 128)
        change = change.transpose(1, 2).reshape(change.shape[0], -1, height, width)
    half = change.shape[-1] // 2
    assert (change[..., :half].abs().amax(1) > 0).all()
    assert (change[..., half:] == 0).all()


def test_masks_that_sum_to_one_share_an_adapter_out(model):
    adapter = random_adapter(model, targets={"unet": r".*(attn1.*|proj_in|conv1)"})
    soft = torch.rand(60, 120, generator=torch.Generator().manual_seed(0))  # no multiple of any grid
    with patched(model.components(), [Route(adapter)]):
        whole = run(model)
    with patched(model.components(), [Route(adapter, mask=soft), Route(adapter, mask=1 - soft)]):
        torch.testing.assert_close(run(model), whole, atol=5e-6, rtol=1e-5)


def test_modules_without_a_place_are_left_out_and_named(model):
    targets = {"unet": r".*(attn[12]\.to_.*|time_emb_proj)|time_embedding\.linear_1", "text_encoder": r".*q_proj"}
    adapter = random_adapter(model, targets=targets)
    with patched(model.components(), [Route(adapter, mask=left_half())]) as router:
        run(model)
    reasons = {line.path: line.reason for line in router.report()}
    without_place = {path for path in adapter.patches if path.component != "unet" or module_axis(path.module) != "spatial"}
    assert set(reasons) == without_place
    assert "words, not places" in reasons[next(path for path in reasons if path.module.endswith("attn2.to_k"))]
    assert "whole picture" in reasons[next(path for path in reasons if path.module.endswith("time_emb_proj"))]
    assert "a prompt's" in reasons[next(path for path in reasons if path.component == "text_encoder")]


def test_rows_and_a_mask_multiply(model):
    adapter = random_adapter(model, targets={"unet": r".*attn1.*"})
    with patched(model.components(), [Route(adapter, mask=left_half())]):
        masked = run(model)
    with patched(model.components(), [Route(adapter, mask=left_half(), rows=torch.tensor([True, False]))]):
        first_row = run(model)
    torch.testing.assert_close(first_row[0], masked[0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(first_row[1], run(model)[1], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("height", "width"),
    [(512, 512), (512, 768), (768, 512), (1024, 1024), (832, 1216), (1536, 640), (520, 512), (96, 96), (136, 1024)],
)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_grid_of_tokens_is_the_unets(height, width, level):
    rows, columns = height // 8, width // 8
    for _ in range(level):  # each downsampler is a convolution of stride 2 with padding 1
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    assert token_grid(rows * columns, height, width) == (rows, columns)


def test_a_mask_of_another_aspect_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="aspect of a 512×64 mask"):
        token_grid(64, 512, 64)


@pytest.mark.parametrize(
    "settings",
    [{"mask": torch.ones(3)}, {"rows": torch.ones(2, 2)}, {"strength": torch.ones(2, 2)}],
)
def test_routes_of_the_wrong_shape_are_refused(settings):
    with pytest.raises(ValueError, match="shape"):
        Route(Adapter(AdapterInfo(name="x"), {}), **settings)
