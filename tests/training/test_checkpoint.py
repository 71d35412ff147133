"""Checkpoints are whole or absent, come back exactly, and rotate without losing the last good one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from studio.pipelines.errors import OutputError, ResumeError
from studio.training import checkpoint as checkpoints
from studio.training.checkpoint import (
    TrainState,
    adapter_file_of,
    complete_checkpoints,
    read_checkpoint,
    remove_leftovers,
    rotate_checkpoints,
    write_checkpoint,
)
from studio.training.metrics import MetricsLog, read_metrics
from studio.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]


def _state(step: int, micro_step: int | None = None) -> TrainState:
    return TrainState(
        step=step,
        micro_step=step if micro_step is None else micro_step,
        trainable={"unet/a/down": torch.full((2, 3), float(step))},
        optimizer={"state": {0: {"step": torch.tensor(1.0), "d": 0.1 / 3}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        ema={"unet/a/down": torch.zeros(2, 3)},
        ema_updates=step,
        facts={"scores": [{"step": 1, "identity": 0.5}], "none": None},
    )


def _adapter(path: Path) -> None:
    path.write_bytes(b"adapter")


def test_a_checkpoint_reads_back_exactly(tmp_path: Path):
    written = write_checkpoint(tmp_path, _state(3), 0, _adapter)
    state = read_checkpoint(written)
    assert written.path.name == "step-000003"
    assert written.adapter_path.read_bytes() == b"adapter"
    assert torch.equal(state.trainable["unet/a/down"], torch.full((2, 3), 3.0))
    assert state.optimizer["state"][0]["d"] == 0.1 / 3
    assert state.optimizer["param_groups"][0]["betas"] == (0.9, 0.99)
    assert state.facts == {"scores": [{"step": 1, "identity": 0.5}], "none": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003"]


def test_only_whole_checkpoints_count_and_they_sort_by_age(tmp_path: Path):
    write_checkpoint(tmp_path, _state(10), 0, _adapter)
    write_checkpoint(tmp_path, _state(10, 21), 1, _adapter)
    cut = write_checkpoint(tmp_path, _state(11), 0, _adapter)
    with open(cut.path / "state.safetensors", "r+b") as stream:
        stream.truncate(20)
    (tmp_path / "step-000012").mkdir()
    (tmp_path / ".writing-abc").mkdir()
    found = complete_checkpoints(tmp_path)
    assert [(c.step, c.micro_in_step) for c in found] == [(10, 0), (10, 1)]
    remove_leftovers(tmp_path)
    assert not (tmp_path / ".writing-abc").exists()
    write_checkpoint(tmp_path, _state(11), 0, _adapter)
    assert complete_checkpoints(tmp_path)[-1].step == 11


def test_rotation_keeps_the_newest_and_the_protected_and_all_adapters(tmp_path: Path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, _state(step), 0, _adapter)
    rotate_checkpoints(tmp_path, keep=1, protected={2})
    assert [c.step for c in complete_checkpoints(tmp_path)] == [2, 4]
    assert all(adapter_file_of(tmp_path, step).is_file() for step in (1, 2, 3, 4))
    rotate_checkpoints(tmp_path, keep=0, protected=())
    assert [c.step for c in complete_checkpoints(tmp_path)] == [4]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_leaves_the_last_good_and_nothing_half(tmp_path: Path, code: int):
    write_checkpoint(tmp_path, _state(1), 0, _adapter)

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(OutputError) as caught:
        write_checkpoint(tmp_path, _state(2), 0, full)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert read_checkpoint(complete_checkpoints(tmp_path)[-1]).step == 1


@pytest.mark.parametrize("point", ["_fill", "_flush", "os.replace"])
def test_killed_at_any_point_of_writing_leaves_the_last_good(tmp_path: Path, point: str):
    """The process ends without clean-up while it writes the second checkpoint."""
    write_checkpoint(tmp_path, _state(1), 0, _adapter)
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from studio.training import checkpoint
from tests.training.test_checkpoint import _state, _adapter
def die(*arguments): os._exit(9)
target = os if {point!r} == "os.replace" else checkpoint
setattr(target, {point!r}.removeprefix("os."), die)
checkpoint.write_checkpoint(Path({str(tmp_path)!r}), _state(2), 0, _adapter)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert [c.step for c in complete_checkpoints(tmp_path)] == [1]
    remove_leftovers(tmp_path)
    write_checkpoint(tmp_path, _state(2), 0, _adapter)
    assert [c.step for c in complete_checkpoints(tmp_path)] == [1, 2]


def test_a_damaged_or_foreign_state_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = write_checkpoint(tmp_path, _state(1), 0, _adapter)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT_VERSION", 99)
        with pytest.raises(ResumeError, match="another version"):
            read_checkpoint(written)
    size = (written.path / "state.safetensors").stat().st_size
    (written.path / "state.safetensors").write_bytes(b"\xff" * size)
    with pytest.raises(ResumeError, match="can't be read"):
        read_checkpoint(written)


def test_two_processes_cannot_share_a_run_folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with folder.locked():
        with pytest.raises(ResumeError, match="another process"), RunFolder(tmp_path / "run").locked():
            pass
    with folder.locked():
        pass


def test_output_that_is_a_file_or_read_only_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        RunFolder(tmp_path / "file").create()
    with pytest.raises(OutputError):
        RunFolder(tmp_path / "file" / "below").create()


def test_metrics_are_buffered_and_drop_what_is_done_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, keep_through=0) as log:
        for step in (1, 2, 3):
            log.add({"micro_step": step, "loss": 1 / step})
        assert read_metrics(path) == []
    with open(path, "a", encoding="utf-8") as stream:
        stream.write('{"micro_step": 4, "lo')
    assert [record["micro_step"] for record in read_metrics(path)] == [1, 2, 3]
    with MetricsLog(path, keep_through=2):
        pass
    assert [record["micro_step"] for record in read_metrics(path)] == [1, 2]
