"""The benchmarks: verdicts, records, and that a busy machine gets no ratios; no figure is tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from studio.evals.bench_pipelines import pipelines_table, time_unet
from studio.evals.bench_tables import draw_plot, kernels_table
from studio.evals.peers_arms import Size15
from studio.kernels.bench.cases import Bar, Case
from studio.kernels.bench.interleaved import Session, ratio_of
from studio.kernels.bench.timing import geometric_mean, timed_rows, write_records
from studio.kernels.paths import key_of, path_of, pinned_path, table

TINY = Size15((16, 32, 32, 32), 32, 8, 8)


def rows_of(control: float, ratio: float, tmp_bars: tuple[Bar, ...]) -> list:
    session = Session({"base": (1.0, 1.0), "base again": (control,) * 2, "ours": (ratio,) * 2}, ratio_of((control,), (1.0,)))
    case = Case("op", "1×1", dict.fromkeys(("base", "base again", "ours"), lambda: None), tmp_bars)
    return timed_rows(case, "float32", session)


def test_a_bar_is_kept_missed_or_not_told():
    bars = (Bar("ours", "base", most=0.5), Bar("ours", "base", least=0.4))
    assert [row.verdict for row in rows_of(1.0, 0.45, bars)] == ["–", "–", "yes", "yes"]
    assert [row.verdict for row in rows_of(1.0, 0.6, bars)][2:] == ["no", "yes"]
    assert [row.verdict for row in rows_of(1.0, 0.3, bars)][2:] == ["yes", "no"]
    noisy = rows_of(1.1, 0.45, bars)
    assert [row.verdict for row in noisy][2:] == ["noise", "noise"]
    assert {line[5] for line in kernels_table(noisy).rows} == {None}


def test_records_say_where_and_when(tmp_path: Path):
    path = write_records(tmp_path, "raw", torch.device("cpu"), rows_of(1.0, 0.5, ()), [{"op": "op", "seconds": {"base": [1.0]}}])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == 1 and content["machine"]["torch"] == torch.__version__
    assert {"op", "arm", "ratio", "control", "error", "verdict"} <= set(content["rows"][0])
    draw_plot([("a", 1.0), ("b", 0.5)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_bench_of_a_unet_runs_through():
    rows, raw = time_unet(torch.bfloat16, size=TINY, rounds=1, attempts=1, say=lambda line: None)
    text = pipelines_table(rows).text()
    for what in ("8 adapters, merged, bfloat16", "8 adapters, PEFT", "4 pictures, 4 adapters in one call", "merging 8 adapters"):
        assert what in text
    assert all(len(seconds) == 1 for each in raw for seconds in each["seconds"].values())


def test_kernels_need_torch_alone():
    """Imported in a process in which everything else that the studio needs is out of reach."""
    forbidden = ("diffusers", "pydantic", "transformers", "peft", "typer", "rich")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))\n"
        "import studio.kernels.bench.__main__, studio.kernels.library, studio.kernels.bench.tuning\n"
        "import studio.kernels.region_attention, studio.kernels.routed_lora, studio.kernels.dora\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


class TestPaths:
    def test_an_unknown_size_takes_the_fast_torch_path(self):
        assert path_of("an op that is not there", torch.zeros(1), 12345) == "torch"

    def test_a_line_is_found_by_the_size_rounded_up(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(table(), key_of("op", "cpu", torch.float32, 4096, 40), "plain")
        assert path_of("op", torch.zeros(1), 4000, 33) == "plain"
        assert path_of("op", torch.zeros(1), 4097, 33) == "torch"

    def test_the_environment_pins_a_path(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("STUDIO_KERNELS", "plain")
        assert path_of("op", torch.zeros(1)) == "plain"
        monkeypatch.setenv("STUDIO_KERNELS", "triton")  # cannot run on a CPU without its interpreter
        assert path_of("op", torch.zeros(1)) == "torch"
        monkeypatch.setenv("STUDIO_KERNELS", "fast")
        with pytest.raises(ValueError, match="STUDIO_KERNELS is auto, plain, torch, triton; not 'fast'"):
            pinned_path()


def test_the_geometric_mean_of_ratios():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
