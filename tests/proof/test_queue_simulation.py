"""The simulated queue keeps to what theory says where theory has an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from studio.evals.queue_model import Load, Plant, Service, simulate, simulate_trainings
from studio.pipelines.errors import UserError
from studio.proofs.queue_simulation import ASSUMED_SDXL, main, needed_gpus, tables

ONE = Load(users=100, pictures_per_day=1, pictures_per_request=1.0, shared_share=0.0)
EVEN = Service(
    source="test", seconds_fixed=0.0, seconds_per_row=1.0, adapter_bytes=0.0, device_bytes_per_second=1.0,
    disk_bytes_per_second=1.0, training_seconds=600.0,
)  # fmt: skip


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_one_server_waits_as_pollaczek_and_khinchine_say(busy: float):
    """M/D/1: the mean wait is ρ s / (2 (1 − ρ))."""
    load = replace(ONE, pictures_per_day=busy * 3600 / ONE.peak_share / ONE.users)
    assert load.requests_per_second == pytest.approx(busy)
    result = simulate(load, EVEN, Plant(gpus=1, max_rows=1), seconds=200_000, seed=1)
    assert result.busy == pytest.approx(busy, rel=0.03)
    assert result.mean_wait_seconds == pytest.approx(busy / (2 * (1 - busy)), rel=0.08)


def test_more_gpus_and_larger_caches_never_hurt():
    load = replace(Load(), users=300)
    sized = needed_gpus(load, ASSUMED_SDXL, Plant(gpus=1), 30.0)
    assert sized[-1][1].p95_seconds <= 30.0
    assert all(result.p95_seconds > 30.0 for _, result in sized[:-1])
    gpus = sized[-1][0]
    small, large = (simulate(load, ASSUMED_SDXL, Plant(gpus=gpus, cached_on_device=size)) for size in (0, 512))
    assert small.device_hits == 0.0 < large.device_hits
    assert large.p95_seconds <= small.p95_seconds
    assert simulate_trainings(load, ASSUMED_SDXL, 12) <= simulate_trainings(load, ASSUMED_SDXL, 4)


def test_rows_of_different_adapters_share_a_forward():
    busy = replace(ONE, pictures_per_day=3 * 3600 / ONE.peak_share / ONE.users)
    service = replace(EVEN, seconds_fixed=1.0, seconds_per_row=0.1)
    grouped = simulate(busy, service, Plant(gpus=1, max_rows=8), seconds=20_000)
    assert grouped.rows > 3 and grouped.p95_seconds < 6


def test_tables_say_what_they_rest_on(capsys: pytest.CaptureFixture[str]):
    found = tables(replace(Load(), users=100), ASSUMED_SDXL, Plant(gpus=1), target_seconds=60, training_wait=1800)
    assert all("assumed" in note for note in found[0].notes if "service" in note)
    with pytest.raises(UserError, match="even with nobody"):
        needed_gpus(Load(), ASSUMED_SDXL, Plant(gpus=1), 2.0)
    main(["--users", "50", "--seconds-per-row", "1.5"])
    assert "given: seconds_per_row" in capsys.readouterr().out
