"""Pictures on disk: the grammar other tools read, records read back, names, contact sheets."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from studio.pipelines.errors import ImageError, MissingFileError, OutputError
from studio.pipelines.pictures import (
    AdapterUse,
    PictureRecord,
    contact_sheet,
    lora_short_hash,
    next_index,
    picture_name,
    read_infotext,
    read_png,
    read_sidecar,
    save_picture,
    sidecar_path,
    slug,
)
from studio.pipelines.pictures.infotext import infotext, quote, unquote
from studio.pipelines.pictures.record import base_name

ROBOT = AdapterUse(name="robot", strength=0.8, sha256="ab" * 32, short_hash="0123456789ab")
RECORD = PictureRecord(
    prompt="a photo of ohwx robot",
    negative_prompt="blurry, grey",
    seed=7,
    steps=30,
    guidance_scale=7.5,
    scheduler="euler_a",
    width=640,
    height=480,
    base="sd15",
    base_hash="0123456789abcdef" * 4,
    family="sd15",
    dtype="float32",
    adapters=(ROBOT,),
    version="0.1.0",
)
LETTERS = "aZ9 -_.,:;\"'<>()[]{}=#~/\\*?|\n\x00ßä猫🐈N" + "\N{COMBINING ACUTE ACCENT}"
IMAGE = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))


def test_the_parameters_text_is_a1111s():
    assert infotext(RECORD) == (
        "a photo of ohwx robot <lora:robot:0.8>\n"
        "Negative prompt: blurry, grey\n"
        "Steps: 30, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.5, Seed: 7, Size: 640x480, "
        'Model hash: 0123456789, Model: sd15, Lora hashes: "robot: 0123456789ab", Version: studio 0.1.0'
    )


def test_values_with_separators_are_quoted_and_names_cannot_break_out():
    two = replace(RECORD, base='a, "model": x', adapters=(ROBOT, replace(ROBOT, name='b,a:d>"q"')), negative_prompt="")
    settings = read_infotext(infotext(two)).settings
    assert settings["Model"] == 'a, "model": x'
    assert settings["Lora hashes"] == "robot: 0123456789ab, b_a_d_q_: 0123456789ab"
    assert "Negative prompt" not in infotext(two)
    tags = re.findall(r"<lora:([^:>]+):([\d.]+)>", infotext(two))
    assert tags == [("robot", "0.8"), ("b_a_d_q_", "0.8")]


def test_a_foreign_parameters_text_is_read():
    text = (
        'a cat,\nin a (hat:1.2), "quoted: yes"\nNegative prompt: dog,\nbird\n'
        'Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "x: 0a, y: 1b", Version: v1.9.3'
    )
    read = read_infotext(text)
    assert read.prompt == 'a cat,\nin a (hat:1.2), "quoted: yes"'
    assert read.negative_prompt == "dog,\nbird"
    assert read.settings["Sampler"] == "DPM++ 2M Karras" and read.settings["Lora hashes"] == "x: 0a, y: 1b"
    assert read_infotext("a cat, really").settings == {}


@given(st.text(st.sampled_from(LETTERS), min_size=1))
def test_quoting_is_undone(value: str):
    assert unquote(quote(value)) == value or (value.startswith('"') and value.endswith('"'))


@given(st.text(st.sampled_from(LETTERS.replace("\n", "").replace("\x00", ""))), st.text(st.sampled_from(LETTERS[:20])))
def test_any_prompt_comes_back(prompt: str, negative: str):
    record = replace(RECORD, prompt=prompt, negative_prompt=negative, adapters=())
    assert PictureRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    if prompt.strip() and not prompt.startswith("Negative prompt:"):
        read = read_infotext(infotext(record))
        assert (read.prompt, read.negative_prompt) == (prompt.strip(), negative.strip())
        assert read.settings["Seed"] == "7"


# ------------------------------------------------------------------------------------------------------------ files


def test_a_picture_and_both_its_records_are_read_back(tmp_path: Path):
    record = replace(RECORD, prompt="ein Kätzchen, 猫, 🐈: rot")
    path = tmp_path / "new" / "folder" / "picture.png"
    save_picture(path, IMAGE, record)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(IMAGE))
    found, text = read_png(path)
    assert found == record and read_sidecar(path) == record
    assert text is not None and text.prompt == "ein Kätzchen, 猫, 🐈: rot <lora:robot:0.8>"
    values = json.loads(sidecar_path(path).read_text())
    assert values["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(item.name for item in path.parent.iterdir()) == ["picture.json", "picture.png"]


def test_without_a_record_nothing_is_written_but_pixels(tmp_path: Path):
    save_picture(tmp_path / "picture.png", IMAGE, None)
    assert read_png(tmp_path / "picture.png") == (None, None)
    assert [item.name for item in tmp_path.iterdir()] == ["picture.png"]


def test_damaged_and_missing_pictures_are_one_sentence(tmp_path: Path):
    with pytest.raises(MissingFileError):
        read_png(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match="not a readable picture"):
        read_png(tmp_path / "text.png")
    save_picture(tmp_path / "cut.png", IMAGE, RECORD)
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError):
        read_png(tmp_path / "cut.png")
    sidecar_path(tmp_path / "cut.png").write_text('{"prompt": "x"}')
    with pytest.raises(ImageError, match="not complete"):
        read_sidecar(tmp_path / "cut.png")
    sidecar_path(tmp_path / "cut.png").unlink()
    with pytest.raises(MissingFileError, match="no record"):
        read_sidecar(tmp_path / "cut.png")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        save_picture(tmp_path / "file" / "picture.png", IMAGE, RECORD)


def test_records_name_no_place_on_this_machine(tmp_path: Path):
    (tmp_path / "secret-folder").mkdir()
    model = tmp_path / "secret-folder" / "model.v2.safetensors"
    model.write_bytes(b"")
    assert base_name(str(model)) == "model.v2"
    assert base_name(str(tmp_path / "secret-folder")) == "secret-folder"
    assert base_name("owner/name") == "owner/name" and base_name("embedded") == "embedded"


def test_the_hash_is_of_what_decides_the_pixels():
    assert replace(RECORD, version="9").content_hash() == RECORD.content_hash()
    for change in ({"seed": 8}, {"steps": 31}, {"prompt": "x"}, {"base_hash": "0"}, {"adapters": ()}, {"dtype": "bfloat16"}):
        assert replace(RECORD, **change).content_hash() != RECORD.content_hash()


def test_the_short_hash_of_a_lora_skips_the_header(tmp_path: Path):
    for name, header in (("a", b'{"x":1}'), ("b", b'{"other metadata":2}')):
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + b"tensors")
    expected = hashlib.sha256(b"tensors").hexdigest()[:12]
    assert lora_short_hash(tmp_path / "a") == lora_short_hash(tmp_path / "b") == expected


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A photo of ohwx robot!", "a-photo-of-ohwx-robot"),
        ("../../etc/passwd", "etc-passwd"),
        ("Kätzchen süß", "katzchen-su"),
        ("猫", "picture"),
        ("", "picture"),
        ("con", "con-"),
        ("a" * 200, "a" * 60),
        ("x\x00\n\\/:*?<>|y", "x-y"),
    ],
)
def test_slugs(text: str, expected: str):
    assert slug(text) == expected


@given(st.text(st.sampled_from(LETTERS)))
def test_slugs_are_safe_whatever_the_text(text: str):
    assert re.fullmatch(r"[a-z0-9-]{1,61}", slug(text))


def test_names_and_numbering(tmp_path: Path):
    assert picture_name(3, 7, "A red cat", "abcdef0123456789") == "00003-7-a-red-cat-abcdef01.png"
    assert next_index(tmp_path / "none") == 0
    (tmp_path / picture_name(41, 7, "x", "abcdef01")).touch()
    (tmp_path / "notes-00099.png").touch()
    assert next_index(tmp_path) == 42


# ----------------------------------------------------------------------------------------------------- contact sheets


def test_a_contact_sheet_shows_every_picture_whole():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    images = [Image.new("RGB", (96, 64), colour) for colour in colours]
    sheet = contact_sheet(images, [f"number {n} " * 20 for n in range(5)], columns=3, title="All", row_labels=["one", "two"])
    array = np.asarray(sheet).reshape(-1, 3)
    for colour in colours:
        assert (array == colour).all(axis=1).sum() == 192 * 128
    assert sheet.height > 2 * 128 and sheet.width > 3 * 192


def test_a_contact_sheet_needs_pictures_and_as_many_captions():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 captions"):
        contact_sheet([IMAGE], ["a", "b"])
