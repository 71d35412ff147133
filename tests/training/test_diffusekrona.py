"""DiffuseKronA: what trains, how much work it is, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from studio.pipelines.adapters import Adapter, KroneckerPatch, Route, load_adapter, merge_into, new_kronecker, patched
from studio.pipelines.errors import ConfigError
from studio.pipelines.families import EMBEDDED, FAMILIES, SD15, SDXL
from studio.training.config import TrainConfig, load_config, resolve_defaults
from studio.training.config.krona import parse_factors
from studio.training.methods.diffusekrona import DiffuseKronA
from studio.training.trainer import train
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import sd15_unet_config, sdxl_unet_config

MakeConfig = Callable[..., TrainConfig]
PAPERS = {"adapter__method": "diffusekrona", "krona__factors": "4x4", "adapter__train_text_encoder": False}
GIVEN = {"concept.images": ".", "concept.class_noun": "dog", "adapter.method": "diffusekrona"}


@pytest.fixture
def krona_config(make_config: MakeConfig) -> MakeConfig:
    def make(family: str = "embedded", **settings: object) -> TrainConfig:
        return make_config(family, **{**PAPERS, **settings})

    return make


@cache
def meta_unet(family: str) -> UNet2DConditionModel:
    """A UNet of full size, without its values."""
    with torch.device("meta"):
        return UNet2DConditionModel(**(sdxl_unet_config() if family == "sdxl" else sd15_unet_config()))


class TestOnTheRealModels:
    """Full size, on torch's meta device."""

    @pytest.mark.parametrize(
        ("family", "factors", "layers", "parameters"),
        [
            (SDXL, "64x4", 560, 3_874_560),
            (SDXL, "16x16", 560, 3_874_560),
            (SDXL, "64x8", 560, 2_152_320),
            (SD15, "64x4", 128, 398_048),
        ],
    )
    def test_parameters_are_the_papers(self, family, factors, layers, parameters):
        targets = family.train_defaults("diffusekrona").targets
        adapter = new_kronecker({"unet": meta_unet(family.name)}, {"unet": targets}, parse_factors(factors))
        assert (len(adapter.patches), adapter.num_parameters()) == (layers, parameters)
        assert {path.module.split("attn")[-1][2:] for path in adapter.patches} == {"to_q", "to_k", "to_v", "to_out.0"}
        assert all(tensor.is_meta for tensor in adapter.named_tensors().values())

    @pytest.mark.parametrize("factors", [(16, 16), (64, 4)])
    def test_a_pass_of_sdxl_is_next_to_no_more_work(self, factors):
        """PEFT's LoKr, which makes every ΔW, has 1.22 times the base's FLOPs."""
        unet = meta_unet("sdxl")
        adapter = new_kronecker({"unet": unet}, {"unet": SDXL.attention_targets}, factors)
        base = base_flops()
        with patched({"unet": unet}, [Route(adapter)]):
            assert 1.0 < sdxl_flops(unet) / base <= 1.03

    def test_the_embedded_familys_factors_fit_its_layers(self):
        import json

        from studio.pipelines.base_model import embedded_base_dir

        config = json.loads((embedded_base_dir() / "unet" / "config.json").read_text())
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        factors = EMBEDDED.train_defaults("diffusekrona").kronecker_factors
        assert factors is not None
        adapter = new_kronecker({"unet": unet}, {"unet": EMBEDDED.adapter_targets}, parse_factors(factors))
        assert any(len(patch.weight_shape) == 4 for patch in adapter.patches.values() if isinstance(patch, KroneckerPatch))
        for patch in adapter.patches.values():
            assert isinstance(patch, KroneckerPatch)
            assert patch.first.shape <= patch.second.shape  # the first is the smaller one, as the paper advises


@cache
def base_flops() -> int:
    return sdxl_flops(meta_unet("sdxl"))


def sdxl_flops(unet: UNet2DConditionModel) -> int:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet(
            torch.empty(1, 4, 128, 128),
            torch.empty((), dtype=torch.int64),
            torch.empty(1, 77, 2048),
            added_cond_kwargs={"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)},
        )
    return int(counter.get_total_flops())


class TestSettings:
    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_every_family_has_the_papers_recipe_or_its_own(self, family):
        resolved = resolve_defaults(load_config(None, GIVEN), family, 4)
        settings = DiffuseKronA().configure(resolved)
        if family is EMBEDDED:
            assert (settings.targets, settings.factors) == (EMBEDDED.adapter_targets, (4, 4))
            return
        assert (settings.targets, settings.factors, settings.learning_rate) == (family.attention_targets, (16, 16), 5e-4)
        assert (resolved.loss.prior, resolved.loss.snr_gamma) == ("none", 0.0)
        assert [resolve_defaults(load_config(None, GIVEN), family, n).schedule.steps for n in (1, 4, 10)] == [500, 600, 1000]

    @pytest.mark.parametrize(("text", "factors"), [("64x4", (64, 4)), (" 64X4 ", (64, 4)), ("64×4", (64, 4))])
    def test_factors_are_out_and_in(self, text, factors):
        config = load_config(None, {**GIVEN, "krona.factors": text})
        assert parse_factors(config.krona.factors) == factors

    @pytest.mark.parametrize("text", ["64", "64x", "0x4", "64:4", "-4x4", "4x4x4", "axb"])
    def test_other_texts_are_refused(self, text):
        with pytest.raises(ConfigError, match=r"krona\.factors = .* must be two whole numbers as OUTxIN"):
            load_config(None, {**GIVEN, "krona.factors": text})

    def test_its_section_belongs_to_it(self):
        with pytest.raises(ConfigError, match=r"\[krona\] belongs to the method diffusekrona"):
            load_config(None, {**GIVEN, "adapter.method": "dreambooth-lora", "krona.factors": "4x4"})

    @pytest.mark.parametrize("key", ["dora", "rslora"])
    def test_what_belongs_to_other_methods_is_refused(self, key):
        config = resolve_defaults(load_config(None, {**GIVEN, f"adapter.{key}": True}), SD15, 4)
        with pytest.raises(ConfigError, match=rf"adapter\.(dora and adapter\.)?{key}"):
            DiffuseKronA().configure(config)

    @pytest.mark.parametrize(
        ("factors", "words"),
        [
            ("5x4", r"5x4 \(out x in\) does not fit unet\.down_blocks\.\S+: 5 does not divide its 16 channels out. 4x4 fits all"),
            ("8x16", r"16 does not divide its 20 channels in. 8x4 fits all chosen layers; set krona.factors \(--factors\)"),
            ("512x4", "512 does not divide"),
        ],
    )
    def test_a_factor_that_does_not_divide_names_the_layer_and_what_would(self, factors, words, krona_config):
        with pytest.raises(ConfigError, match=words):
            train(krona_config(krona__factors=factors, adapter__targets=r".*attn[12]\.to_k"))

    def test_a_target_that_is_no_layer(self, krona_config):
        with pytest.raises(ConfigError, match="No linear or convolution layer of the unet"):
            train(krona_config(adapter__targets="nothing"))


class TestTheStart:
    def adapter(self, init: str, factors: tuple[int, int]) -> Adapter:
        linear = torch.nn.ModuleDict({"layer": torch.nn.Linear(64 * factors[1], 64 * factors[0])})
        generator = torch.Generator().manual_seed(0)
        return new_kronecker({"unet": linear}, {"unet": "layer"}, factors, init=init, generator=generator)

    def test_the_second_factor_is_zero_and_the_first_is_the_papers(self):
        (patch,) = self.adapter("gaussian", (64, 16)).patches.values()
        first, second = patch.parameters().values()
        assert second.abs().max() == 0
        assert first.std().item() == pytest.approx(64**-0.5, rel=0.1)
        (patch,) = self.adapter("kaiming", (64, 16)).patches.values()
        first, _ = patch.parameters().values()
        assert first.abs().max().item() == pytest.approx(16**-0.5, rel=0.02)

    def test_every_tensor_trains_in_full_precision(self):
        tensors = self.adapter("gaussian", (4, 4)).named_tensors().values()
        assert all(isinstance(tensor, torch.nn.Parameter) and tensor.dtype == torch.float32 for tensor in tensors)


class TestARun:
    @pytest.mark.parametrize(("factors", "dialect"), [("4x4", "peft-lokr"), ("8x2", "lycoris")])
    def test_gives_files_that_hold_the_same(self, krona_config, factors, dialect):
        from studio.pipelines.adapters.summary import summarize

        result = train(krona_config(krona__factors=factors, adapter__targets=r".*(attn1\.to_v|conv1)"))
        own, kohya = summarize(result.adapter_path), summarize(result.kohya_path)
        assert (own.dialect, kohya.dialect, own.content_hash) == (dialect, "lycoris", kohya.content_hash)
        assert own.kinds.keys() == {"lokr"}
        assert own.factors.keys() == {factors.replace("x", "×")}
        assert all(patch.parameters()["second"].abs().max() > 0 for patch in load_adapter(result.adapter_path).patches.values())
        page = (result.run_dir / "index.html").read_text()
        assert factors in page
        assert ("unet.load_lora_adapter" in page) == (dialect == "peft-lokr")
        assert ("--format lora" in page) == (dialect == "lycoris")

    def test_with_the_text_encoder_is_a_lokr_of_lycoris(self, krona_config):
        """diffusers loads LoKr into the UNet only."""
        result = train(krona_config(adapter__train_text_encoder=True))
        adapter = load_adapter(result.adapter_path)
        assert {path.component for path in adapter.patches} == {"unet", "text_encoder"}
        assert adapter.content_hash() == load_adapter(result.kohya_path).content_hash()
        assert "unet.load_lora_adapter" not in (result.run_dir / "index.html").read_text()

    def test_has_names_that_every_system_takes(self, krona_config):
        """The published code names its folder krona_k64:8q64:8…, which Windows refuses."""
        result = train(krona_config())
        names = [path.relative_to(result.run_dir.parent) for path in result.run_dir.rglob("*")]
        assert len(names) > 5
        assert not [name for name in names if set(str(name)) & set(':*?"<>|')]


@pytest.mark.parametrize("strength", [0.25, 0.5, 2.0])
def test_strength_is_linear(strength: float, tmp_path: Path):
    """W + strength · ΔW, not the published code's strength on each factor."""
    base = tiny_base("embedded", tmp_path)
    adapter = new_kronecker(
        base.components(), {"unet": r".*attn[12]\.to_[qv]"}, (4, 4), generator=torch.Generator().manual_seed(0)
    )
    for name, tensor in adapter.named_tensors().items():
        if name.endswith("second"):
            torch.nn.init.normal_(tensor, 0.0, 0.5, generator=torch.Generator().manual_seed(1))
    inputs = (torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor(500), torch.ones(1, 16, 20))
    with torch.no_grad():
        plain = base.unet(*inputs)[0]
        with patched(base.components(), [Route(adapter, strength)]):
            ours = base.unet(*inputs)[0]
        with merge_into(base.components(), adapter, strength):
            torch.testing.assert_close(ours, base.unet(*inputs)[0], atol=1e-5, rtol=1e-4)
    assert (ours - plain).abs().max() > 1e-3
