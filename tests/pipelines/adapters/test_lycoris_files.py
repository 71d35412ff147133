"""LoKr, LoHa and DiffuseKronA files, against the libraries that write and read them."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    Factor,
    KroneckerPatch,
    LoHaPatch,
    ParameterPath,
    Patch,
    Route,
    load_adapter,
    patched,
    read_header,
    save_adapter,
)
from studio.pipelines.adapters.conversion import dense_change, to_full, to_lora
from studio.pipelines.errors import AdapterFileError
from studio.pipelines.families import SD15
from tests.support.adapters import TINY_MODELS, random_kronecker

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYERS = {
    ATTENTION: lambda: nn.Linear(16, 24),
    "mid_block.resnets.0.conv1": lambda: nn.Conv2d(16, 24, 3, padding=1),
    "mid_block.attentions.0.proj_in": lambda: nn.Conv2d(16, 24, 1),
}
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


def change(adapter: Adapter, module: str) -> Tensor:
    """ΔW; that of a 1×1 convolution may lack the kernel's sides."""
    path = ParameterPath("unet", module)
    delta = dense_change(adapter.patches[path], path, None, "x")
    return delta[..., None, None] if module.endswith("proj_in") and delta.ndim == 2 else delta


def lycoris_file(module: nn.Module, name: str, path: Path) -> None:
    """What LyCORIS' network writes for one module, after random values were put into it."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    state = {key: tensor.detach().clone() for key, tensor in module.custom_state_dict().items()}
    save_file({f"lora_unet_{name.replace('.', '_')}.{key}": tensor.contiguous() for key, tensor in state.items()}, path)


LOKR_CONFIGURATIONS: dict[str, dict[str, object]] = {
    "full factors": {"lora_dim": 10000, "alpha": 1},
    "low rank": {"lora_dim": 2, "alpha": 3},
    "both decomposed": {"lora_dim": 1, "alpha": 0.5, "decompose_both": True, "factor": 4},
    "Tucker": {"lora_dim": 2, "alpha": 1, "use_tucker": True},
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("configuration", LOKR_CONFIGURATIONS)
def test_a_lokr_that_lycoris_trained(layer, configuration, tmp_path):
    from lycoris.modules.lokr import LokrModule

    module = LokrModule("x", LAYERS[layer](), **LOKR_CONFIGURATIONS[configuration])
    lycoris_file(module, layer, tmp_path / "x.safetensors")
    read = load_adapter(tmp_path / "x.safetensors")
    assert read.info.type == "lokr"
    with torch.no_grad():
        expected = module.get_weight(module.shape).reshape(LAYERS[layer]().weight.shape)
    torch.testing.assert_close(change(read, layer), expected, **TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tucker", [False, True])
def test_a_loha_that_lycoris_trained(layer, tucker, tmp_path):
    from lycoris.modules.loha import LohaModule

    module = LohaModule("x", LAYERS[layer](), lora_dim=3, alpha=2, use_tucker=tucker)
    lycoris_file(module, layer, tmp_path / "x.safetensors")
    read = load_adapter(tmp_path / "x.safetensors")
    assert (read.info.type, read.ranks(), read.alphas()) == ("loha", {3: 1}, {2.0: 1})
    with torch.no_grad():
        expected = module.get_weight(module.shape).reshape(LAYERS[layer]().weight.shape)
    torch.testing.assert_close(change(read, layer), expected, **TOLERANCE)
    save_adapter(read, tmp_path / "again.safetensors", "lycoris", dtype=torch.float32, family=SD15)
    ours, theirs = load_file(tmp_path / "again.safetensors"), load_file(tmp_path / "x.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key].float()) for key in theirs)


# (a_out, a_in) on 24 × 16 channels; LyCORIS' training would never choose a rectangular one, and its functions take it.
@pytest.mark.parametrize("factors", [(4, 4), (8, 2), (2, 16), (24, 1)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_lokr_file_of_ours_in_the_hands_of_lycoris(factors, layer, dtype, tmp_path):
    from lycoris.functional.lokr import diff_weight

    torch.manual_seed(0)
    kernel = tuple(LAYERS[layer]().weight.shape[2:])
    patch = KroneckerPatch(Factor(torch.randn(factors)), Factor(torch.randn(24 // factors[0], 16 // factors[1], *kernel)))
    adapter = Adapter(AdapterInfo(name="x", family="sd15"), {ParameterPath("unet", layer): patch}).to(dtype=dtype)
    path = tmp_path / "x.safetensors"
    save_adapter(adapter, path, "lycoris", dtype=dtype)
    file = {key.rpartition(".")[2]: tensor.float() for key, tensor in load_file(path).items()}
    assert (file.keys(), float(file["alpha"])) == ({"lokr_w1", "lokr_w2", "alpha"}, 1.0)
    theirs = diff_weight(file["lokr_w1"], None, None, file["lokr_w2"], None, None, None, gamma=file["alpha"])
    torch.testing.assert_close(theirs.reshape(24, 16, *kernel), change(adapter, layer), **TOLERANCE)
    metadata = read_header(path).metadata
    assert metadata["ss_network_module"] == "lycoris.kohya"
    arguments = json.loads(metadata["ss_network_args"])
    assert arguments == {"algo": "lokr", "factor": str(min(factors)), "full_matrix": "True"}
    assert load_adapter(path).content_hash() == adapter.content_hash()


def test_decomposed_factors_are_written_in_full_with_their_scale_inside(tmp_path):
    """A1111 asks decomposed factors for their truth value and fails; with full ones nobody applies an alpha."""
    torch.manual_seed(0)
    patches: dict[ParameterPath, Patch] = {
        ParameterPath("unet", ATTENTION): KroneckerPatch(
            Factor(torch.randn(4, 4)), Factor(a=torch.randn(6, 2), b=torch.randn(2, 4)), alpha=0.5
        ),
        ParameterPath("unet", "mid_block.resnets.0.conv1"): KroneckerPatch(
            Factor(a=torch.randn(4, 1), b=torch.randn(1, 4)), Factor(torch.randn(6, 4, 3, 3)), alpha=3.0
        ),
    }
    adapter = Adapter(AdapterInfo(name="x", family="sd15"), patches)
    save_adapter(adapter, tmp_path / "x.safetensors", "lycoris", dtype=torch.float32)
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "x.safetensors")} == {"lokr_w1", "lokr_w2", "alpha"}
    read = load_adapter(tmp_path / "x.safetensors")
    for _, module, _ in patches:
        torch.testing.assert_close(change(read, module), change(adapter, module), **TOLERANCE)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_lokr_on_a_whole_unet_loads_into_diffusers(family, tmp_path):
    model, other = TINY_MODELS[family](), TINY_MODELS[family]()
    adapter = random_kronecker(model, (4, 4))
    save_adapter(adapter, tmp_path / "x.safetensors", "peft", dtype=torch.float32)
    assert load_adapter(tmp_path / "x.safetensors").content_hash() == adapter.content_hash()
    base = sample(model.unet, model.unet_inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.unet.load_lora_adapter(tmp_path, weight_name="x.safetensors", prefix="unet")
    for path, patch in adapter.patches.items():
        layer = other.unet.get_submodule(path.module)
        torch.testing.assert_close(layer.get_delta_weight("default_0"), dense_change(patch, path, None, "x"), **TOLERANCE)
    for strength in (1.0, 0.4):
        other.unet.set_adapters(["default_0"], weights=[strength])
        with patched(model.components(), [Route(adapter, strength)]):
            ours = sample(model.unet, model.unet_inputs())
        torch.testing.assert_close(ours, sample(other.unet, model.unet_inputs()), atol=2e-5, rtol=1e-4)
    assert (ours - base).abs().max() > 0.01


def test_a_lokr_on_attention_loads_into_diffusers_as_a_state_dict_too(tmp_path):
    model = TINY_MODELS["sd15"]()
    adapter = random_kronecker(model, (4, 4), targets={"unet": r".*attn[12]\.to_[qkv]"})
    save_adapter(adapter, tmp_path / "x.safetensors", "peft", dtype=torch.float32)
    model.unet.load_lora_adapter(load_file(tmp_path / "x.safetensors"), prefix="unet")
    for path, patch in adapter.patches.items():
        delta = model.unet.get_submodule(path.module).get_delta_weight("default_0")
        torch.testing.assert_close(delta, dense_change(patch, path, None, "x"), **TOLERANCE)


def sample(unet: nn.Module, inputs: dict) -> Tensor:
    with torch.no_grad():
        return unet(**inputs).sample


@pytest.mark.parametrize(("rank", "alpha"), [(2, 1), (1000, 500)])
def test_a_lokr_that_peft_trained_with_its_scale(rank, alpha, tmp_path):
    from peft import LoKrConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Conv2d(16, 24, 3))
    config = LoKrConfig(r=rank, alpha=alpha, target_modules=["0", "1"], decompose_factor=4, init_weights=False)
    trained = get_peft_model(model, config)
    names = {"0": ATTENTION, "1": "mid_block.resnets.0.conv1"}
    state = {key.removeprefix("base_model.model."): tensor for key, tensor in get_peft_model_state_dict(trained).items()}
    renamed = {f"unet.{names[key[0]]}.{key[2:]}": tensor.contiguous() for key, tensor in state.items()}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": rank, "unet.alpha": alpha, "unet.rank_pattern": {}})}
    save_file(renamed, tmp_path / "x.safetensors", header)
    read = load_adapter(tmp_path / "x.safetensors")
    for key, module in names.items():
        layer = trained.base_model.model.get_submodule(key)
        with torch.no_grad():
            torch.testing.assert_close(change(read, module), layer.get_delta_weight("default"), **TOLERANCE)


class TestWhatPeftCannotLoad:
    def refusal(self, adapter: Adapter, tmp_path: Path) -> str:
        with pytest.raises(AdapterFileError) as caught:
            save_adapter(adapter, tmp_path / "x.safetensors", "peft")
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    def test_a_rectangular_factor(self, tmp_path):
        model = TINY_MODELS["sd15"]()
        adapter = random_kronecker(model, (8, 4), targets={"unet": r".*attn1.to_q"})
        words = self.refusal(adapter, tmp_path)
        assert "square first factor only" in words and "8×4; export --format lokr" in words
        # And so it is: diffusers itself refuses these shapes.
        tensors = {f"{path.module}.lokr_w1": patch.parameters()["first"] for path, patch in adapter.patches.items()}
        tensors |= {f"{path.module}.lokr_w2": patch.parameters()["second"] for path, patch in adapter.patches.items()}
        with pytest.raises(ValueError, match="Could not infer a `decompose_factor`"):
            model.unet.load_lora_adapter(tensors, prefix=None)

    def test_factors_of_several_sizes(self, tmp_path):
        model = TINY_MODELS["sd15"]()
        one, two = (random_kronecker(model, (n, n), targets={"unet": rf".*attn{i}.to_q"}) for i, n in ((1, 4), (2, 8)))
        assert "several: 4×4, 8×8" in self.refusal(Adapter(one.info, {**one.patches, **two.patches}), tmp_path)

    def test_a_text_encoder(self, tmp_path):
        adapter = random_kronecker(TINY_MODELS["sd15"](), targets={"text_encoder": r".*q_proj"})
        assert "UNet only" in self.refusal(adapter, tmp_path)


class TestTheReferencesOwnCheckpoints:
    """(a_out, a_in) = (4, 2) on 16 × 24 and 16 × 16 channels: D is [a_in, a_out] and B [b_out, b_in]."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        torch.manual_seed(0)
        prefix = "unet.mid_block.attentions.0.transformer_blocks.0"
        shapes = {"attn1.processor.to_q": (24, 16), "attn2.processor.to_out": (16, 16)}
        tensors = {}
        for name, (out, inputs) in shapes.items():
            tensors[f"{prefix}.{name}_lora.down.weight"] = torch.randn(2, 4)
            tensors[f"{prefix}.{name}_lora.up.weight"] = torch.randn(out // 4, inputs // 2)
        save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
        return tmp_path / "pytorch_lora_weights.safetensors"

    def expected(self, path: Path, name: str) -> Tensor:
        """ΔW[r·a_out + s, p·b_in + q] = B[r, q] · D[p, s], one element after the other."""
        file = load_file(path)
        down, up = (
            file[f"unet.mid_block.attentions.0.transformer_blocks.0.{name}_lora.{part}.weight"] for part in ("down", "up")
        )
        a_in, a_out = down.shape
        b_out, b_in = up.shape
        delta = torch.zeros(a_out * b_out, a_in * b_in)
        for r in range(b_out):
            for s in range(a_out):
                for p in range(a_in):
                    delta[r * a_out + s, p * b_in : (p + 1) * b_in] = up[r] * down[p, s]
        return delta

    def test_are_read_as_what_that_code_computes(self, path):
        read = load_adapter(path)
        assert (read.info.type, read.factors()) == ("lokr", {"4×2": 2})
        module = "mid_block.attentions.0.transformer_blocks.0"
        for ours, theirs in (("attn1.to_q", "attn1.processor.to_q"), ("attn2.to_out.0", "attn2.processor.to_out")):
            torch.testing.assert_close(change(read, f"{module}.{ours}"), self.expected(path, theirs), **TOLERANCE)

    def test_run_without_the_dense_matrix(self, path):
        """As the published layer does: x [2, a_in · b_in] -> B x -> D, output index (b_out outer, a_out inner)."""
        read = load_adapter(path)
        x, place = torch.randn(2, 3, 16), ParameterPath("unet", ATTENTION)
        layer = nn.Linear(16, 24)
        from studio.pipelines.adapters.layers import layer_spec

        bound = read.patches[place].bind(layer.weight, layer_spec(layer))
        expected = x @ self.expected(path, "attn1.processor.to_q").T
        torch.testing.assert_close(bound.forward_delta(x, torch.empty(0)), expected, atol=1e-5, rtol=1e-5)

    def test_go_on_as_lora_or_differences_and_never_as_lokr(self, path, tmp_path):
        read = load_adapter(path)
        for dialect in ("peft", "lycoris"):
            with pytest.raises(AdapterFileError, match="shuffled rows, so no LoKr file can hold it. Export --format lora"):
                save_adapter(read, tmp_path / "x.safetensors", dialect, family=None if read.info.family else SD15)
        exact = to_lora(read)
        assert exact.relative_error < 1e-6
        assert {fit.rank for fit in exact.layers.values()} == {2 * 6, 2 * 4}  # rank D · rank B
        full = to_full(read)
        for other, dialect in ((exact.adapter, "kohya"), (full, "lycoris")):
            save_adapter(other, tmp_path / "x.safetensors", dialect, dtype=torch.float32, family=SD15)
            again = load_adapter(tmp_path / "x.safetensors")
            for place in read.patches:
                torch.testing.assert_close(change(again, place.module), change(read, place.module), atol=2e-6, rtol=1e-5)
        assert to_lora(read, rank=3).relative_error > 0.1

    def test_loha_and_lokr_are_not_mixed_up_in_a_peft_file(self, tmp_path):
        factor = Factor(a=torch.randn(24, 2), b=torch.randn(2, 16))
        adapter = Adapter(AdapterInfo(name="x", family="sd15"), {ParameterPath("unet", ATTENTION): LoHaPatch(factor, factor)})
        with pytest.raises(AdapterFileError, match="this adapter has loha ones. Export --format lycoris"):
            save_adapter(adapter, tmp_path / "x.safetensors", "peft")
