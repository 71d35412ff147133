"""`studio generate` as people call it: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from studio.cli.generate import parse_adapter, parse_size
from studio.cli.main import main
from studio.pipelines.adapters import new_lora, save_adapter
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import UserError
from studio.pipelines.pictures import read_png
from tests.support.tiny_bases import tiny_embedded_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, an adapter for it and one for another family."""
    root = tmp_path_factory.mktemp("generate")
    base = load_base(tiny_embedded_dir(root / "base"))
    adapter = new_lora(
        base.components(), {"unet": base.family.attention_targets}, rank=1, alpha=1.0, generator=torch.Generator().manual_seed(0)
    )
    named = replace(adapter, info=replace(adapter.info, name="robot", family="embedded", trigger="ohwx robot"))
    save_adapter(named, root / "robot.safetensors", family=base.family)
    save_adapter(replace(named, info=replace(named.info, family="sd15")), root / "foreign.safetensors")
    return root


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call `studio generate` in this process, on the tiny base."""

    def call(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            main(["generate", "--base", str(folder / "base"), "--device", "cpu", "--steps", "2", *arguments])
        printed = capfd.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    return call


def test_pictures_are_written_and_their_paths_printed(run: Run, folder: Path, tmp_path: Path):
    adapter = f"{folder / 'robot.safetensors'}:0.5"
    result = run("-p", "a cat", "-n", "2", "--seed", "5", "--size", "64x48", "-a", adapter, "-o", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    printed = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name[:7] for path in printed] == ["00000-5", "00001-6", "00000-c"]
    record, text = read_png(printed[0])
    assert record is not None and text is not None
    assert (record.prompt, record.seed, record.width, record.height) == ("a cat", 5, 64, 48)
    assert [(use.name, use.strength) for use in record.adapters] == [("robot", 0.5)]
    assert text.settings["Size"] == "64x48" and text.settings["Model hash"] == record.base_hash[:10]
    assert "answers to" in result.stderr and "ohwx robot" in result.stderr
    assert printed[0].with_suffix(".json").is_file()
    again = run("-p", "a cat", "--seed", "5", "-o", str(tmp_path), "--no-metadata")
    (path,) = [Path(line) for line in again.stdout.splitlines()]
    assert path.name.startswith("00002-5") and read_png(path) == (None, None)
    assert not path.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size", "100"], 2, "multiple of 8"),
        (["--size", "big"], 2, "640x480"),
        (["--scheduler", "eular"], 2, "Did you mean 'euler'"),
        (["--adapter", "none.safetensors:0.5"], 3, "no adapter file none.safetensors"),
        (["--adapter", "{folder}/foreign.safetensors"], 2, "was made for Stable Diffusion 1.5"),
        (["--adapter", "{folder}/robot.safetensors:much"], 2, "should be a number"),
        (["--steps", "0"], 2, "number of steps"),
        (["--device", "cuda:99"], 2, "no device 'cuda:99'"),
    ],
)
def test_refusals_are_one_sentence_with_a_code(
    run: Run, folder: Path, tmp_path: Path, arguments: list[str], code: int, message: str
):
    filled = [argument.format(folder=folder) for argument in arguments]
    result = run("-p", "a cat", "-o", str(tmp_path), *filled)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_files_and_strengths(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    file.touch()
    odd = tmp_path / "b:2"
    odd.touch()
    assert parse_adapter(f"{file}:0.8") == (file, 0.8)
    assert parse_adapter(f"{file}:-1") == (file, -1.0)
    assert parse_adapter(str(file)) == (file, 1.0)
    assert parse_adapter(str(odd)) == (odd, 1.0)
    assert parse_adapter(r"C:\adapters\robot.safetensors") == (Path(r"C:\adapters\robot.safetensors"), 1.0)
    assert parse_adapter(r"C:\adapters\robot.safetensors:0.5") == (Path(r"C:\adapters\robot.safetensors"), 0.5)
    for wrong in (f"{file}:nan", f"{file}:inf", f"{file}:", f"{file}:big"):
        with pytest.raises(UserError, match="strength"):
            parse_adapter(wrong)


@pytest.mark.parametrize(
    ("text", "size"),
    [("96", (96, 96)), ("640x480", (640, 480)), ("640 X 480", (640, 480)), ("640×480", (640, 480)), (None, (None, None))],
)
def test_sizes(text: str | None, size: tuple[int | None, int | None]):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "-64", "64.5", "64x64x64"])
def test_sizes_that_are_none(text: str):
    with pytest.raises(UserError, match="640x480"):
        parse_size(text)
