"""Trainings of the comparison: each in a process of its own, kept under the hash of all that decides it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import studio
from studio.evals.trainers_plan import Item, profile_of
from studio.evals.trainers_subjects import TOKEN, Subject
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import Interrupted, StudioError
from studio.pipelines.files import atomic_write_json
from studio.training.config import TrainConfig, config_hash, load_config
from studio.training.data.dataset import load_concept
from studio.training.methods import method_named
from studio.training.signals import StopRequest


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished training.

    Attributes:
        folder: the run's own folder, with its report. measured: see `studio.evals.trainers_worker`, and `num_parameters`.
    """

    folder: Path
    measured: Mapping[str, Any]

    @property
    def adapter_path(self) -> Path:
        """The adapter of the chosen checkpoint."""
        return self.folder / "run" / str(self.measured["adapter"])


class TrainingCache:
    """Trained adapters by content: the resolved settings, the photos with their captions, and the base's weights.

    Two items that mean the same training share it, a changed default or a changed base is another training, and what is
    here already is not trained again.
    """

    def __init__(self, folder: Path, base: BaseModel, settings: Mapping[str, object]) -> None:
        """`settings` of every training; `base.source` is what the processes load."""
        self.folder = folder
        self.base = base
        self.settings = dict(settings)

    def training(
        self, item: Item, subject: Subject, stop: StopRequest, on_step: Callable[[int, int], None] | None = None
    ) -> Training:
        """The training of an item, now or from before.

        Raises:
            Interrupted: `stop` was asked for; the training is saved and goes on the next time.
            StudioError: it failed; the message is its own.
        """
        profile = profile_of(item.method)
        which = f"{'all' if profile.num_photos is None else profile.num_photos}{'-neutral' if profile.neutral else ''}"
        photos = self.folder / "photos" / f"{subject.name}-{which}"
        subject.write_photos(photos, profile.num_photos, neutral=profile.neutral)
        settings = self._settings(item, subject, photos)
        config, signature = self._resolved(settings)
        folder = self.folder / self._key(config, signature)
        done = _read(folder / "measured.json")
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / "measured.json.part"
            job = {"settings": {**settings, "run.output_dir": str(folder / "run")}, "measured": str(part)}
            run_worker(job, folder, stop, on_step)
            done = {**json.loads(part.read_text(encoding="utf-8")), "num_parameters": self._count(config)}
            atomic_write_json(folder / "measured.json", done)
            part.unlink()
        return Training(folder=folder, measured=done)

    def _settings(self, item: Item, subject: Subject, photos: Path) -> dict[str, object]:
        settings: dict[str, object] = {
            **subject.settings(neutral=profile_of(item.method).neutral),
            "concept.images": str(photos.absolute()),
            "concept.class_noun": subject.class_noun,
            "concept.token": TOKEN,
            "model.base": self.base.source,
            "adapter.method": item.method,
            "run.seed": item.seed,
            "run.name": subject.name,
            **self.settings,
            **item.variant.settings,
        }
        if item.variant.rate_factor != 1.0:
            rate = self._resolved(settings)[0].optimizer.learning_rate
            assert rate is not None
            settings["optimizer.learning_rate"] = rate * item.variant.rate_factor
        return settings

    def _resolved(self, settings: Mapping[str, object]) -> tuple[TrainConfig, str]:
        config, dataset = load_concept(load_config(None, settings), self.base.family)
        return config, dataset.signature

    def _key(self, config: TrainConfig, signature: str) -> str:
        # These two decide which checkpoints there are to choose from, and are not in the hash of a run.
        looks = f"{config.run.checkpoint_every} {config.run.sample_every}"
        parts = (config_hash(config), signature, self.base.content_hash, looks)
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:20]

    def _count(self, config: TrainConfig) -> int:
        method = method_named(config.adapter.method)
        trainable = method.attach(self.base, method.configure(config), torch.Generator().manual_seed(0))
        return sum(parameter.numel() for group in trainable.parameter_groups() for parameter in group.parameters)


def run_worker(
    job: Mapping[str, object], folder: Path, stop: StopRequest, on_step: Callable[[int, int], None] | None = None
) -> None:
    """Run a job in a process of its own; its messages go to `training.log` in `folder`."""
    job_path, log_path = folder / "job.json", folder / "training.log"
    atomic_write_json(job_path, dict(job))
    with log_path.open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "studio.evals.trainers_worker", str(job_path.absolute())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment()) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if stop:
                        process.terminate()  # it saves its state
                    elif on_step is not None:
                        done, total = map(int, line.split())
                        on_step(done, total)
            except BaseException:
                process.terminate()
                raise
            code = process.wait()
    if stop:
        assert stop.signal_number is not None
        raise Interrupted("stopped; the same command goes on from here", stop.signal_number)
    if code != 0:
        lines = log_path.read_text(encoding="utf-8").strip().splitlines()
        raise StudioError(f"a training failed: {lines[-1] if lines else f'exit code {code}'} (all of it: {log_path})")


def _environment() -> dict[str, str]:
    """This process's, with the studio where this process found it: a clone need not be installed."""
    path = os.pathsep.join(filter(None, (str(Path(studio.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
