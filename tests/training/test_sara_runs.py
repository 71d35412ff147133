"""Whole runs with SaRA: resume across the second selection, checkpointing, averages, wrong bases, two processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.pipelines.adapters import Route, load_adapter, merge_into, patched
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import AdapterMismatchError, ConfigError, Interrupted
from studio.training import loop
from studio.training.checkpoint import TrainState, complete_checkpoints, read_checkpoint
from studio.training.config import TrainConfig, dump_toml, load_config
from studio.training.metrics import read_metrics
from studio.training.run_folder import RunFolder
from studio.training.trainer import train
from tests.support.tiny_bases import tiny_embedded_dir
from tests.training.test_resume import assert_equal_states

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


@pytest.fixture
def sara_config(make_config: MakeConfig) -> MakeConfig:
    """A small run of SaRA whose second selection settles some weights."""

    def make(**settings: Any) -> TrainConfig:
        small = {
            "adapter__method": "sara",
            "sara__density": 0.2,
            "optimizer__learning_rate": 0.01,
            "schedule__steps": STEPS,
            "loss__prior": "none",
            "run__checkpoint_every": STEPS,
        }
        return make_config(**{**small, **settings})

    return make


def last_state(run_dir: Path) -> TrainState:
    return read_checkpoint(complete_checkpoints(run_dir / "checkpoints")[-1])


def delta(state: TrainState) -> torch.Tensor:
    return state.trainable["groups.denoiser.delta"]


def settled(state: TrainState) -> torch.Tensor:
    return state.trainable["groups.denoiser._extra_state"]


@pytest.mark.parametrize("stop_at", [2, STEPS // 2, 5])
def test_resume_is_bit_equal_before_at_and_after_the_second_selection(
    sara_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
):
    settings = {"run__ema_decay": 0.9, "adapter__train_text_encoder": True, "run__gradient_accumulation_steps": 2}
    whole = train(sara_config(run__output_dir=str(tmp_path / "whole"), **settings))
    state = last_state(whole.run_dir)
    assert 0 < int(settled(state).sum()) < len(delta(state))
    config = sara_config(run__output_dir=str(tmp_path / "parts"), **settings)
    once = loop._Loop.micro_step_once

    def counted(self: Any) -> None:
        once(self)
        if self.micro_step == 2 * stop_at - (stop_at == 2):  # once in the middle of an accumulation
            self.crew.stop.ask(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "micro_step_once", counted)
        with pytest.raises(Interrupted):
            train(config)
    parts = train(config)
    assert_equal_states(state, last_state(parts.run_dir))
    assert load_adapter(whole.adapter_path).content_hash() == load_adapter(parts.adapter_path).content_hash()


def test_gradient_checkpointing_gives_the_same_weights(sara_config: MakeConfig, tmp_path: Path):
    settings = {"optimizer__epsilon": 1e-2, "schedule__steps": 4}
    plain, other = (
        train(sara_config(run__output_dir=str(tmp_path / str(on)), run__gradient_checkpointing=on, **settings))
        for on in (False, True)
    )
    first, second = delta(last_state(plain.run_dir)), delta(last_state(other.run_dir))
    torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-5)
    assert first.abs().max() > 1e-3


def test_clipping_changes_the_run(sara_config: MakeConfig, tmp_path: Path):
    """With an epsilon of 1 a step follows the gradient's length, which AdamW otherwise divides away."""
    lengths = {
        longest: delta(
            last_state(
                train(
                    sara_config(
                        run__output_dir=str(tmp_path / str(longest)),
                        schedule__steps=2,
                        optimizer__epsilon=1.0,
                        optimizer__max_grad_norm=longest,
                    )
                ).run_dir
            )
        ).norm()
        for longest in (0.0, 0.1)
    }
    assert 0 < lengths[0.1] < 0.9 * lengths[0.0]


def test_the_run_leaves_files_that_do_what_was_trained(sara_config: MakeConfig, tmp_path: Path):
    """All of the denoiser, in the paper's scope; the prior is the base's own output, which at first is the model's too."""
    config = sara_config(sara__scope="all", loss__prior="base-output", run__ema_decay=0.5)
    result = train(config)
    first = read_metrics(RunFolder(result.run_dir).metrics)[0]
    assert first["prior_loss"] < 1e-9
    own, others = load_adapter(result.adapter_path), load_adapter(result.kohya_path)
    assert (own.info.type, others.info.type) == ("sparse", "full")
    parameters = {path.parameter for path in own.patches}
    assert parameters == {"weight", "bias"}
    base = load_base(config.model.base)
    inputs = (torch.randn(1, 16, 4, 4), 500, torch.randn(1, 8, 20))
    with torch.no_grad():
        before = base.unet(*inputs).sample
        outputs = []
        for adapter in (own, others):
            with patched(base.components(), [Route(adapter)]):
                outputs.append(base.unet(*inputs).sample)
        with merge_into(base.components(), own):
            outputs.append(base.unet(*inputs).sample)
        assert torch.equal(base.unet(*inputs).sample, before)
    assert not torch.equal(outputs[0], before)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-3, rtol=1e-3)
    report = result.report_path.read_text(encoding="utf-8")
    assert "for the studio" in report and "load_lora_weights" not in report
    wrong = load_base(tiny_embedded_dir(tmp_path / "wrong", seed=1))
    sentence = r"does not fit (unet|text_encoder)\..*It changes single weights of the base model"
    with pytest.raises(AdapterMismatchError, match=sentence):
        with patched(wrong.components(), [Route(own)]):
            pass


def test_settings_that_contradict_each_other(sara_config: MakeConfig, make_config: MakeConfig):
    with pytest.raises(ConfigError, match="give one of them"):
        sara_config(sara__threshold=1e-3)
    with pytest.raises(ConfigError, match=r"\[sara\] belongs to the method sara"):
        make_config(sara__density=0.1)
    with pytest.raises(ConfigError, match="two sets of weights"):
        train(sara_config(optimizer__name="schedule-free"))
    with pytest.raises(ConfigError, match="low-rank"):
        train(sara_config(adapter__dora=True))


def test_defaults_are_the_papers_on_stable_diffusion_and_a_share_on_the_embedded_base(sara_config: MakeConfig):
    from studio.pipelines.families import family_named
    from studio.training.config import resolve_defaults

    bare = {"sara__density": None, "optimizer__learning_rate": None, "schedule__steps": None}
    config = sara_config(**bare)
    sd15, embedded = (resolve_defaults(config, family_named(name), 4) for name in ("sd15", "embedded"))
    assert (sd15.sara.threshold, sd15.sara.density, sd15.schedule.name) == (2e-3, None, "cosine")
    assert sd15.optimizer.learning_rate == pytest.approx(4.966e-4, rel=1e-3)
    assert embedded.sara.threshold is None and embedded.sara.density is not None
    thinner = resolve_defaults(sara_config(**{**bare, "sara__threshold": 8e-4}), family_named("sd15"), 4)
    assert thinner.optimizer.learning_rate == pytest.approx(7.56e-4, rel=1e-3)
    given = resolve_defaults(sara_config(**{**bare, "optimizer__learning_rate": 0.3}), family_named("sd15"), 4)
    assert given.optimizer.learning_rate == 0.3


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(sara_config: MakeConfig, tmp_path: Path):
    """A gradient that a hook put aside would be the local one, and the processes would drift apart unseen.

    AdamW divides a tiny gradient's rounding by epsilon: at 1e-4 the two differ by 2e-6, at 1e-2 by 4e-8. Without the reduction
    over the processes it is 2e-2.
    """
    settings = {
        "data__batch_size": 4,
        "loss__prior": "base-output",
        "loss__prior_batch_size": 2,
        "run__gradient_accumulation_steps": 2,
        "schedule__steps": 4,
        "optimizer__epsilon": 1e-2,
    }
    one = train(sara_config(run__output_dir=str(tmp_path / "one"), **settings))
    toml = tmp_path / "two.toml"
    toml.write_text(dump_toml(sara_config(run__output_dir=str(tmp_path / "two"), **settings)), encoding="utf-8")
    assert load_config(toml).sara.density == 0.2
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "studio", "train", "sara", "--config", str(toml)]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    first, second = last_state(one.run_dir), last_state(tmp_path / "two")
    assert torch.equal(settled(first), settled(second))
    assert (delta(first) - delta(second)).abs().max() < 1e-6
    assert delta(first).abs().max() > 1e-3
