"""A clone works without being installed, and shows its rooms only."""

import runpy
import sys
from collections import namedtuple
from importlib.util import find_spec
from pathlib import Path

import pytest

from studio import ROOMS
from tests.house.conftest import run


def test_rooms_are_found_without_installation(repository: Path, tmp_path: Path):
    code = "import studio, " + ", ".join(f"studio.{room} as {room}" for room in ROOMS)
    code += "; print(*(room.__file__ for room in (" + ", ".join(ROOMS) + ")), sep='\\n')"
    # -S: no site-packages, so nothing installed can help.
    done = run([sys.executable, "-S", "-c", code], cwd=tmp_path, PYTHONPATH=str(repository))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [str(repository / room / "__init__.py") for room in ROOMS]


@pytest.mark.parametrize("name", ["tests", "setup", "docs", "build", "studio"])
def test_other_folders_are_no_part_of_the_package(name: str):
    assert find_spec(f"studio.{name}") is None


def test_rooms_are_not_importable_by_their_folder_names_after_installation(tmp_path: Path):
    code = "import importlib.util, studio; print([n for n in studio.ROOMS if importlib.util.find_spec(n)])"
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    if "No module named 'studio'" in done.stderr:
        pytest.skip("the studio is not installed here")
    assert done.stdout.strip() == "[]"


def test_an_old_python_gets_one_sentence(repository: Path, monkeypatch):
    version = namedtuple("version", ["major", "minor", "micro", "releaselevel", "serial"])
    monkeypatch.setattr(sys, "version_info", version(3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer; this is Python 3\.9\. Make a virtual environment"):
        runpy.run_path(str(repository / "studio" / "__init__.py"))
