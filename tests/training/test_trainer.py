"""Whole runs on tiny real models: what lies in the folder, what the adapter does, how a run ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from studio.pipelines.adapters import Route, load_adapter, patched
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import ConfigError, DatasetError, NonFiniteLossError, OutputError, ResumeError
from studio.training.checkpoint import complete_checkpoints, read_checkpoint
from studio.training.config import TrainConfig
from studio.training.metrics import read_metrics
from studio.training.run_folder import RunFolder
from studio.training.step import TrainStep
from studio.training.trainer import train

MakeConfig = Callable[..., TrainConfig]


class Ruler:
    """A scorer with known answers: identity rises with every sample row, prompt fidelity is what it was told."""

    name = "ruler"
    content_hash = "0" * 64

    def __init__(self, fidelities: Sequence[float]) -> None:
        self.fidelities = list(fidelities)
        self.looks = 0

    def identity(self, images: Sequence[Image.Image], references: Sequence[Image.Image], class_noun: str | None = None) -> Tensor:
        assert class_noun == "dog"
        return torch.full((len(images),), 0.1 * self.looks) + 0.01 * len(references)

    def prompt_fidelity(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        assert all("ohwx" not in prompt for prompt in prompts)
        fidelity = self.fidelities[self.looks]
        self.looks += 1
        return torch.full((len(images),), fidelity)

    def style_agreement(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Tensor:
        return torch.zeros(len(images))


@pytest.fixture
def sampled_run(make_config: MakeConfig) -> tuple[TrainConfig, Ruler]:
    """A run of four checkpoints, of which the third keeps the prompts and the fourth loses them."""
    config = make_config(run__sample_every=1, run__checkpoint_every=1, run__sample_steps=1, run__keep_checkpoints=1)
    return config, Ruler([0.30, 0.31, 0.30, 0.29, 0.10])


def test_a_run_leaves_everything_a_person_needs(sampled_run: tuple[TrainConfig, Ruler]):
    config, scorer = sampled_run
    result = train(config, scorer=scorer)
    folder = RunFolder(result.run_dir)
    assert result.chosen_step == 3
    assert "held-out photo" in result.reason
    assert [score.step for score in result.scores] == [1, 2, 3, 4]
    assert len(read_metrics(folder.metrics)) == 4
    for step in range(5):
        assert len(list(folder.samples_of(step).glob("*.png"))) == 8  # four prompts, two seeds where they are scored
    kept = [checkpoint.step for checkpoint in complete_checkpoints(folder.checkpoints)]
    assert kept == [3, 4]
    record = json.loads(folder.run_json.read_text())
    assert record["status"] == "finished"
    assert folder.loss_plot.read_text().startswith("<svg")


def test_the_report_is_one_page_that_needs_nothing_else(sampled_run: tuple[TrainConfig, Ruler]):
    config, scorer = sampled_run
    result = train(config, scorer=scorer)
    page = result.report_path.read_text()
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) > 20
    for source in sources:
        assert not re.match(r"[a-z]+:|/", source), source
        assert (result.run_dir / source).is_file(), source
    assert "https://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "held-out photo" in page
    assert "chosen" in page
    assert "adapter.kohya.safetensors" in page
    assert str(Path.home()) not in page or str(Path.home()) == "/"


def test_both_files_say_what_they_are_and_do_the_same(sampled_run: tuple[TrainConfig, Ruler]):
    config, scorer = sampled_run
    result = train(config, scorer=scorer)
    peft, kohya = load_adapter(result.adapter_path), load_adapter(result.kohya_path)
    assert peft.content_hash() == kohya.content_hash()
    for adapter in (peft, kohya):
        assert adapter.info.trigger == "ohwx dog"
        assert adapter.info.class_noun == "dog"
        assert adapter.info.family == "embedded"
        assert adapter.info.base_hash == load_base(config.model.base).content_hash
        assert adapter.info.thumbnail is not None
        assert adapter.info.thumbnail.startswith("data:image/png;base64,")
        assert adapter.info.training["steps"] == "3"
        assert float(adapter.info.training["learning_rate"]) > 0


@pytest.mark.parametrize(("level", "hidden"), [("private", "dataset_dirs"), ("minimal", "trigger_phrase")])
def test_redaction(make_config: MakeConfig, level: str, hidden: str):
    result = train(make_config(), redact=level)
    for path in (result.adapter_path, result.kohya_path):
        header = path.read_bytes()[:20_000].decode("utf-8", errors="replace")
        assert hidden not in header
    plain = train(make_config(run__output_dir=str(result.run_dir) + "-plain"), redact="none")
    assert hidden in plain.adapter_path.read_bytes()[:20_000].decode("utf-8", errors="replace")


@pytest.mark.parametrize("family", ["embedded", "sd15", "sdxl"])
@pytest.mark.parametrize("prior", ["none", "class-images", "base-output"])
def test_every_family_and_prior_trains(make_config: MakeConfig, family: str, prior: str):
    config = make_config(
        family,
        loss__prior=prior,
        loss__num_class_images=2,
        loss__snr_gamma=5.0,
        loss__noise_offset=0.05,
        schedule__steps=2,
        run__sample_steps=1,
        adapter__train_text_encoder=True,
        run__gradient_checkpointing=True,
    )
    result = train(config)
    records = read_metrics(RunFolder(result.run_dir).metrics)
    assert all(record["loss"] > 0 for record in records)
    first, second = (record["prior_loss"] for record in records)
    if prior == "base-output":  # at first the model still answers what the base answers
        assert first < 1e-9 < second
    else:
        assert (first > 0, second > 0) == (prior == "class-images",) * 2
    adapter = load_adapter(result.adapter_path)
    encoders = {"text_encoder", "text_encoder_2"} if family == "sdxl" else {"text_encoder"}
    assert set(adapter.components()) == {"unet", *encoders}
    assert "fewer" not in result.reason
    assert "no samples were drawn" in result.reason


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "schedule-free"])
def test_optimizers_move_the_adapter(make_config: MakeConfig, optimizer: str):
    if optimizer != "adamw":
        pytest.importorskip({"prodigy": "prodigyopt", "schedule-free": "schedulefree"}[optimizer])
    result = train(make_config(optimizer__name=optimizer, run__ema_decay=0.9))
    base = load_base(make_config().model.base)
    latents, text = torch.randn(1, 16, 4, 4), torch.randn(1, 8, 20)
    with torch.no_grad():
        before = base.unet(latents, 500, text).sample
        with patched(base.components(), [Route(load_adapter(result.adapter_path))]):
            after = base.unet(latents, 500, text).sample
    assert not torch.equal(before, after)


def test_a_finished_run_has_nothing_left_to_do(make_config: MakeConfig):
    first = train(make_config())
    stamp = first.adapter_path.stat().st_mtime_ns
    again = train(make_config())
    assert again.already_finished
    assert again.adapter_path.stat().st_mtime_ns == stamp
    with pytest.raises(ResumeError, match=r"optimizer\.learning_rate"):
        train(make_config(optimizer__learning_rate=0.5))
    assert not train(make_config(optimizer__learning_rate=0.5), resume=False).already_finished


def test_resume_without_a_run_is_refused(make_config: MakeConfig):
    with pytest.raises(ResumeError, match="no run"):
        train(make_config(), resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    forward = TrainStep.forward
    calls = []

    def poisoned(self: TrainStep, batch: object) -> Tensor:
        calls.append(None)
        loss = forward(self, batch)
        return loss * float("nan") if len(calls) == 4 else loss

    config = make_config(run__checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "forward", poisoned)
        with pytest.raises(NonFiniteLossError, match="step 4"):
            train(config)
    folder = RunFolder(config.run.output_dir)
    (checkpoint,) = complete_checkpoints(folder.checkpoints)
    assert checkpoint.step == 2
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(checkpoint).trainable.values())
    assert json.loads(folder.run_json.read_text())["status"] == "failed"
    assert train(config).steps == 4


def test_bad_input_is_one_sentence(make_config: MakeConfig, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        train(make_config(concept__images=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="no training method"):
        train(make_config(adapter__method="magic"))
    with pytest.raises(ConfigError, match="no such device"):
        train(make_config(run__device="cuda:99"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        train(make_config(run__output_dir=str(tmp_path / "file")))
