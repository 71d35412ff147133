"""Pictures tell how they were made, whoever made them, and ours are made again to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from studio.batch.redo import redo_picture
from studio.cli.main import main
from studio.kernels import packed_layers
from studio.pipelines.errors import ImageError, MissingFileError, UserError
from studio.pipelines.pictures.foreign import read_picture
from tests.support.batches import pictures, run, write_batch


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("redo")
    run(write_batch(root), root / "out")
    return root


@pytest.mark.parametrize("number", ["00001", "00003", "00005", "00009"])
def test_pictures_of_a_batch_are_made_again_to_the_byte(drawn: Path, tmp_path: Path, number: str):
    """Of groups with one adapter, with two, with none, and of a composition; the adapters have other names by now."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("one", "two"):
        shutil.copy(drawn / f"{name}.safetensors", moved / f"renamed-{name}.safetensors")
    (path,) = (drawn / "out").glob(f"{number}*.png")
    redone = redo_picture(path, [tmp_path], base=str(drawn / "base"), device="cpu")
    assert (redone.max_difference, redone.notes) == (0, ())
    if number == "00009" or number != "00005":  # a composition's recipe has the names of its files
        redone = redo_picture(path, [drawn], base=str(drawn / "base"), device="cpu")
    assert redone.drawn.data == path.read_bytes()


def test_what_cannot_be_done_here_is_told_and_recorded(drawn: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights were laid out by operators that another build of torch does not have."""
    if not packed_layers.packs_layers():
        pytest.skip("torch has them not here either")
    (path,) = (drawn / "out").glob("00001*.png")
    monkeypatch.setattr(packed_layers, "has_packed_layers", lambda: False)
    redone = redo_picture(path, [drawn], base=str(drawn / "base"), device="cpu")
    assert "folded packed; now folded" in redone.notes[0] and redone.max_difference in (0, 1)
    assert redone.drawn.record.drawn["kernels"] == "folded"


def test_what_is_missing_is_told(drawn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (path,) = (drawn / "out").glob("00003*.png")
    with pytest.raises(MissingFileError, match="no two with the hash"):
        redo_picture(path, [tmp_path], base=str(drawn / "base"), device="cpu")
    with pytest.raises(SystemExit) as ended:
        main(["redo", str(path), "--device", "cpu"])
    assert ended.value.code == 3 and "name it with --base" in capfd.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    with pytest.raises(UserError, match="does not say"):
        redo_picture(tmp_path / "bare.png", [], base=None, device="cpu")


def test_the_command_prints_a_batchs_picture(drawn: Path, capfd: pytest.CaptureFixture[str]):
    (path,) = (drawn / "out").glob("00003*.png")
    with pytest.raises(SystemExit) as ended:
        main(["show", str(path)])
    printed = capfd.readouterr().out
    assert not ended.value.code
    assert "a dog" in printed and "adapter two  0.5" in printed and "row 3 of 4, folded" in printed
    with pytest.raises(SystemExit):
        main(["show", "--json", str(path)])
    assert json.loads(capfd.readouterr().out)["drawn"]["row"] == 3
    assert len(pictures(drawn / "out")) == 20


def png(path: Path, **texts: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        chunks.add_text(key, value)
    Image.new("RGB", (64, 32)).save(path, pnginfo=chunks)
    return path


A1111 = (
    "a cat <lora:cat style:0.7>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 512x768, "
    'Model hash: 0123456789, Model: some model, Lora hashes: "cat style: abcdef012345", Version: v1.10.1'
)


def test_automatic1111(tmp_path: Path):
    facts = read_picture(png(tmp_path / "a.png", parameters=A1111))
    assert (facts.tool, facts.prompt, facts.negative_prompt, facts.seed) == ("AUTOMATIC1111", "a cat", "blurry", 42)
    assert (facts.width, facts.height, facts.sampler, facts.model) == (512, 768, "Euler a", "some model")
    assert facts.adapters == (("cat style", 0.7),) and facts.adapter_hashes == {"cat style": "abcdef012345"}
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    Image.new("RGB", (64, 32)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg") == facts


def test_comfyui(tmp_path: Path):
    nodes = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 9, "cfg": 6.5, "sampler_name": "euler",
              "scheduler": "normal", "model": ["11", 0], "positive": ["20", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["30", 0], "clip": ["11", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["11", 1]}},
        "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "sub\\one.safetensors", "strength_model": 0.5,
               "model": ["4", 0]}},
        "11": {"class_type": "LoraLoader", "inputs": {"lora_name": "two.safetensors", "strength_model": 1.0, "model": ["10", 0]}},
        "20": {"class_type": "ConditioningSetTimestepRange", "inputs": {"conditioning": ["6", 0], "start": 0.0}},
        "30": {"class_type": "PrimitiveString", "inputs": {"value": "a red boat"}},
    }  # fmt: skip
    facts = read_picture(png(tmp_path / "a.png", prompt=json.dumps(nodes), workflow="{}"))
    assert (facts.tool, facts.prompt, facts.negative_prompt, facts.seed) == ("ComfyUI", "a red boat", "ugly", 5)
    assert facts.adapters == (("one", 0.5), ("two", 1.0)) and facts.model == "sd15.safetensors"
    assert (facts.width, facts.height, facts.guidance_scale) == (512, 640, 6.5)
    loop = {"3": {"class_type": "KSampler", "inputs": {"model": ["3", 0], "positive": ["3", 0], "seed": "x"}}}
    assert read_picture(png(tmp_path / "b.png", prompt=json.dumps(loop))).seed is None


def test_invokeai(tmp_path: Path):
    values = {"positive_prompt": "a fox", "negative_prompt": None, "seed": 3, "steps": 30, "cfg_scale": 7.5, "scheduler": "euler",
              "width": 768, "height": 512, "model": {"name": "dream", "hash": "blake3:12"},
              "loras": [{"model": {"name": "fox"}, "weight": 0.75}], "rand_device": "cpu"}  # fmt: skip
    facts = read_picture(png(tmp_path / "a.png", invokeai_metadata=json.dumps(values)))
    assert (facts.tool, facts.prompt, facts.seed, facts.width) == ("InvokeAI", "a fox", 3, 768)
    assert facts.adapters == (("fox", 0.75),) and facts.settings == {"rand_device": "cpu"}


def test_damaged_and_silent_pictures(tmp_path: Path):
    assert read_picture(png(tmp_path / "a.png")).tool is None
    with pytest.raises(ImageError, match="damaged"):
        read_picture(png(tmp_path / "b.png", studio="{"))
    with pytest.raises(ImageError, match="damaged"):
        read_picture(png(tmp_path / "c.png", invokeai_metadata="[1]"))
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="not a readable"):
        read_picture(tmp_path / "d.png")
    with pytest.raises(MissingFileError):
        read_picture(tmp_path / "none.png")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")  # 18 kB, and Pillow only warns of it
    with pytest.raises(ImageError, match="too many"):
        read_picture(tmp_path / "bomb.png")
