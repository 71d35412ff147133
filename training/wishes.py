"""What can be asked of a running training from outside, by a file in its folder: to save, or to draw its samples, now."""

from __future__ import annotations

from pathlib import Path

from studio.pipelines.files import output_errors

WISHES = ("save", "sample")


def wish(run_dir: Path, what: str) -> None:
    """Ask the process that trains in `run_dir` to "save" or "sample" after its next step."""
    assert what in WISHES, what
    with output_errors(run_dir):
        _flag(run_dir, what).touch()


def take_wishes(run_dir: Path) -> frozenset[str]:
    """What was wished for; each wish is handed out once."""
    found = frozenset(what for what in WISHES if _flag(run_dir, what).exists())
    for what in found:
        _flag(run_dir, what).unlink(missing_ok=True)
    return found


def _flag(run_dir: Path, what: str) -> Path:
    return run_dir / f".{what}-now"
