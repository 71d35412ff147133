"""The rules of the house catch what they are for: each is shown one violation."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.conftest import PACKAGED_FOLDERS

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_LAYOUT_LINES = 130
"""Of a page's `build…`: it declares components in the order in which they are seen, and has no branches."""


def lint(repository: Path, code: str) -> set[str]:
    """Codes of the lint rules that this module breaks."""
    pytest.importorskip("ruff", reason="needs the dev extra")
    command = [sys.executable, "-m", "ruff", "check", "--config", repository / "pyproject.toml", "--no-cache"]
    command += ["--output-format", "concise", "--stdin-filename", repository / "studio" / "example.py", "-"]
    module = f'"""A module."""\n\n{code}\n'
    done = subprocess.run(list(map(str, command)), input=module, capture_output=True, text=True, cwd=repository, check=False)
    return set(re.findall(r"\d+: ([A-Z]+\d+) ", done.stdout))


@pytest.mark.parametrize("room", ["training", "composition", "pipelines", "kernels", "ui", "assets"])
def test_rooms_are_imported_as_parts_of_studio(repository: Path, room: str):
    assert "TID251" in lint(repository, f"import {room}\n\nprint({room})")
    assert "TID251" in lint(repository, f"from {room}.thing import name\n\nprint(name)")
    assert lint(repository, f"import studio.{room}\n\nprint(studio.{room})") == set()


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import subprocess\n\nsubprocess.run('ls', shell=True, check=True)", "S602"),
        ("import pickle\n\nprint(pickle.loads(b''))", "S301"),
        ("print(eval('1'))", "S307"),
        ("exec('x = 1')", "S102"),
        ("import torch\n\ntorch.load('x', weights_only=False)", "TID251"),
        ("import torch\n\ntorch.save({}, 'x')", "TID251"),
        ("def call(x):\n    print(x)", "ANN201"),
        ("def call(x: int) -> None:\n    print(x)", "D103"),
    ],
)
def test_lint_refuses(repository: Path, code: str, rule: str):
    assert rule in lint(repository, code)


VIOLATIONS = {
    "kernels/example.py": "import studio.training",
    "training/example.py": "import studio.composition",
    "assets/example.py": "import torch",
    "pipelines/example.py": "import gradio",
    "training/methods/one_example.py": "import studio.training.methods.other_example",
    "training/methods/other_example.py": "",
}


@pytest.mark.parametrize("broken", [False, True], ids=["as-it-is", "broken"])
def test_import_rules(repository: Path, tmp_path: Path, broken: bool):
    """All contracts hold; and with one violation each, each of these is seen."""
    pytest.importorskip("importlinter", reason="needs the dev extra")
    no_data = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png", "*.jpg", "*.json", "*.txt", "*.npz")
    for folder in PACKAGED_FOLDERS:
        place = tmp_path / "studio" / ("" if folder == "studio" else folder)
        shutil.copytree(repository / folder, place, ignore=no_data, dirs_exist_ok=True)
    if broken:
        for path, code in VIOLATIONS.items():
            (tmp_path / "studio" / path).write_text(code + "\n")
    lint_imports = Path(sys.executable).with_name("lint-imports")
    command = [lint_imports, "--config", repository / "pyproject.toml", "--no-cache"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)(?: \(.*\))?$", done.stdout, re.MULTILINE)
    assert len(verdicts) >= 8, done.stdout + done.stderr
    seen_broken = {name for name, verdict in verdicts if verdict == "BROKEN"}
    assert seen_broken == (
        {
            "Imports point down only",
            "Training methods do not import each other",
            "gradio lives in the ui room only",
            "Assets are drawn with numpy and Pillow alone",
        }
        if broken
        else set()
    ), done.stdout


def modules(repository: Path) -> list[Path]:
    return [path for folder in (*PACKAGED_FOLDERS, "tests") for path in sorted((repository / folder).rglob("*.py"))]


def test_files_and_functions_fit_a_readers_eye(repository: Path):
    too_long = []
    for path in modules(repository):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE_LINES:
            too_long.append(f"{path.relative_to(repository)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1  # a command's options are no code
                is_layout = node.name.startswith("build") and path.is_relative_to(repository / "ui" / "pages")
                if lines > (MAX_LAYOUT_LINES if is_layout else MAX_FUNCTION_LINES):
                    too_long.append(f"{path.relative_to(repository)}: {node.name} has {lines} lines")
    assert not too_long


def test_no_file_is_named_for_nothing(repository: Path):
    assert not [path for path in modules(repository) if path.stem in {"utils", "util", "helpers", "misc", "common"}]
