"""The proof that jobs survive, in two sizes: a small one among the tests, the full one by `make proof-service`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from studio.jobs.store import JobStore
from studio.storage.home import Home


@dataclass(frozen=True)
class Sizes:
    """How much is tried."""

    name: str
    claimed_jobs: int
    processes: int
    threads: int
    killed_trainings: int
    killed_drawings: int
    fuzz_cases: int
    listed_rows: int
    ray_nodes: int


SMALL = Sizes("small", 1_000, 2, 4, 2, 3, 1_000, 10_000, 2)
FULL = Sizes("full", 10_000, 4, 8, 25, 25, 10_000, 10_000, 3)
SIZES = FULL if os.environ.get("STUDIO_PROOF") == "full" else SMALL


def note(name: str, **figures: Any) -> None:
    """Print figures, and write them beside the docs in the full form."""
    print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    folder = os.environ.get("STUDIO_PROOF_RECORDS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        values = {"size": SIZES.name, "when": time.strftime("%Y-%m-%d"), **figures}
        (Path(folder) / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    return SIZES


@pytest.fixture(scope="session")
def record() -> Callable[..., None]:
    return note


@pytest.fixture
def store(tmp_path: Path):
    opened = JobStore(Home(tmp_path / "home"))
    yield opened
    opened.close()
