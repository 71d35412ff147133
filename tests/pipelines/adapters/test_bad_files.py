"""Files that are damaged, hostile or of another kind: one clear sentence each."""

import json
import struct
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save, save_file

from studio.pipelines.adapters import AdapterInfo, load_adapter, read_header, save_adapter
from studio.pipelines.adapters.serialization.header import MAX_HEADER_BYTES
from studio.pipelines.errors import AdapterFileError, MissingFileError, StudioError
from tests.support.adapters import random_adapter
from tests.support.tiny_models import tiny_embedded

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
GOOD = {
    f"{LAYER}.lora_down.weight": torch.ones(2, 4),
    f"{LAYER}.lora_up.weight": torch.ones(6, 2),
    f"{LAYER}.alpha": torch.tensor(1.0),
}


def with_header(header: object, data: bytes = b"", raw: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if raw is None else raw
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


WHOLE = save(GOOD)
BYTES = {
    "empty": (b"", "has only 0 bytes"),
    "short": (b"abc", "has only 3 bytes"),
    "text": (b"hello, this is no adapter at all", "does not begin like a safetensors file"),
    "huge header": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "larger than 100 MB"),
    "header cut off": (WHOLE[:40], "cut off: its header has"),
    "data cut off": (WHOLE[:-5], "cut off: 5 bytes are missing"),
    "bytes behind": (WHOLE + b"12345", "5 bytes at its end belong to no tensor"),
    "no JSON": (with_header(None, raw=b"{not json"), "header is not JSON"),
    "no UTF-8": (with_header(None, raw=b"\xff\xfe{}"), "header is not JSON"),
    "deep JSON": (with_header(None, raw=b"[" * 200_000), "header is not JSON"),
    "a list": (with_header([]), "not a JSON object"),
    "twice": (with_header(None, bytes(8), raw=b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2)), "twice"),
    "metadata list": (with_header({"__metadata__": []}), "metadata is not a JSON object"),
    "metadata number": (with_header({"__metadata__": {"a": 1}}), "metadata entry 'a' is not a string"),
    "no offsets": (with_header({"a": {"dtype": "F32", "shape": [1]}}), "does not describe the tensor 'a'"),
    "unknown type": (with_header({"a": entry(0, 4, dtype="F12")}, bytes(4)), "unknown type 'F12'"),
    "negative": (with_header({"a": entry(-4, 0)}, bytes(4)), "not whole numbers from zero up"),
    "fraction": (with_header({"a": {**entry(0, 4), "shape": [1.0]}}, bytes(4)), "not whole numbers"),
    "true": (with_header({"a": {**entry(0, 4), "shape": [True]}}, bytes(4)), "not whole numbers"),
    "wrong size": (with_header({"a": entry(0, 4, [2])}, bytes(4)), "cannot have 4 bytes"),
    "overflow": (with_header({"a": entry(0, 0, [2**40, 2**40])}), "cannot have 0 bytes"),
    "overlap": (with_header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' overlaps another one"),
    "hole": (with_header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "preceded by bytes that belong to none"),
    "zip": (b"PK\x03\x04" + bytes(30), "is a pickle"),
    "pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00stateq\x01", "is a pickle"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>not found</html>", "is a web page"),
    "GGUF": (b"GGUF" + bytes(40), "is a GGUF file"),
    "no tensors": (with_header({"__metadata__": {"format": "pt"}}), "holds no tensors"),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_file_of_wrong_bytes(name, tmp_path):
    content, words = BYTES[name]
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=words) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_every_cut_and_every_changed_byte_is_an_error_or_an_adapter(tmp_path):
    """Whatever a byte becomes, the answer is a sentence or an adapter, never another exception."""
    path = tmp_path / "adapter.safetensors"
    for position in range(0, len(WHOLE), 5):
        for content in (WHOLE[:position], WHOLE[:position] + bytes([WHOLE[position] ^ 0x55]) + WHOLE[position + 1 :]):
            path.write_bytes(content)
            try:
                load_adapter(path)
            except StudioError as error:
                assert str(path) in str(error)  # noqa: PT017


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    content = GOOD | {f"{LAYER}.{part.replace('__', '.')}": tensor for part, tensor in tensors.items()}
    return {key: tensor for key, tensor in content.items() if tensor is not None}


TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "NaN": (changed(lora_up__weight=torch.full((6, 2), torch.nan)), "NaN or infinite"),
    "infinity": (changed(lora_up__weight=torch.full((6, 2), torch.inf, dtype=torch.float16)), "NaN or infinite"),
    "infinite alpha": (changed(alpha=torch.tensor(torch.inf)), "NaN or infinite"),
    "integers": (changed(lora_up__weight=torch.ones(6, 2, dtype=torch.int32)), "torch.int32 values"),
    "rank differs": (changed(lora_up__weight=torch.ones(6, 3)), r"do not fit together.*\[2, 4\] and \[6, 3\]"),
    "vector": (changed(lora_up__weight=torch.ones(6)), "do not fit together"),
    "rank zero": (changed(lora_down__weight=torch.ones(0, 4), lora_up__weight=torch.ones(6, 0)), "is empty"),
    "two alphas": (changed(alpha=torch.ones(2)), "should be one number"),
    "no up": (changed(lora_up__weight=None), "lacks tensors or has surplus ones"),
    "alpha alone": ({f"{LAYER}.alpha": torch.tensor(1.0)}, "lacks tensors"),
    "surplus": (changed(lora_extra__weight=torch.ones(2, 2)), "lacks tensors or has surplus ones.*lora_extra"),
    "Tucker": (changed(lora_mid__weight=torch.ones(2, 2)), "Tucker"),
    "half a LoKr": ({f"{LAYER}.lokr_w1": torch.ones(2, 2)}, "lacks tensors"),
    "a LoKr factor twice": (
        {f"{LAYER}.lokr_{part}": torch.ones(2, 2) for part in ("w1", "w1_a", "w1_b", "w2")},
        "surplus ones.*lokr_w1, lokr_w1_a",
    ),
    "a LoKr's ranks": (
        {f"{LAYER}.lokr_w1": torch.ones(2, 2), f"{LAYER}.lokr_w2_a": torch.ones(3, 2), f"{LAYER}.lokr_w2_b": torch.ones(3, 2)},
        "parts of a factor do not fit together",
    ),
    "half a LoHa": ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "lacks tensors"),
    "a LoKr with magnitudes": (
        {f"{LAYER}.lokr_w1": torch.ones(2, 2), f"{LAYER}.lokr_w2": torch.ones(3, 2), f"{LAYER}.dora_scale": torch.ones(6, 1)},
        "DoRA magnitudes .* on LoKr or LoHa layers",
    ),
    "LyCORIS of another model": (
        {"lycoris_single_blocks_0_attn.lokr_w1": torch.ones(2, 2)},
        "a model that the studio does not run",
    ),
    "full difference beside a LoRA": (changed(diff=torch.ones(6, 4)), "surplus ones"),
    "magnitudes": (changed(dora_scale=torch.ones(5, 1)), "one magnitude per output channel"),
    "input magnitudes": (changed(dora_scale=torch.ones(1, 4)), "scales input channels"),
    "unknown module": (
        GOOD | {"lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.0)},
        "double_blocks_0_img_attn_qkv",
    ),
    "twice, by both names": (
        GOOD | {"lora_unet_middle_block_1_proj_in.alpha": torch.tensor(1.0)},
        r"the alpha of unet\.mid_block\.attentions\.0\.proj_in\.weight twice",
    ),
    "checkpoint": ({"model.diffusion_model.out.2.weight": torch.ones(1)}, "whole checkpoint; use it with --base"),
    "FLUX": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(1, 1)}, "FLUX or SD3"),
    "SD3 text": ({"lora_te3_encoder.lora_down.weight": torch.ones(1, 1)}, "SD3 or FLUX"),
    "embedding": ({"emb_params": torch.ones(1, 4)}, "textual-inversion"),
    "saved by PEFT": ({"base_model.model.conv.lora_A.weight": torch.ones(1, 4)}, "does not say of which component"),
    "something else": ({"weight": torch.ones(1)}, "no adapter of a known kind; one of its 1 tensors is called 'weight'"),
    "PEFT and kohya": (GOOD | {"unet.conv_in.lora_A.weight": torch.ones(1, 1)}, "no adapter of a known kind"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_file_of_wrong_tensors(name, tmp_path):
    tensors, words = TENSORS[name]
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path)
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(path)


PEFT = {
    "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 4),
    "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(6, 2),
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ('{"unet.lora_alpha": "3"}', "the alpha '3', which is no number"),
        ('{"unet.lora_alpha": true}', "which is no number"),
        ('{"unet.lora_alpha": 3, "unet.alpha_pattern": [1]}', "in a way that PEFT does not"),
        ('{"unet.lora_alpha": 3, "unet.alpha_pattern": {"(a+)+$": 1}}', "a regular expression"),
    ],
)
def test_a_peft_configuration_that_cannot_be_understood(config, words, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file(PEFT, path, {"lora_adapter_metadata": config})
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(path)


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ("mid_block.attentions.0.proj_in", 7.0),
        ("^mid_block.attentions.0.proj_in", 7.0),
        ("attentions.0.proj_in", 7.0),
        ("proj_in", 7.0),
        ("^proj_in", 3.0),
        ("oj_in", 3.0),
        ("proj_out", 3.0),
    ],
)
def test_a_peft_alpha_pattern_means_the_end_of_a_name(pattern, alpha, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file(PEFT, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3, "unet.alpha_pattern": {pattern: 7}})})
    assert load_adapter(path).alphas() == {alpha: 1}


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(MissingFileError, match="There is no file"):
        load_adapter(tmp_path / "absent.safetensors")
    with pytest.raises(AdapterFileError, match="is not a file"):
        load_adapter(tmp_path)


def test_a_symbolic_link_is_followed(tmp_path):
    target, link = tmp_path / "target.safetensors", tmp_path / "link.safetensors"
    save_file(GOOD, target)
    link.symlink_to(target)
    assert load_adapter(link).info.name == "link"


@pytest.mark.parametrize("num_bytes", [0x0280, 0x3C20, 0x0480])
def test_a_header_whose_length_looks_like_another_kind_of_file(num_bytes, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file(GOOD, path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    path.write_bytes(struct.pack("<Q", num_bytes) + whole[8 : 8 + length].ljust(num_bytes) + whole[8 + length :])
    assert len(read_header(path).tensors) == 3


@pytest.fixture(scope="module")
def adapter():
    return random_adapter(tiny_embedded(), targets={"unet": r".*to_q"}, info=AdapterInfo(name="x", family="embedded"))


def expect_refusal(action: Callable[[], None], words: str) -> None:
    with pytest.raises(StudioError, match=words):
        action()


def test_what_cannot_be_written_is_refused_and_leaves_no_file(adapter, tmp_path):
    path = tmp_path / "adapter.safetensors"
    expect_refusal(lambda: save_adapter(adapter, path, "onnx"), "no file format 'onnx'.*peft, kohya")
    expect_refusal(lambda: save_adapter(adapter, path, "diffusers-legacy"), "no file format")
    tensor = next(iter(adapter.named_tensors().values()))
    original = tensor.clone()
    tensor.fill_(1e6)
    expect_refusal(lambda: save_adapter(adapter, path), "not finite as float16")
    tensor.copy_(original)
    two = random_adapter(tiny_embedded(), targets={"unet": r".*to_q"}, dora=True)
    mixed = type(adapter)(adapter.info, {**adapter.patches, **dict(list(two.patches.items())[:1])})
    expect_refusal(lambda: save_adapter(mixed, path), "Some layers of the unet use DoRA")
    expect_refusal(lambda: save_adapter(type(adapter)(adapter.info, {}), path), "changes nothing")
    assert list(tmp_path.iterdir()) == []
    save_adapter(mixed, path, "kohya")
    assert load_adapter(path).info.type == "mixed"
