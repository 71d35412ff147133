"""The benchmarks: verdicts, records, and that a busy machine gets no ratios; no figure is tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from studio.evals.bench_gpu import Sizes, gpu_rows
from studio.evals.bench_pipelines import pipelines_table, time_unet
from studio.evals.bench_tables import draw_plot, kernels_table
from studio.evals.counted_models import SD15_UNET, SDXL_UNET
from studio.evals.peers_arms import Size15
from studio.kernels.bench.calls import call_cases
from studio.kernels.bench.case import Bar, Case
from studio.kernels.bench.interleaved import Session, ratio_of
from studio.kernels.bench.lycoris import lycoris_cases
from studio.kernels.bench.timing import _session, geometric_mean, timed_rows, write_records
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


def test_both_arms_of_the_control_are_called_equally_often():
    calls = {"base": 0, "base again": 0}

    def arm(name: str) -> Callable[[], None]:
        def run() -> None:
            calls[name] += 1

        return run

    case = Case("op", "1×1", {name: arm(name) for name in calls}, ())
    _session(case.arms, torch.device("cpu"), rounds=2, attempts=1)
    assert calls["base"] > 100 > calls["base again"]  # what is the same is one thing


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


@pytest.mark.slow
def test_the_bench_of_a_gpu_runs_through_on_tiny_models():
    """All but the graphs, which need a GPU."""
    tiny = {"sample_size": 8, "layers_per_block": 1, "cross_attention_dim": 32}
    sd15 = SD15_UNET | tiny | {"sample_size": 16, "block_out_channels": (32, 32, 32, 32)}
    sdxl = SDXL_UNET | tiny | {"block_out_channels": (32, 32, 32)}
    small = {"transformer_layers_per_block": (1, 1, 1), "attention_head_dim": (2, 2, 2), "addition_time_embed_dim": 8}
    sizes = Sizes(sdxl | small | {"projection_class_embeddings_input_dim": 80}, sd15, batch=1, pictures=2, rounds=1, attempts=1)
    rows = list(gpu_rows(torch.device("cpu"), sizes=sizes, say=lambda line: None))
    assert [row.size for row in rows] == [
        "8 active adapters, eager",
        "8 active adapters, eager",
        "LoRA training step",
        "Kronecker training step",
        "2 pictures, 2 adapters",
    ]
    error, plain = rows[0].error, rows[0].plain_error
    assert error is not None and plain is not None and 0.0 < error < 2.0 * plain < 0.2
    assert "8 active adapters" in kernels_table(rows).text()


def test_lycoris_computes_the_same_as_we_do():
    found = list(lycoris_cases(torch.device("cpu"), torch.float32, [(6, 40, 5), (7, 32, 4)]))
    assert [case.op for case in found] == ["linear with LoRA, LyCORIS beside", "linear with Kronecker, LyCORIS beside"] * 2
    ours, plain, exact = found[1].results()  # type: ignore[misc]
    torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain, found[1].arms["LyCORIS"](), atol=1e-4, rtol=1e-4)


def test_a_call_has_a_cost_with_and_without_gradients():
    found = list(call_cases(torch.device("cpu")))
    assert len(found) == 8
    for case in found:
        assert list(case.arms) == ["base", "base again", "ours", "operator"]
        for arm in case.arms.values():
            arm()
