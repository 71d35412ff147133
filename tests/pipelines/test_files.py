"""Files that appear whole or not at all."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from studio.pipelines.errors import OutputError
from studio.pipelines.files import atomic_save_safetensors, atomic_write_bytes, atomic_write_json, atomic_write_text


def test_content_replaces_content_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    atomic_write_text(path, "erste Fassung")
    atomic_write_text(path, "zweite Fassung: ü")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: ü"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    atomic_write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only"), (errno.EIO, "error")],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(number, words, step, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    atomic_write_text(path, "old")

    def failing(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        with pytest.raises(OutputError, match=words) as caught:
            atomic_write_text(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            atomic_write_bytes(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "below", tmp_path / ("long" * 100), tmp_path):
        with pytest.raises(OutputError, match="cannot be written"):
            atomic_write_bytes(path, b"data")


def test_json_is_strict(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "b.json", float("nan"))
    assert not Path(tmp_path / "b.json").exists()


def test_safetensors_come_back_and_are_the_same_bytes_every_time(tmp_path):
    tensors = {
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "half": torch.ones(3, dtype=torch.float16),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    metadata = {f"key {index}": f"value ü {index}" for index in range(20)}
    for name in ("first", "second"):
        atomic_save_safetensors(tmp_path / name, tensors, metadata)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    loaded = load_file(tmp_path / "first")
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "first", "pt") as file:
        assert file.metadata() == metadata
    atomic_save_safetensors(tmp_path / "plain", tensors)
    assert set(load_file(tmp_path / "plain")) == set(tensors)
