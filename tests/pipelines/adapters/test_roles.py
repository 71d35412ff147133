"""Halves of an adapter: which is which, apart, swapped, and each at its own strength."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from studio.cli.main import main
from studio.pipelines.adapters import Adapter, LoRAPatch, ParameterPath, Route, load_adapter, merge_into, patched, save_adapter
from studio.pipelines.adapters.roles import (
    FLUX_ROLES,
    family_roles,
    role_of,
    role_routes,
    roles_of,
    roles_present,
    select_roles,
    swap_roles,
)
from studio.pipelines.adapters.serialization.header import read_header
from studio.pipelines.errors import AdapterMismatchError, UserError
from studio.pipelines.families import SDXL
from tests.support.adapters import random_adapter
from tests.support.outputs import assert_same, outputs
from tests.support.tiny_models import TinyModel, tiny_sdxl

CONTENT, STYLE = "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"
IN_THE_TWO_BLOCKS = rf"(?=(?:{CONTENT}|{STYLE})\.)(?:{SDXL.attention_targets})"


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_sdxl()


def b_lora(model: TinyModel, seed: int = 0) -> Adapter:
    adapter = random_adapter(model, rank=2, seed=seed, targets={"unet": IN_THE_TWO_BLOCKS})
    return replace(adapter, info=replace(adapter.info, name=f"b{seed}"))


def test_sdxls_roles_are_the_papers_blocks():
    blocks = family_roles("sdxl")
    assert blocks == {"content": (CONTENT,), "style": (STYLE,)}
    assert role_of(ParameterPath("unet", f"{CONTENT}.transformer_blocks.9.attn1.to_q"), blocks) == "content"
    assert role_of(ParameterPath("unet", f"{STYLE}.transformer_blocks.0.attn2.to_out.0"), blocks) == "style"
    assert role_of(ParameterPath("unet", "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q"), blocks) is None
    assert role_of(ParameterPath("text_encoder", f"{CONTENT}.x"), blocks) is None
    assert role_of(ParameterPath("unet", "up_blocks.0.attentions.10.proj_in"), blocks) is None  # no substring of a name
    assert family_roles("sd15") == {} == family_roles(None)


def test_fluxs_roles_are_single_stream_blocks():
    assert len(FLUX_ROLES["content"]) == 10 and len(FLUX_ROLES["style"]) == 28
    roles = {n: role_of(ParameterPath("transformer", f"single_transformer_blocks.{n}.attn.to_q"), FLUX_ROLES) for n in range(38)}
    assert [n for n, role in roles.items() if role == "content"] == list(range(10))
    assert [n for n, role in roles.items() if role == "style"] == list(range(10, 38))
    assert role_of(ParameterPath("transformer", "transformer_blocks.1.attn.to_q"), FLUX_ROLES) is None


def test_selecting_keeps_the_half_and_says_so(model: TinyModel):
    adapter = b_lora(model)
    half = select_roles(adapter, ["style"])
    assert half.patches and all(path.module.startswith(STYLE) for path in half.patches)
    assert half.info.roles == ("style",) and half.info.role_blocks == {"style": (STYLE,)}
    assert half.info.name == "b0 (style)"
    both = select_roles(adapter, ["content", "style"])
    assert both.content_hash() == adapter.content_hash()
    assert roles_present(adapter) == {"content": len(adapter.patches) // 2, "style": len(adapter.patches) // 2}


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.1])
def test_strength_is_linear(model: TinyModel, strength: float):
    """The reference implementation multiplies both factors, so that a slider at .5 acts as .25 and 1.1 as 1.21."""
    adapter = b_lora(model)
    style = select_roles(adapter, ["style"])
    with patched(model.components(), role_routes(adapter, {"style": strength})):
        live = outputs(model)
    with merge_into(model.components(), style, strength):
        merged = outputs(model)
    with merge_into(model.components(), style, strength**2):
        squared = outputs(model)
    assert_same(live, merged, tolerance=1e-5)
    assert (live[0] - squared[0]).abs().max() > 20 * (live[0] - merged[0]).abs().max()


def test_each_role_has_its_own_strength(model: TinyModel):
    adapter = b_lora(model)
    content, style = select_roles(adapter, ["content"]), select_roles(adapter, ["style"])
    with patched(model.components(), role_routes(adapter, {"content": 0.8, "style": 0.3})):
        live = outputs(model)
    with merge_into(model.components(), content, 0.8), merge_into(model.components(), style, 0.3):
        merged = outputs(model)
    assert_same(live, merged, tolerance=1e-5)
    assert role_routes(adapter, {"content": 0.0}) == []


def test_halves_swap_between_adapters(model: TinyModel):
    a, b = b_lora(model, 1), b_lora(model, 2)
    swapped = swap_roles(a, b)
    assert len(swapped.patches) == len(a.patches)
    for path, patch in swapped.patches.items():
        assert patch is (a if path.module.startswith(CONTENT) else b).patches[path]
    assert swapped.info.roles == ("content", "style") and swapped.info.name == "b1 + b2"
    with patched(model.components(), [Route(swapped)]):
        one = outputs(model)
    with patched(model.components(), [*role_routes(a, {"content": 1.0}), *role_routes(b, {"style": 1.0})]):
        assert_same(outputs(model), one)


def test_halves_that_do_not_fit_are_refused(model: TinyModel):
    a, b = b_lora(model, 1), b_lora(model, 2)
    turned = replace(b, info=replace(b.info, role_blocks={"content": (STYLE,), "style": (CONTENT,)}))
    with pytest.raises(AdapterMismatchError, match="same layers"):
        swap_roles(a, turned)
    with pytest.raises(AdapterMismatchError, match="different families"):
        swap_roles(a, replace(b, info=replace(b.info, family="embedded")))
    with pytest.raises(AdapterMismatchError, match=r"has no style half: .* It has content\."):
        select_roles(select_roles(a, ["content"]), ["style"])
    with pytest.raises(UserError, match="studio probe-blocks"):
        select_roles(replace(a, info=replace(a.info, family="sd15")), ["style"])
    assert roles_of(replace(a, info=replace(a.info, family="sd15")), {"style": (STYLE,)}) == {"style": (STYLE,)}


@pytest.mark.parametrize("dialect", ["peft", "kohya"])
def test_where_the_halves_sit_is_in_the_file(model: TinyModel, tmp_path: Path, dialect: str):
    blocks = {"content": ("mid_block.attentions.0",), "style": ("up_blocks.1.attentions.0", "up_blocks.1.attentions.1")}
    adapter = b_lora(model)
    adapter = replace(adapter, info=replace(adapter.info, roles=("content", "style"), role_blocks=blocks))
    save_adapter(adapter, tmp_path / "a.safetensors", dialect)
    assert json.loads(read_header(tmp_path / "a.safetensors").metadata["studio.roles"])["content"] == ["mid_block.attentions.0"]
    read = load_adapter(tmp_path / "a.safetensors")
    assert read.info.role_blocks == blocks and read.info.roles == ("content", "style")


def test_kohyas_names_of_the_halves_are_output_blocks_0_and_1(model: TinyModel, tmp_path: Path):
    """A1111's block-weight extensions and LyCORIS' preset know the halves by these names."""
    adapter = b_lora(model)
    for role, prefix in (("content", "lora_unet_output_blocks_0_1_"), ("style", "lora_unet_output_blocks_1_1_")):
        path = tmp_path / f"{role}.safetensors"
        save_adapter(select_roles(adapter, [role]), path, "kohya", dtype=torch.float32)
        assert all(key.startswith(prefix) for key in read_header(path).tensors)
        assert load_adapter(path).content_hash() == select_roles(adapter, [role]).content_hash()


def test_the_original_repositorys_files_are_read(model: TinyModel, tmp_path: Path):
    """B-LoRA's own layout: `unet.<path>.lora.down.weight` without alphas, both halves in one file."""
    adapter = b_lora(model)
    tensors = {}
    for path, patch in adapter.patches.items():
        assert isinstance(patch, LoRAPatch)
        tensors |= {f"unet.{path.module}.lora.{name}.weight": getattr(patch, name).contiguous() for name in ("down", "up")}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    read = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert roles_present(read, family_roles("sdxl")) == {"content": len(adapter.patches) // 2, "style": len(adapter.patches) // 2}
    for path, patch in read.patches.items():
        assert isinstance(patch, LoRAPatch) and patch.scale == 1.0
        assert torch.equal(patch.down, adapter.patches[path].down)  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["[]", "not json", '{"content": "x"}', '{"content": [1]}', '{"content": []}', "null"])
def test_an_unreadable_entry_is_passed_over(model: TinyModel, tmp_path: Path, text: str):
    path = tmp_path / "a.safetensors"
    down_up = {"lora_A": torch.zeros(2, 32), "lora_B": torch.zeros(32, 2)}
    tensors = {f"unet.{CONTENT}.transformer_blocks.0.attn1.to_q.{part}.weight": tensor for part, tensor in down_up.items()}
    save_file(tensors, path, {"studio.roles": text})
    assert load_adapter(path).info.role_blocks == {}


def test_the_export_command_writes_one_half(model: TinyModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    adapter = b_lora(model)
    save_adapter(adapter, tmp_path / "both.safetensors", dtype=torch.float32)
    command = ["export", str(tmp_path / "both.safetensors"), "--format", "peft", "--dtype", "float32"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--role", "style"])
    assert ended.value.code == 0
    written = load_adapter(tmp_path / "both.style.peft.safetensors")
    assert written.content_hash() == select_roles(adapter, ["style"]).content_hash()
    assert written.info.roles == ("style",) and written.info.role_blocks == {"style": (STYLE,)}
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "both.style.peft.safetensors"), "--role", "content"])
    assert ended.value.code == 2 and "has no content half" in capfd.readouterr().err
