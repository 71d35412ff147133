"""Resume is bit-equal to an uninterrupted run: weights, optimizer, average, random states, data position."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.pipelines.adapters import load_adapter
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import Interrupted, ResumeError
from studio.training import loop, trainer
from studio.training.checkpoint import TrainState, complete_checkpoints, read_checkpoint
from studio.training.config import TrainConfig
from studio.training.metrics import read_metrics
from studio.training.run_folder import RunFolder
from studio.training.trainer import train
from tests.support.tiny_bases import tiny_embedded_dir

MakeConfig = Callable[..., TrainConfig]

# Four photos are trained on (one is held out) at two a step: an epoch is two steps; with accumulation, one.
PLACES = {"step 1": (1, 1), "mid-epoch": (3, 1), "epoch edge": (4, 1), "within an accumulation": (5, 2)}


def _stop_after(micro_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the loop to stop, as a signal would, when so many forward passes are done."""
    once = loop._Loop.micro_step_once

    def counted(self: Any) -> None:
        once(self)
        if self.micro_step == micro_steps:
            self.crew.stop.ask(signal.SIGTERM)

    monkeypatch.setattr(loop._Loop, "micro_step_once", counted)


def _last_state(run_dir: Path) -> TrainState:
    return read_checkpoint(complete_checkpoints(run_dir / "checkpoints")[-1])


def assert_equal_states(one: TrainState, other: TrainState) -> None:
    """Bit for bit, in everything."""

    def check(a: Any, b: Any, where: str) -> None:
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                check(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, list | tuple):
            assert len(a) == len(b), where
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                check(x, y, f"{where}[{index}]")
        else:
            assert a == b, where

    for name in one.__dataclass_fields__:
        check(getattr(one, name), getattr(other, name), name)


@pytest.mark.parametrize("place", PLACES)
def test_resume_is_bit_equal(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    stop_at, accumulation = PLACES[place]
    settings = {
        "schedule__steps": 6 // accumulation + 2,
        "schedule__name": "cosine",
        "run__ema_decay": 0.9,
        "run__gradient_accumulation_steps": accumulation,
        "adapter__train_text_encoder": True,
        "run__seed": 7,
    }
    whole = train(make_config(run__output_dir=str(tmp_path / "whole"), **settings))
    config = make_config(run__output_dir=str(tmp_path / "parts"), **settings)
    with monkeypatch.context() as patch:
        _stop_after(stop_at, patch)
        with pytest.raises(Interrupted) as caught:
            train(config)
    assert caught.value.exit_code == 143
    torch.rand(5)  # whatever else the process draws in between
    parts = train(config)
    assert_equal_states(_last_state(whole.run_dir), _last_state(parts.run_dir))
    assert load_adapter(whole.adapter_path).content_hash() == load_adapter(parts.adapter_path).content_hash()
    losses = [[r["loss"] for r in read_metrics(RunFolder(run.run_dir).metrics)] for run in (whole, parts)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", ["prodigy", "schedule-free"])
def test_resume_is_bit_equal_with_other_optimizers(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
):
    """Schedule-free holds two sets of weights; saving looks at the other one, and must not disturb the run."""
    pytest.importorskip({"prodigy": "prodigyopt", "schedule-free": "schedulefree"}[optimizer])
    settings = {"optimizer__name": optimizer, "loss__prior": "none"}
    whole = train(make_config(run__output_dir=str(tmp_path / "whole"), run__checkpoint_every=4, **settings))
    config = make_config(run__output_dir=str(tmp_path / "parts"), run__checkpoint_every=1, **settings)
    with monkeypatch.context() as patch:
        _stop_after(2, patch)
        with pytest.raises(Interrupted):
            train(config)
    parts = train(config)
    assert_equal_states(_last_state(whole.run_dir), _last_state(parts.run_dir))


def test_looking_does_not_change_the_run(make_config: MakeConfig, tmp_path: Path):
    quiet = train(make_config(run__output_dir=str(tmp_path / "quiet"), run__ema_decay=0.9))
    watched = train(
        make_config(
            run__output_dir=str(tmp_path / "watched"),
            run__ema_decay=0.9,
            run__sample_every=1,
            run__checkpoint_every=1,
            run__sample_steps=1,
        )
    )
    assert_equal_states(_last_state(quiet.run_dir), _last_state(watched.run_dir))


def test_a_changed_run_is_refused_with_the_difference(
    make_config: MakeConfig, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        _stop_after(1, patch)
        with pytest.raises(Interrupted):
            train(make_config())
    with pytest.raises(ResumeError) as caught:
        train(make_config(adapter__rank=3, loss__prior_weight=0.5))
    assert "adapter.rank: 2 -> 3" in str(caught.value)
    assert "loss.prior_weight" in str(caught.value)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in sorted(photos.iterdir())[:4]:
        (fewer / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ResumeError, match="photos"):
        train(make_config(concept__images=str(fewer)))
    config, other = make_config(), tiny_embedded_dir(tmp_path / "other", seed=1)
    monkeypatch.setattr(trainer, "open_concept", _with_base(trainer.open_concept, other))
    with pytest.raises(ResumeError, match="base model"):
        train(config)


def _with_base(open_concept: Any, other: Path) -> Any:
    """The same settings, but the weights behind the base's name have changed."""
    return lambda config, progress: replace(open_concept(config, progress), base=load_base(other))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    config = make_config(run__checkpoint_every=1)
    with monkeypatch.context() as patch:
        _stop_after(3, patch)
        with pytest.raises(Interrupted):
            train(config)
    folder = RunFolder(config.run.output_dir)
    newest = complete_checkpoints(folder.checkpoints)[-1]
    size = (newest.path / "state.safetensors").stat().st_size
    (newest.path / "state.safetensors").write_bytes(b"\0" * size)
    assert train(config).steps == 4
    assert [record["step"] for record in read_metrics(folder.metrics)] == [1, 2, 3, 4]


def test_killed_while_finishing_goes_on_to_the_end(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_final_adapters", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    result = train(config)
    assert result.adapter_path.is_file()
    assert json.loads((result.run_dir / "run.json").read_text())["status"] == "finished"
