"""A tiny random base model and five photos, for tests that train for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from studio.training.config import TrainConfig, load_config
from tests.support.tiny_bases import tiny_embedded_dir, tiny_sd15_dir, tiny_sdxl_dir


@pytest.fixture(scope="session")
def base_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny base models by family."""
    folder = tmp_path_factory.mktemp("bases")
    writers = {"embedded": tiny_embedded_dir, "sd15": tiny_sd15_dir, "sdxl": tiny_sdxl_dir}
    return {name: write(folder / name) for name, write in writers.items()}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of noise, 64 pixels a side."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def make_config(base_dirs: dict[str, Path], photos: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A small run's configuration; settings by `section__key=value`, the base by `family=…`."""

    def make(family: str = "embedded", **settings: Any) -> TrainConfig:
        small = {
            "concept.images": str(photos),
            "concept.class_noun": "dog",
            "model.base": str(base_dirs[family]),
            "adapter.rank": 2,
            "data.resolution": 32,
            "data.batch_size": 2,
            "loss.prior_batch_size": 2,
            "schedule.steps": 4,
            "schedule.warmup_steps": 1,
            "run.output_dir": str(tmp_path / "run"),
            "run.device": "cpu",
            "run.sample_every": 0,
        }
        given = {name.replace("__", "."): value for name, value in settings.items()}
        return load_config(None, {**small, **given})

    return make
