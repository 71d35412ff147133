"""Shares of a batch as submitit's jobs, on its local executor: processes of their own that write into one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.batch.executors.slurm import run_on_slurm
from studio.batch.runner import BatchOptions
from tests.proof.conftest import note
from tests.support.batches import pictures, run, write_batch

pytest.importorskip("submitit", reason="needs the slurm extra")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_shares_draw_what_one_process_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    file = write_batch(tmp_path)
    run(file, tmp_path / "here")
    options = BatchOptions(file=file, output=tmp_path / "there", batch_size=4, threads=1)
    outcome = run_on_slurm(options, num_jobs=2, cluster="local")
    assert (outcome.done_now, outcome.done_before, outcome.failed) == (10, 0, {})
    there, here = pictures(tmp_path / "there"), pictures(tmp_path / "here")
    same = sum(there.get(name) == data for name, data in here.items() if name.endswith(".png"))
    note("slurm", executor="submitit's local one", jobs=2, pictures=outcome.done_now, the_same_to_the_byte=same)
    assert there == here
    assert (tmp_path / "there" / "index.html").is_file()
    assert json.loads((tmp_path / "there" / "run-2-of-2.json").read_text())["totals"]["done_now"] > 0
