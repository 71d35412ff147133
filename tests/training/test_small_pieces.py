"""Timesteps, schedules, averages, nests of state, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from studio.training.ema import ExponentialMovingAverage
from studio.training.rng import preserved_rng, rng_state, set_rng_state
from studio.training.schedules import effective_warmup, learning_rate_factor
from studio.training.signals import catch_stop_signals
from studio.training.state_tree import pack_tree, unpack_tree
from studio.training.timesteps import logit_normal_timesteps, uniform_timesteps


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 500), (2, 1), (10, 3), (500, 500)])
def test_learning_rate_is_positive_and_reaches_its_top(schedule: str, total: int, warmup: int):
    factors = [learning_rate_factor(step, total, warmup, schedule) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1.0
    assert effective_warmup(warmup, total) < max(total, 1)


def test_cosine_and_linear_fall_after_the_warmup():
    for schedule in ("linear", "cosine"):
        factors = [learning_rate_factor(step, 100, 10, schedule) for step in range(100)]
        assert factors[:10] == sorted(factors[:10])
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert factors[-1] < 0.05


def test_uniform_timesteps_cover_all_alike():
    steps = uniform_timesteps(torch.linspace(0, 1 - 1e-6, 10_000), 1000)
    assert steps.min() == 0
    assert steps.max() == 999
    assert torch.bincount(steps).float().std() < 1


def test_logit_normal_timesteps_have_the_stated_mixture():
    uniforms = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = logit_normal_timesteps(uniforms, 1000, mean=0.2, uniform_share=0.15)
    assert steps.min() >= 0
    assert steps.max() <= 999
    share_below = (steps < 550).double().mean().item()  # sigmoid(0.2) ≈ 0.55 is the normal part's median
    assert share_below == pytest.approx(0.85 * 0.5 + 0.15 * 0.55, abs=0.01)
    edges = logit_normal_timesteps(torch.tensor([[0.0, 0.9], [1.0, 0.9]]), 1000, 0.2, 0.15)
    assert edges.tolist() == [pytest.approx(6, abs=6), 995] or edges[1] <= 999


def test_average_follows_and_swaps_bit_exactly():
    live = {"w": torch.zeros(3)}
    ema = ExponentialMovingAverage(live, decay=0.9)
    for _ in range(300):
        live["w"].add_(torch.tensor([1.0, 2.0, 3.0]) - 0.1 * live["w"])
        ema.update()
    before = live["w"].clone()
    with ema.swapped_in():
        assert torch.equal(live["w"], ema.state()["w"])
    assert torch.equal(live["w"], before)
    other = ExponentialMovingAverage({"w": torch.zeros(3)}, decay=0.9)
    other.load(ema.state(), ema.num_updates)
    assert torch.equal(other.state()["w"], ema.state()["w"])
    assert other.num_updates == 300


def test_any_nest_survives_json_exactly():
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 2)}, 1: {"d": 1e-6 / 3, "none": None}},
        "groups": [{"betas": (0.9, 0.999), "growth": float("inf"), "fused": True, "name": "ü", "params": [0, 1]}],
        "rng": (3, tuple(range(5)), None),
    }
    packed, tensors = pack_tree(tree, "t")
    back = unpack_tree(json.loads(json.dumps(packed)), tensors)
    assert torch.equal(back["state"][0].pop("exp_avg"), tree["state"][0].pop("exp_avg"))
    assert torch.equal(back["state"][0].pop("step"), tree["state"][0].pop("step"))
    assert back == tree
    with pytest.raises(TypeError):
        pack_tree({"x": object()}, "t")


def test_random_states_come_back():
    import random

    kept = rng_state()
    draws = (torch.rand(3), np.random.rand(3), random.random())
    with preserved_rng():
        torch.rand(7)
        random.random()
    packed, tensors = pack_tree(kept, "r")
    set_rng_state(unpack_tree(json.loads(json.dumps(packed)), tensors))
    again = (torch.rand(3), np.random.rand(3), random.random())
    assert torch.equal(draws[0], again[0])
    assert (draws[1] == again[1]).all()
    assert draws[2] == again[2]


def test_first_signal_is_noted_and_handlers_come_back():
    former = signal.getsignal(signal.SIGTERM)
    with catch_stop_signals() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is former


def test_second_signal_ends_at_once():
    program = (
        "import os, signal\nfrom studio.training.signals import catch_stop_signals\n"
        "with catch_stop_signals():\n os.kill(os.getpid(), signal.SIGINT)\n os.kill(os.getpid(), signal.SIGINT)\n"
        "print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "still here" not in done.stdout
