"""constraints.txt pins everything the metadata asks for, inside the ranges, and no machine's own build."""

import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OWNERS_STACK = {"torch", "diffusers", "transformers", "gradio", "accelerate", "xformers", "pillow"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {str(canonicalize_name(name)): version for name, version in pairs}


def test_constraints_pin_what_both_commands_install(project: dict, pins: dict[str, str]):
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"], *project["optional-dependencies"]["ui"]]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            continue
        assert name in pins, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not admit the tested {pins[name]}"


def test_constraints_name_public_releases(pins: dict[str, str]):
    assert pins["torch"] == "2.13.0"
    assert not [name for name, version in pins.items() if Version(version).local or Version(version).is_prerelease]


def test_constraints_hold_no_cuda_build(pins: dict[str, str]):
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda", "triton", "xformers"))]


def test_the_whole_stack_is_declared(project: dict):
    declared = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    assert {canonicalize_name(Requirement(one).name) for one in declared} >= OWNERS_STACK
    assert project["requires-python"] == ">=3.11"


def test_extras_are_there(project: dict):
    assert {"ui", "xformers", "metrics", "optim", "ray", "slurm", "dev"} <= set(project["optional-dependencies"])
    for one in project["optional-dependencies"]["triton"]:
        assert Requirement(one).marker == Marker("sys_platform == 'linux'")
