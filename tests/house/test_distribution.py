"""What is built is complete, and runs where nothing else of the repository is."""

import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from studio import ROOMS, __version__
from tests.house.conftest import PACKAGED_FOLDERS, run

pytestmark = pytest.mark.slow


def in_package(folder: str) -> str:
    return "studio" if folder == "studio" else f"studio/{folder}"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """Folder of executables of a new environment that has the wheel and, by path, our dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    executables = folder / "bin"
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run([executables / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return executables


def test_every_folder_with_modules_is_a_package(repository: Path):
    for folder in PACKAGED_FOLDERS:
        for module in (repository / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), f"{module.parent} has modules and no __init__.py"


def test_wheel_has_every_module_and_data_file(repository: Path, wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in PACKAGED_FOLDERS:
        for path in (repository / folder).rglob("*"):
            wanted = path.is_file() and path.suffix != ".pyc" and path.name != ".gitignore"
            if wanted and "__pycache__" not in path.parts and not any(part.endswith(".egg-info") for part in path.parts):
                assert f"{in_package(folder)}/{path.relative_to(repository / folder).as_posix()}" in names


def test_wheel_has_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"studio", f"diffusion_customization_studio-{__version__}.dist-info"}
    assert "studio/py.typed" in names
    assert not [name for name in names if name.startswith("studio/tests")]


def test_source_distribution_can_test_itself(distributions: Path):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"tests/conftest.py", "constraints.txt", "Makefile", "setup.py", ".ci/run", *PACKAGED_FOLDERS} <= names


def test_wheel_runs_in_an_empty_folder(installed: Path, tmp_path: Path):
    done = run([installed / "studio", "--version"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"studio {__version__}\n"), done.stderr
    imports = "import studio, " + ", ".join(f"studio.{room}" for room in ROOMS)
    done = run([installed / "python", "-c", f"{imports}; print(studio.__file__, studio.training.__file__)"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for place in done.stdout.split():
        assert Path(place).is_relative_to(installed.parent), "the repository was found instead of the wheel"


def test_installed_wheel_says_what_is_wrong(installed: Path, tmp_path: Path):
    done = run([installed / "studio", "generat"], cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'generate'" in done.stderr




def test_installed_wheel_makes_a_picture(installed: Path, tmp_path: Path):
    """The embedded base model travels with the wheel: no repository, no network, no cache."""
    done = run([installed / "studio", "generate", "--prompt", "a red cat", "--steps", "2", "--output", "out"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 1
