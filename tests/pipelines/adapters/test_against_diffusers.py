"""One file, two readers: our runtime and the real diffusers draw the same."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studio.pipelines.adapters import Adapter, DoRAPatch, LoRAPatch, Route, find_module, load_adapter, patched, save_adapter
from studio.pipelines.families import family_named
from tests.support.adapters import TINY_MODELS, mixed_ranks, random_adapter
from tests.support.tiny_models import TinyModel


def outputs(model: TinyModel) -> list[torch.Tensor]:
    ids = model.token_ids()
    with torch.no_grad():
        texts = [tensor for encoder in model.text_encoders for tensor in encoder(ids, output_hidden_states=True).hidden_states]
        return [model.unet(**model.unet_inputs()).sample, *texts]


def ours(make_model, adapter: Adapter) -> list[torch.Tensor]:
    model = make_model()
    with patched(model.components(), [Route(adapter)]) as router:
        drawn = outputs(model)
    assert router.report() == ()
    return drawn


def theirs(make_model, path: Path) -> tuple[list[torch.Tensor], int]:
    """Outputs after diffusers loaded the file, and how many adapter tensors it put into the model."""
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.pipeline().load_lora_weights(path.parent, weight_name=path.name)
    num_loaded = sum("lora_" in name for part in model.components().values() for name, _ in part.named_parameters())
    return outputs(model), num_loaded


def assert_same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("dialect", ["peft", "kohya"])
@pytest.mark.parametrize("scales", ["alpha is half the rank", "mixed", "rslora"])
def test_a_lora_with_convolutions_and_all_text_encoders(family, dialect, scales, tmp_path):
    make_model = TINY_MODELS[family]
    model = make_model()
    adapter = {
        "alpha is half the rank": lambda: random_adapter(model),
        "mixed": lambda: mixed_ranks(model),
        "rslora": lambda: random_adapter(model, use_rslora=True),
    }[scales]()
    path = tmp_path / "adapter.safetensors"
    save_adapter(adapter, path, dialect)

    read = load_adapter(path)
    num_weights = sum(not key.endswith(".alpha") for key in load_file(path))
    expected, base = ours(make_model, read), outputs(make_model())
    drawn, num_loaded = theirs(make_model, path)
    assert num_loaded == num_weights == len(read.named_tensors())
    assert_same(drawn, expected)
    assert all((one - other).abs().max() > 0.01 for one, other in ((drawn[0], base[0]), (drawn[-1], base[-1])))
    # And the file is the adapter, but for its float16.
    for one, other in zip(ours(make_model, adapter), expected, strict=True):
        torch.testing.assert_close(one, other, atol=0.01, rtol=0)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_peft_dora(family, tmp_path):
    make_model = TINY_MODELS[family]
    path = tmp_path / "adapter.safetensors"
    save_adapter(mixed_ranks(make_model(), dora=True), path, "peft")
    read = load_adapter(path)
    assert set(read.kinds()) == {"dora"}
    drawn, num_loaded = theirs(make_model, path)
    assert num_loaded == len(load_file(path)) == len(read.named_tensors())
    assert_same(drawn, ours(make_model, read))


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_kohya_dora_is_the_closed_formula(family, tmp_path):
    """diffusers drops `dora_scale` without an error, so the reference is the formula on the file's own tensors."""
    make_model = TINY_MODELS[family]
    model = make_model()
    path = tmp_path / "adapter.safetensors"
    save_adapter(mixed_ranks(model, dora=True), path, "kohya")
    file, read = load_file(path), load_adapter(path)
    assert len(file) == 4 * len(read.patches)

    prefixes = {facts.component: facts.kohya_prefix for facts in family_named(family).text_encoders}
    for (component, module, _), patch in read.patches.items():
        assert isinstance(patch, DoRAPatch)
        if component != "unet":
            key = f"{prefixes[component]}_{module.replace('.', '_')}"
            assert torch.equal(file[f"{key}.lora_up.weight"], patch.lora.up)
    expected = ours(make_model, read)
    with torch.no_grad():
        for (component, module, _), patch in read.patches.items():
            weight = find_module(model.components()[component], module).weight
            down, up = patch.lora.down.float(), patch.lora.up.float()
            changed = weight + patch.alpha / patch.rank * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            norm = changed.flatten(1).norm(dim=1)
            weight.copy_((patch.magnitude.float() / norm).reshape(-1, *[1] * (weight.ndim - 1)) * changed)
    assert_same(outputs(model), expected)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_file_that_diffusers_wrote(family, tmp_path):
    """`save_lora_weights` with PEFT's state dicts and configurations, as diffusers' training scripts call it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    make_model = TINY_MODELS[family]
    model = make_model()
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_out.0", "conv1", "proj_in"], init_lora_weights=False)
    torch.manual_seed(0)
    model.unet.add_adapter(config)
    expected = outputs(model)
    type(model.pipeline()).save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(model.unet),
        unet_lora_adapter_metadata=model.unet.peft_config["default"].to_dict(),
    )
    read = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert set(read.alphas()) == {5.0}
    assert_same(ours(make_model, read), expected)


def test_a_file_with_the_mixed_keys_that_diffusers_reads_in_part(tmp_path):
    """`convert_state_dict_to_diffusers` leaves convolutions in PEFT's keys and renames attention: all of it counts here."""
    from safetensors.torch import save_file

    make_model = TINY_MODELS["sd15"]
    adapter = random_adapter(make_model(), rank=4, alpha=4.0)
    mixed = {}
    for (component, module, _), patch in adapter.patches.items():
        assert isinstance(patch, LoRAPatch)
        down, up = ("lora.down", "lora.up") if ".to_" in module else ("lora_A", "lora_B")
        if component == "text_encoder":
            down, up = "lora_linear_layer.down", "lora_linear_layer.up"
        mixed |= {f"{component}.{module}.{down}.weight": patch.down, f"{component}.{module}.{up}.weight": patch.up}
    path = tmp_path / "mixed.safetensors"
    save_file(mixed, path)
    read = load_adapter(path)
    assert read.content_hash() == adapter.content_hash()
    assert_same(ours(make_model, read), ours(make_model, adapter))


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_a_file_of_diffusers_before_peft(prefix, tmp_path):
    from safetensors.torch import save_file

    make_model = TINY_MODELS["sd15"]
    adapter = random_adapter(make_model(), rank=4, alpha=4.0, targets={"unet": r".*attn[12].*"})
    old = {}
    for (_, module, _), patch in adapter.patches.items():
        assert isinstance(patch, LoRAPatch)
        attention, _, leaf = module.partition(".to_")
        key = f"{prefix}{attention}.processor.to_{leaf.removesuffix('.0')}_lora"
        old |= {f"{key}.down.weight": patch.down, f"{key}.up.weight": patch.up}
    path = tmp_path / "old.safetensors"
    save_file(old, path)
    read = load_adapter(path)
    assert read.content_hash() == adapter.content_hash()
    if prefix:
        drawn, num_loaded = theirs(make_model, path)
        assert num_loaded == len(old)
        assert_same(drawn, ours(make_model, read))
