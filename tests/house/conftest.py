"""The repository, and a wheel built from a copy of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from studio import ROOMS

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGED_FOLDERS = ("studio", *ROOMS)
HOUSE_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt", "Makefile")


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with only these variables and PATH set; standard output and error as text."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(cwd), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> Path:
    """Folder with the sdist, and the wheel made from it."""
    pytest.importorskip("build", reason="needs the dev extra")
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    source.mkdir()
    without = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGED_FOLDERS, "tests", ".ci"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=without)
    for name in (*HOUSE_FILES, "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, source / name)
    done = run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"
