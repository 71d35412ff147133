"""The comparison with other libraries: both sides do the same work, the control counts, and a step costs no more in counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from studio.evals.peers import OUR_KRON, OUR_LORA, PEER_KRON, PEER_LORA, check_same_work, make_arms, run_bench
from studio.evals.peers_arms import Size15, peer_lora_config
from studio.kernels.bench.counting import Cost, count
from studio.kernels.bench.interleaved import Session, measure, measure_session, ratio_of
from studio.pipelines.adapters import Route, new_lora, patched
from studio.pipelines.families import SDXL
from tests.support.tiny_models import sdxl_unet_config

TINY = Size15((16, 32, 32, 32), 32, 8, 8)


def test_both_sides_do_the_same_work():
    arms = make_arms(TINY)
    assert check_same_work(arms, steps=3) < 1e-6
    losses = arms[OUR_LORA].losses
    assert len(losses) == 3 and losses[2] < losses[0]
    assert arms[OUR_KRON].num_parameters == arms[PEER_KRON].num_parameters
    assert arms[OUR_LORA].num_parameters == arms[PEER_LORA].num_parameters == 113_152


def test_the_bench_keeps_every_session(tmp_path: Path):
    threads = torch.get_num_threads()
    table = run_bench(tmp_path, size=TINY, rounds=2, attempts=1)
    assert torch.get_num_threads() == threads
    assert table.rows[1][:2] == (OUR_LORA, PEER_LORA)
    raw = json.loads((tmp_path / "raw.json").read_text(encoding="utf-8"))
    assert len(raw["sessions"]) == 1
    assert all(len(seconds) == 2 for seconds in raw["sessions"][0]["cpu_seconds"].values())
    assert raw["libraries"]["peft"] and raw["largest_loss_difference"] < 1e-6


def test_arms_take_turns_and_each_goes_first():
    order: list[str] = []
    arms: dict[str, Callable[[], None]] = {name: lambda name=name: order.append(name) for name in "abc"}  # type: ignore[misc]
    ticks: Iterator[int] = iter(range(1000))
    session = measure_session(arms, ("a", "b"), rounds=3, clock=lambda: float(next(ticks)))
    assert ["".join(order[i : i + 3]) for i in (0, 3, 6)] == ["abc", "acb", "cab"]
    assert session.valid and session.ratio("c", "a").paired == 1.0


def test_the_three_readings_of_a_ratio():
    found = ratio_of((1.0, 2.0, 9.0), (2.0, 2.0, 3.0))
    assert (found.paired, found.cpu, found.minimum) == (1.0, 12 / 7, 0.5)


@pytest.mark.parametrize(("control", "valid"), [(1.0, True), (1.029, True), (1.04, False), (0.96, False)])
def test_a_control_off_by_more_than_3_percent_throws_the_session_away(control: float, valid: bool):
    assert Session({}, ratio_of((control,), (1.0,))).valid is valid


def test_a_session_is_repeated_until_the_control_holds(monkeypatch: pytest.MonkeyPatch):
    controls = iter((1.2, 0.9, 1.01, 1.0))
    monkeypatch.setattr(
        "studio.kernels.bench.interleaved.measure_session",
        lambda *arguments, **settings: Session({}, ratio_of((next(controls),), (1.0,))),
    )
    seen: list[Session] = []
    session = measure({}, ("a", "b"), rounds=1, attempts=3, on_session=seen.append)
    assert session.valid and session.control.paired == 1.01 and len(seen) == 3


def sdxl_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sdxl_unet_config())
    return nn.Module.to(unet, dtype=torch.bfloat16).requires_grad_(False)


def training_step(unet: nn.Module) -> Callable[[], None]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    def run() -> None:
        added = {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}
        timestep = torch.empty(1, device="meta", dtype=torch.long)
        prediction = unet(empty(1, 4, 128, 128), timestep, empty(1, 77, 2048), added_cond_kwargs=added, return_dict=False)[0]
        prediction.float().square().mean().backward()

    return run


def our_cost() -> Cost:
    unet = sdxl_unet()
    adapter = new_lora({"unet": unet}, {"unet": SDXL.attention_targets}, 16, 16.0)
    with patched({"unet": unet}, [Route(adapter)]):
        return count(training_step(unet), [*unet.parameters(), *adapter.named_tensors().values()])


def peft_cost() -> Cost:
    unet = sdxl_unet()
    unet.add_adapter(peer_lora_config(16))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return count(training_step(unet), unet.parameters())


def test_a_lora_step_on_sdxl_counts_no_more_than_pefts():
    """Forward and backward at full size, bfloat16 base and float32 adapters of rank 16, as both train by default."""
    ours, theirs = our_cost(), peft_cost()
    assert ours.flops <= theirs.flops
    assert ours.ops <= 9_307 <= 0.83 * theirs.ops
    assert ours.kept_bytes <= 5.64e9 and ours.kept_bytes <= 0.73 * theirs.kept_bytes
