"""The script that makes .venv finds a Python by itself, or says in one sentence that there is none."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.house.conftest import run

TOOLS = ("bash", "dirname", "sed", "cat", "rm", "env")


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """A clone's house files, and a folder of the few tools that a bare machine has."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(repository / ".ci" / "install", tmp_path / ".ci" / "install")
    for name in ("pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


def pretend_python(folder: Path, name: str, version: str) -> None:
    """A launcher that answers the question for its version, and prints how it was called otherwise."""
    answer = "exit 0" if version in {"3.11", "3.12", "3.13"} else "exit 1"
    script = f'case "$1" in -c) {answer};; --version) echo Python {version};; *) echo "{name} $*"; exit 1;; esac'
    write_script(folder / "bin" / name, script)


def install(clone: Path, **environment: str):
    return run([clone / "bin" / "bash", ".ci/install"], cwd=clone, PATH=str(clone / "bin"), **environment)


def test_no_python_is_one_sentence(clone: Path):
    pretend_python(clone, "python3.12", "a launcher without an interpreter")
    pretend_python(clone, "python3", "3.9")
    done = install(clone)
    assert done.returncode == 2
    assert done.stderr.startswith("No Python 3.11, 3.12 or 3.13 was found; install one, or name it")
    assert done.stderr.count("\n") == 1
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("named", ["python3.9", "/nowhere/python"])
def test_a_named_python_is_not_replaced_by_another(clone: Path, named: str):
    pretend_python(clone, "python3.9", "3.9")
    pretend_python(clone, "python3.11", "3.11")
    done = install(clone, PYTHON=named)
    assert (done.returncode, done.stderr) == (2, f"PYTHON={named} is no Python 3.11, 3.12 or 3.13.\n")


def test_a_python_without_venv_is_one_sentence(clone: Path):
    pretend_python(clone, "python3", "3.9")
    pretend_python(clone, "python3.13", "3.13")
    done = install(clone)
    assert done.returncode == 2
    assert "python3.13 -m venv" in done.stdout
    assert "cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_installs_once_and_again_when_versions_change(clone: Path):
    """The environment's Python is real but for `-m pip`, which only writes down what it was asked."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    pip = 'if [ "$1" = -m ]; then echo "$*" >> pip.log; exit "${PIP_ENDS:-0}"; fi'
    write_script(clone / ".venv" / "bin" / "python", f'{pip}\nexec {sys.executable} "$@"')
    calls = clone / "pip.log"

    assert "The installation failed" in install(clone, PIP_ENDS="1").stderr
    calls.unlink()
    for _ in range(2):  # the second time nothing happens
        assert install(clone).returncode == 0
        assert calls.read_text() == "-m pip install --quiet --quiet --constraint constraints.txt --editable .\n"
    calls.unlink()
    for extra in ("dev", ""):  # what the tests need includes what the product needs
        assert run([clone / "bin" / "bash", ".ci/install", extra], cwd=clone, PATH=str(clone / "bin")).returncode == 0
        assert calls.read_text().split()[-1] == ".[dev]"
    (clone / "constraints.txt").write_text("torch==2.14.0\n")
    assert install(clone).returncode == 0
    assert calls.read_text().split()[-1] == "."
    calls.unlink()
    (clone / "pyproject.toml").write_text((clone / "pyproject.toml").read_text() + "\n[tool.other]\nkey = 1\n")
    assert install(clone).returncode == 0
    assert not calls.exists(), "a tool's settings have nothing to do with what is installed"
