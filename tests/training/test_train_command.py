"""`studio train dreambooth-lora`: flags are settings, mistakes are sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studio.cli.main import make_command
from studio.training import trainer
from studio.training.config import TrainConfig


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run the command with a trainer that only notes what it was asked; (exit code, what was asked)."""

    def invoke(*arguments: str) -> tuple[int, dict[str, Any]]:
        asked: dict[str, Any] = {}

        def note(config: TrainConfig, **rest: Any) -> trainer.TrainResult:
            asked.update(config=config, **rest)
            return trainer.TrainResult(
                run_dir=tmp_path,
                adapter_path=tmp_path / "adapter.safetensors",
                kohya_path=tmp_path / "adapter.kohya.safetensors",
                report_path=tmp_path / "index.html",
                trigger="ohwx dog",
                steps=1,
                chosen_step=1,
                reason="",
                warnings=(),
                base_score=None,
                scores=(),
                train_seconds=0.0,
                cpu_seconds=0.0,
            )

        monkeypatch.setattr(trainer, "train", note)
        with pytest.raises(SystemExit) as ended:
            make_command()(args=["train", "dreambooth-lora", *arguments], prog_name="studio")
        return int(ended.value.code or 0), asked

    return invoke


def test_flags_and_set_become_settings(run: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path):
    toml = tmp_path / "a.toml"
    toml.write_text('[concept]\nimages = "photos"\nclass_noun = "cat"\n[schedule]\nsteps = 7\n')
    flags = ["--config", str(toml), "--class-noun", "dog", "--learning-rate", "0.001", "--set", "optimizer.name=prodigy"]
    code, asked = run(*flags, "--set", "loss.noise_offset=0.05", "--no-resume", "--redact", "private")
    config = asked["config"]
    assert code == 0
    assert (config.concept.class_noun, config.schedule.steps) == ("dog", 7)
    assert (config.optimizer.learning_rate, config.optimizer.name) == (0.001, "prodigy")
    assert config.loss.noise_offset == 0.05
    assert asked["resume"] is False
    assert asked["redact"] == "private"


def test_by_default_a_run_goes_on_where_there_is_one(run: Callable[..., tuple[int, dict[str, Any]]]):
    code, asked = run("--images", "photos", "--class-noun", "dog")
    assert code == 0
    assert asked["resume"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--images", "x"], "class_noun"),
        (["--images", "x", "--class-noun", "dog", "--set", "optimizer.lr=1"], "did you mean optimizer.learning_rate"),
        (["--images", "x", "--class-noun", "dog", "--set", "nonsense"], "section.key=value"),
        (["--images", "x", "--class-noun", "dog", "--redact", "all"], "none, private or minimal"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    run: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
):
    code, asked = run(*arguments)
    assert code == 2
    assert not asked
    assert sentence in capsys.readouterr().err


def test_every_flag_reaches_its_setting(run: Callable[..., tuple[int, dict[str, Any]]]):
    flags = {
        "--images": ("concept.images", "photos"),
        "--class-noun": ("concept.class_noun", "dog"),
        "--token": ("concept.token", "zwx"),
        "--base": ("model.base", "a-folder"),
        "--output": ("run.output_dir", "there"),
        "--steps": ("schedule.steps", "11"),
        "--learning-rate": ("optimizer.learning_rate", "0.5"),
        "--rank": ("adapter.rank", "3"),
        "--batch-size": ("data.batch_size", "2"),
        "--resolution": ("data.resolution", "64"),
        "--prior": ("loss.prior", "none"),
        "--seed": ("run.seed", "5"),
        "--device": ("run.device", "cpu"),
    }
    code, asked = run(*(text for flag, (_, value) in flags.items() for text in (flag, value)))
    assert code == 0
    for key, value in flags.values():
        section, _, name = key.partition(".")
        assert str(getattr(getattr(asked["config"], section), name)) == value
