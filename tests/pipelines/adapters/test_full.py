"""Full differences: `.diff` for weights, `.diff_b` for biases, and what a norm has."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    FullPatch,
    ParameterPath,
    Route,
    load_adapter,
    merge_into,
    patched,
    save_adapter,
)
from studio.pipelines.errors import AdapterFileError, AdapterMismatchError
from tests.support.adapters import TINY_MODELS
from tests.support.tiny_models import TinyModel

PLACES = {
    "a linear layer": ParameterPath("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"),
    "its bias": ParameterPath("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", "bias"),
    "a convolution": ParameterPath("unet", "mid_block.resnets.0.conv1"),
    "a layer norm": ParameterPath("unet", "mid_block.attentions.0.transformer_blocks.0.norm1"),
    "a group norm's bias": ParameterPath("unet", "conv_norm_out", "bias"),
    "an embedding": ParameterPath("text_encoder", "text_model.embeddings.token_embedding"),
}


def full_adapter(model: TinyModel, *names: str) -> Adapter:
    """Random differences at the places named."""
    from studio.pipelines.adapters import find_module

    torch.manual_seed(0)
    patches = {}
    for path in (PLACES[name] for name in names):
        module = find_module(model.components()[path.component], path.module)
        assert module is not None
        patches[path] = FullPatch(0.5 * torch.randn(module.get_parameter(path.parameter).shape))
    return Adapter(AdapterInfo(name="full", type="full", family=model.family), patches)


def outputs(model: TinyModel) -> list[torch.Tensor]:
    with torch.no_grad():
        texts = model.text_encoders[0](model.token_ids()).last_hidden_state
        return [model.unet(**model.unet_inputs()).sample, texts]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_patched_and_merged_are_the_same_at_every_kind_of_parameter(family, name):
    model = TINY_MODELS[family]()
    adapter = full_adapter(model, name)
    base = outputs(model)
    with patched(model.components(), [Route(adapter, 0.5)]) as router:
        ours = outputs(model)
    assert router.report() == ()
    with merge_into(model.components(), adapter, 0.5):
        merged = outputs(model)
    assert any((one - other).abs().max() > 1e-4 for one, other in zip(ours, base, strict=True))
    for one, other in zip(ours, merged, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    for one, other in zip(outputs(model), base, strict=True):
        assert torch.equal(one, other)


def test_a_region_takes_weights_and_leaves_biases_and_norms_out_by_name():
    model = TINY_MODELS["sd15"]()
    adapter = full_adapter(model, *PLACES)
    with patched({"unet": model.unet}, [Route(adapter, mask=torch.ones(8, 8))]) as router:
        reasons = {line.path: line.reason for line in router.report()}
    assert PLACES["a linear layer"] not in reasons and PLACES["a convolution"] not in reasons
    assert reasons[PLACES["its bias"]] == "a change of a Linear's bias acts on whole batches only"
    assert reasons[PLACES["a layer norm"]] == "a change of a LayerNorm's weight acts on whole batches only"


@pytest.mark.parametrize("family", TINY_MODELS)
def test_files_hold_weights_biases_and_norms(family, tmp_path: Path):
    adapter = full_adapter(TINY_MODELS[family](), *PLACES)
    path = tmp_path / "full.safetensors"
    save_adapter(adapter, path, "lycoris", dtype=torch.float32)
    read = load_adapter(path)
    assert read.content_hash() == adapter.content_hash()
    assert read.info.type == "full"
    assert {key.rpartition(".")[2] for key in load_file(path)} == {"diff", "diff_b"}
    norm = "lora_unet_out_0" if family == "sdxl" else "lora_unet_conv_norm_out"
    assert f"{norm}.diff_b" in load_file(path)


def test_lycoris_own_module_makes_the_file_and_finds_the_same_change(tmp_path: Path):
    """Its `FullModule` and `NormModule`, trained a little and saved."""
    from lycoris.modules.full import FullModule
    from lycoris.modules.norms import NormModule

    torch.manual_seed(0)
    layer, norm = torch.nn.Linear(6, 5), torch.nn.GroupNorm(2, 6)
    full, normed = FullModule("x", layer), NormModule("y", norm)
    for parameter in (full.weight, full.bias, normed.w_norm, normed.b_norm):
        parameter.data.normal_()
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    file = {
        f"{module}.diff": full.weight.data.clone(),
        f"{module}.diff_b": full.bias.data.clone(),
        "lora_unet_conv_norm_out.w_norm": normed.w_norm.data.clone(),
        "lora_unet_conv_norm_out.b_norm": normed.b_norm.data.clone(),
    }
    assert {"diff", "diff_b"} == set(FullModule.weight_list) and {"w_norm", "b_norm"} == set(NormModule.weight_list)
    save_file(file, tmp_path / "x.safetensors")
    patches = load_adapter(tmp_path / "x.safetensors").patches
    path = ParameterPath("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0")
    weight, bias = full.get_diff_weight()
    assert torch.equal(patches[path].parameters()["difference"], weight)
    assert torch.equal(patches[path._replace(parameter="bias")].parameters()["difference"], bias)
    for parameter, values in zip(("weight", "bias"), normed.get_diff_weight(), strict=True):
        assert torch.equal(patches[ParameterPath("unet", "conv_norm_out", parameter)].parameters()["difference"], values)


def test_what_does_not_fit_is_refused_by_name():
    model = TINY_MODELS["sd15"]()
    for path, shape in ((PLACES["a linear layer"], (3, 3)), (PLACES["its bias"], (3,)), (PLACES["a layer norm"], (3,))):
        adapter = Adapter(AdapterInfo(name="wrong"), {path: FullPatch(torch.zeros(shape))})
        with pytest.raises(AdapterMismatchError, match="does not fit"), patched(model.components(), [Route(adapter)]):
            pass


def test_other_formats_say_that_they_cannot_hold_it(tmp_path: Path):
    adapter = full_adapter(TINY_MODELS["sd15"](), "its bias")
    for dialect in ("kohya", "peft"):
        with pytest.raises(AdapterFileError, match="full"):
            save_adapter(adapter, tmp_path / "x.safetensors", dialect)
