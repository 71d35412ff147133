"""Runs as real processes: signals, `kill -9`, the command's exit codes, two processes that train as one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from studio.training.checkpoint import complete_checkpoints, read_checkpoint
from studio.training.config import TrainConfig, dump_toml
from studio.training.metrics import read_metrics

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[2]


def _command(config: TrainConfig, folder: Path, *more: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / "config.toml"
    toml.write_text(dump_toml(config), encoding="utf-8")
    return [sys.executable, "-m", "studio", "train", "dreambooth-lora", "--config", str(toml), *more]


def _start(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=300)
    return process.returncode, output + errors


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_everything_and_exits_with_its_code(
    make_config: MakeConfig, tmp_path: Path, number: signal.Signals, code: int
):
    config = make_config(schedule__steps=100_000, run__checkpoint_every=100_000)
    process = _start(_command(config, tmp_path / "toml"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    _wait_for(lambda: metrics.is_file() and metrics.stat().st_size > 0, process)
    process.send_signal(number)
    returned, text = _end(process)
    assert returned == code, text
    assert "everything is saved" in text
    assert "Traceback" not in text
    (checkpoint,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert read_metrics(metrics)[-1]["micro_step"] == read_checkpoint(checkpoint).micro_step > 0


@pytest.mark.slow
def test_kill_9_loses_only_the_steps_since_the_last_checkpoint(make_config: MakeConfig, tmp_path: Path):
    config = make_config(schedule__steps=100_000, run__checkpoint_every=5)
    process = _start(_command(config, tmp_path / "toml"))
    checkpoints = tmp_path / "run" / "checkpoints"
    _wait_for(lambda: len(complete_checkpoints(checkpoints)) >= 2, process)
    process.kill()
    process.communicate()
    before = complete_checkpoints(checkpoints)[-1].step
    process = _start(_command(config, tmp_path / "toml"))
    _wait_for(lambda: complete_checkpoints(checkpoints)[-1].step > before, process)
    process.send_signal(signal.SIGTERM)
    returned, text = _end(process)
    assert returned == 143
    assert f"going on after step {before}" in text


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(make_config: MakeConfig, tmp_path: Path):
    settings = {
        "data__batch_size": 4,
        "loss__prior_batch_size": 2,
        "run__gradient_accumulation_steps": 2,
        "schedule__steps": 3,
        "run__sample_every": 3,
        "run__sample_steps": 1,
        "optimizer__epsilon": 1e-4,  # AdamW's first step divides a gradient by itself: rounding would become a sign
    }
    one = _start(_command(make_config(run__output_dir=str(tmp_path / "one"), **settings), tmp_path / "a"))
    assert _end(one)[0] == 0
    command = _command(make_config(run__output_dir=str(tmp_path / "two"), **settings), tmp_path / "b")
    port = str(_free_port())
    ranks = [
        _start(command, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]
    for code, text in map(_end, ranks):
        assert code == 0, text
    first, second = (read_checkpoint(complete_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("one", "two"))
    for name, tensor in first.trainable.items():
        assert (tensor - second.trainable[name]).abs().max() < 1e-6, name
    losses = [[record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
