"""A batch goes on after anything: the same pictures to the byte, what failed stands alone, and every option does what it says."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.batch.folder import BatchFolder
from studio.batch.results import read_lines
from studio.kernels import packed_layers
from studio.kernels.packed_layers import packs_layers
from studio.pipelines.errors import ConfigError, MissingFileError, StudioError, UserError
from studio.pipelines.pictures import read_png
from tests.support.batches import BATCH, pictures, run, run_and_signal, run_killed, write_batch

PACKED = " packed" if packs_layers() else ""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_batch(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def undisturbed(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = run(file, folder)
    assert (outcome.total, outcome.done_now, outcome.failed) == (10, 10, {})
    found = pictures(folder)
    assert len(found) == 20
    return found


def test_killed_twice_at_any_write_it_ends_with_the_same_bytes(file: Path, undisturbed: dict[str, bytes], tmp_path: Path):
    killed = 0
    for number, first in enumerate((9, 14, 18, 45)):
        folder = tmp_path / str(number)
        killed += run_killed(file, folder, first) == -9
        killed += run_killed(file, folder, 7 + 5 * number % 23) == -9
        outcome = run(file, folder)
        assert outcome.done_before + outcome.done_now == 10
        assert pictures(folder) == undisturbed, first
        assert not list(folder.glob(".*.part"))
        states = [line["state"] for line in read_lines(folder / "results.jsonl")]
        assert set(states) == {"done"}
    assert killed == 8


def kernels_of(folder: Path) -> set[str]:
    """How the pictures of a folder say that they were drawn, compositions left out."""
    return {json.loads(path.read_text())["drawn"]["kernels"] for path in folder.glob("0*.json")} - {"strategy"}


def test_how_weights_are_laid_out_stays_as_the_batch_was_begun(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(file, tmp_path / "whole", packs=False)
    run(file, tmp_path / "resumed", packs=False, limit=2)
    run(file, tmp_path / "resumed")
    assert pictures(tmp_path / "resumed") == pictures(tmp_path / "whole")
    assert kernels_of(tmp_path / "whole") == {"folded", "plain"}
    run(file, tmp_path / "moved", limit=4)
    monkeypatch.setattr(packed_layers, "has_packed_layers", lambda: False)  # another machine
    run(file, tmp_path / "moved")
    assert kernels_of(tmp_path / "moved") == {f"folded{PACKED}", "folded", "plain"}


def test_another_batch_size_changes_rounding_alone(file: Path, undisturbed: dict[str, bytes], tmp_path: Path):
    run(file, tmp_path, batch_size=3)
    names = [name for name in undisturbed if name.endswith(".png")]
    (tmp_path / "undisturbed").mkdir()
    total = close = 0
    for name in names:
        (tmp_path / "undisturbed" / name).write_bytes(undisturbed[name])
        one, two = (np.asarray(Image.open(folder / name)).astype(int) for folder in (tmp_path, tmp_path / "undisturbed"))
        close += int((abs(one - two) <= 1).sum())
        total += one.size
    assert close / total >= 0.999


def test_groups_and_records_say_how_it_was_drawn(undisturbed: dict[str, bytes], tmp_path: Path):
    shapes = {name[:5]: json.loads(data)["drawn"] for name, data in undisturbed.items() if name.endswith(".json")}
    assert [shapes[f"0000{n}"]["rows"] for n in range(10)] == [4, 4, 4, 4, 1, 2, 2, 4, 4, 4]
    assert shapes["00003"]["pattern"] == [0, 0, 0, 1] and shapes["00003"]["row"] == 3
    assert {shape["kernels"] for shape in shapes.values()} == {f"folded{PACKED}", f"plain{PACKED}", "strategy"}
    name = next(name for name in undisturbed if name.startswith("00003") and name.endswith("png"))
    (tmp_path / name).write_bytes(undisturbed[name])
    record, text = read_png(tmp_path / name)
    assert record is not None and text is not None and record.drawn == shapes["00003"]
    assert text.settings["Lora hashes"] == f"two: {record.adapters[0].short_hash}"


def test_shards_limits_and_force(file: Path, undisturbed: dict[str, bytes], tmp_path: Path):
    first = run(file, tmp_path, shard=(1, 3))
    assert 0 < first.done_now < 10
    assert run(file, tmp_path, limit=2).done_now == 2
    for number in (2, 3):
        run(file, tmp_path, shard=(number, 3))
    assert pictures(tmp_path) == undisturbed
    again = run(file, tmp_path)
    assert (again.done_before, again.done_now) == (10, 0)
    path = next(tmp_path.glob("00002*.png"))
    path.write_bytes(path.read_bytes()[:-1])
    assert run(file, tmp_path).done_now == 1  # it was not whole
    assert run(file, tmp_path, resume=False, limit=3).done_now == 3
    assert pictures(tmp_path) == undisturbed
    manifest = BatchFolder(tmp_path).read_manifest()
    assert manifest["settings"]["batch_size"] == 4 and manifest["totals"]["done_now"] == 3


def test_one_that_fails_does_not_sink_the_rest(file: Path, undisturbed: dict[str, bytes], tmp_path: Path):
    foreign = BATCH.replace('["two.safetensors:0.5"]', "[foreign.safetensors]")
    broken = foreign + "  - {prompt: a, adapters: [none.safetensors]}\n"
    folder = file.parent
    data = (folder / "one.safetensors").read_bytes()
    (folder / "foreign.safetensors").write_bytes(data.replace(b"embedded", b"sd15    ").replace(b'"sd15    "', b'"sd15"    '))
    other = write_batch(folder, broken, "broken.yaml")
    with pytest.raises(MissingFileError, match="job 5: there is no adapter file none"):
        run(other, tmp_path / "a")
    outcome = run(other, tmp_path / "b", continue_on_error=True)
    assert outcome.done_now == 8 and len(outcome.failed) >= 2
    lines = read_lines(tmp_path / "b" / "results.jsonl")
    assert sorted(line["state"] for line in lines) == ["done"] * 8 + ["failed"] * 2 + ["refused"]
    assert "was made for" in next(line["error"] for line in lines if line["state"] == "failed")
    assert run(other, tmp_path / "b", continue_on_error=True, only_failed=True).done_now == 0
    with pytest.raises(StudioError, match="job 2: .*was made for"):
        run(write_batch(folder, foreign, "foreign.yaml"), tmp_path / "b")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_code_and_what_is_finished_stays(
    file: Path, undisturbed: dict[str, bytes], tmp_path: Path, number: signal.Signals, code: int
):
    other = write_batch(file.parent, BATCH.rstrip() + "\n  - {prompt: long, steps: 1000, num_images: 4}\n", f"long-{code}.yaml")
    arguments = ["batch", str(other), "-o", str(tmp_path), "--device", "cpu", "--batch-size", "4", "--threads", "1"]
    ended = run_and_signal(arguments, number, lambda: len(list(tmp_path.glob("0000[0-3]*.json"))) == 4)
    assert ended == code
    kept = pictures(tmp_path)
    assert len(kept) >= 8 and all(kept[name] == undisturbed[name] for name in kept if name in undisturbed)


def test_refusals(file: Path, tmp_path: Path):
    with BatchFolder(tmp_path).locked(), pytest.raises(UserError, match="Another process"):
        run(file, tmp_path)
    with pytest.raises(ConfigError, match="batch size"):
        run(file, tmp_path, batch_size=0)
    with pytest.raises(ConfigError, match="job 1: the width should be a multiple of 8"):
        run(file, tmp_path, fields={"size": 36})
    (tmp_path / "a-file").touch()
    with pytest.raises(StudioError, match="is a file"):
        run(file, tmp_path / "a-file")
