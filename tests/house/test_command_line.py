"""The frame of the command line: quick, helpful, and with exit codes a script can rely on."""

import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from studio.cli.main import VERBS, Verb, make_command
from tests.house.conftest import run

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "gradio", "numpy", "PIL", "matplotlib")

VERB_MODULE = '''
import signal
import typer
from studio.pipelines.errors import AdapterFileError, MissingFileError, Interrupted

def bad_file():
    """Read a file."""
    raise AdapterFileError("the file [bold]x[/bold] is truncated")

def missing_file():
    raise MissingFileError("there is no file x")

def interrupted():
    raise Interrupted("stopped", signal.SIGTERM)

def ctrl_c():
    raise KeyboardInterrupt

def mistake():
    raise ZeroDivisionError("ours")

def count(number: int = 1):
    print(number + 1)

app = typer.Typer()
app.command("one")(count)
app.command("two")(missing_file)
'''


class Ended(NamedTuple):
    """How a call of the command ended."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def studio(tmp_path: Path, monkeypatch, capsys):
    """A function that runs `studio` with verbs that end in every way."""
    (tmp_path / "verbs_of_this_test.py").write_text(VERB_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "verbs_of_this_test", raising=False)
    functions = ["bad_file", "missing_file", "interrupted", "ctrl_c", "mistake", "count", "app", "absent"]
    command = make_command([Verb(name.replace("_", "-"), "verbs_of_this_test", name, f"Runs {name}.") for name in functions])

    def invoke(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as end:
            command(args=list(arguments), prog_name="studio")
        printed = capsys.readouterr()
        return Ended(end.value.code, printed.out, printed.err)

    yield invoke
    sys.modules.pop("verbs_of_this_test", None)


@pytest.mark.parametrize(
    ("verb", "exit_code", "message"),
    [
        ("bad-file", 2, "studio: the file [bold]x[/bold] is truncated\n"),
        ("missing-file", 3, "studio: there is no file x\n"),
        ("ctrl-c", 130, "studio: interrupted\n"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(studio, verb: str, exit_code: int, message: str):
    assert studio(verb) == (exit_code, "", message)


def test_a_termination_signal_has_the_shells_exit_code(studio):
    assert studio("interrupted").exit_code == 143


def test_our_own_mistakes_keep_their_traceback(studio):
    with pytest.raises(ZeroDivisionError):
        studio("mistake")


def test_options_and_sub_commands_reach_the_function(studio):
    assert studio("count", "--number", "41").stdout == "42\n"
    assert studio("app", "one", "--number", "1").stdout == "2\n"
    assert studio("app", "two").exit_code == 3
    assert studio("count", "--number", "many").exit_code == 2


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("generat", "generate"), ("base_model", "base-model")])
def test_an_unknown_verb_suggests_the_right_one(typed: str, meant: str, tmp_path: Path):
    done = run([sys.executable, "-m", "studio", typed], cwd=tmp_path, PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 2
    assert f"Did you mean '{meant}'" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [[], *[[verb.name] for verb in VERBS]], ids=lambda words: " ".join(words) or "studio")
def test_help_imports_nothing_heavy(arguments: list[str], repository: Path, tmp_path: Path):
    code = (
        "import sys\nfrom studio.cli.main import main\n"
        f"try:\n    main({[*arguments, '--help']!r})\n"
        f"except SystemExit as end:\n    assert not end.code, end.code\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = run([sys.executable, "-c", code], cwd=tmp_path, PYTHONPATH=str(repository))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Usage: studio" in done.stdout


def help_seconds(repository: Path) -> float:
    """CPU time of one `studio --help`, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "studio", "--help"], cwd=repository, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_less_than_half_a_second(repository: Path):
    assert min(help_seconds(repository) for _ in range(3)) < 0.5


@pytest.mark.bench
def test_bench_help(repository: Path):
    times = sorted(help_seconds(repository) for _ in range(9))
    print(f"\nstudio --help: median {times[4]:.3f} s CPU, fastest {times[0]:.3f} s, of 9")


def test_no_color_is_honoured(repository: Path, tmp_path: Path):
    colour = re.compile(r"\x1b\[(?:\d+;)*3\d")
    command = [sys.executable, "-m", "studio", "--help"]
    coloured = run(command, cwd=tmp_path, PYTHONPATH=str(repository), FORCE_COLOR="1", TERM="xterm-256color")
    plain = run(command, cwd=tmp_path, PYTHONPATH=str(repository), FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert colour.search(coloured.stdout)
    assert not colour.search(plain.stdout)


def test_version(repository: Path, tmp_path: Path):
    done = run([sys.executable, "-m", "studio", "--version"], cwd=tmp_path, PYTHONPATH=str(repository))
    assert re.fullmatch(r"studio \d+\.\d+\.\d+\n", done.stdout)
