"""One file, two readers: our runtime and the real diffusers draw the same."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studio.pipelines.adapters import Adapter, LoRAPatch, Route, find_module, load_adapter, patched, save_adapter
from studio.pipelines.adapters.serialization.kohya_names import ldm_name
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
@pytest.mark.parametrize(
    ("dialect", "scales"),
    [
        *((dialect, scales) for dialect in ("peft", "kohya") for scales in ("alpha is half the rank", "mixed ranks", "rslora")),
        ("peft", "mixed alphas"),  # diffusers reads kohya files with several alphas wrongly; see the test of the formula below
    ],
)
def test_a_lora_with_convolutions_and_all_text_encoders(family, dialect, scales, tmp_path):
    make_model = TINY_MODELS[family]
    model = make_model()
    adapter = {
        "alpha is half the rank": lambda: random_adapter(model),
        "mixed ranks": lambda: mixed_ranks(model, mixed_alphas=False),
        "mixed alphas": lambda: mixed_ranks(model),
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
@pytest.mark.parametrize("dora", [False, True])
def test_a_kohya_file_is_the_closed_formula(family, dora, tmp_path):
    """Of what diffusers gets wrong without an error: it drops `dora_scale`, and gives most layers one of several alphas.

    (0.42: attention's alphas keep names that fit no module, so they all become the most frequent one.)
    """
    make_model = TINY_MODELS[family]
    model = make_model()
    path = tmp_path / "adapter.safetensors"
    save_adapter(mixed_ranks(model, dora=dora), path, "kohya")
    file, read = {key: tensor.float() for key, tensor in load_file(path).items()}, load_adapter(path)
    assert len(file) == (4 if dora else 3) * len(read.patches)
    with torch.no_grad():
        for component, module, _ in read.patches:
            key = kohya_key(component, module, family)
            weight = find_module(model.components()[component], module).weight
            down, up = file.pop(f"{key}.lora_down.weight"), file.pop(f"{key}.lora_up.weight")
            scale = file.pop(f"{key}.alpha") / len(down)
            changed = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            if dora:
                norm = changed.pow(2).sum(tuple(range(1, weight.ndim)), keepdim=True).sqrt()
                changed = file.pop(f"{key}.dora_scale") * changed / norm
            weight.copy_(changed)
    assert file == {}
    assert_same(outputs(model), ours(make_model, read))


def kohya_key(component: str, module: str, family: str) -> str:
    """A module's name in kohya files."""
    facts = family_named(family)
    if component == "unet":
        return "lora_unet_" + ldm_name(module, facts).replace(".", "_")
    prefix = next(each.kohya_prefix for each in facts.text_encoders if each.component == component)
    return f"{prefix}_{module.replace('.', '_')}"


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
