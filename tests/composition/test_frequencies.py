"""Frequencies by definition at every size, and profiles that are measured once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from studio.composition import frequency_profiles
from studio.composition.frequencies import (
    amplitudes,
    high_mean,
    high_share,
    late_measure,
    radial_profile,
    relative_radius,
)
from studio.composition.frequency_profiles import FOLDER_VARIABLE, FrequencyProfile, profile_of
from studio.pipelines.base_model import BaseModel
from tests.support.scenes import lora, scene_for
from tests.support.tiny_bases import tiny_base

SIZES = [(1, 1), (1, 7), (2, 2), (5, 9), (12, 12), (64, 64), (96, 128), (128, 128)]


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_finite_at_every_size(size: tuple[int, int]):
    for x in (torch.randn(2, 4, *size), torch.zeros(2, 4, *size)):
        numbers = [high_share(x), high_mean(x), late_measure(x), *radial_profile(x)]
        assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert high_share(torch.zeros(4, *size)) == 0.0


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (128, 128)])
def test_a_wave_has_its_relative_radius_at_every_size(size: tuple[int, int]):
    """A wave of the same period in cells has the same radius whatever the size, and lies on the right side of the bar."""
    columns = torch.arange(size[1]).expand(size).float()
    for period, is_high in ((2, True), (4, True), (16, False)):
        wave = torch.cos(2 * math.pi * columns / period)[None]
        found = amplitudes(wave)
        assert float(relative_radius(*size).flatten()[found.argmax()]) == pytest.approx(2 / period)
        assert high_share(wave, 0.2) == pytest.approx(1.0 if is_high else 0.0, abs=1e-4)


def test_shares_are_the_sums_of_the_transform():
    x = torch.randn(3, 4, 10, 6)
    spectrum = torch.fft.fft2(x.double(), norm="ortho").abs().mean(dim=(0, 1))
    total = beyond = 0.0
    for row in range(10):
        for column in range(6):
            fine = math.hypot(min(row, 10 - row) / 5, min(column, 6 - column) / 3) > 0.3
            total += float(spectrum[row, column])
            beyond += float(spectrum[row, column]) * fine
    assert high_share(x, 0.3) == pytest.approx(beyond / total, rel=1e-5)


def test_noise_is_finer_than_blurred_noise():
    noise = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 9, 1, 4)
    assert high_share(noise) > high_share(blurred)
    assert late_measure(noise[None]) > 0.4 > late_measure(blurred[None])
    assert radial_profile(blurred)[0] == 1.0 and radial_profile(blurred)[-1] < 0.2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("sd15"))


def test_a_profile_is_measured_once(base: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(frequency_profiles, "_kept", {})
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    calls = []
    measure = frequency_profiles.measure_profile
    monkeypatch.setattr(frequency_profiles, "measure_profile", lambda *given: calls.append(1) or measure(*given))
    adapter = lora(base, 1)
    scene = scene_for(base, [adapter, adapter, lora(base, 2)], entries=[{"strength": 0.3}, {}, {}])
    first, second, other = (profile_of(scene, concept) for concept in scene.concepts)
    assert first is second and first != other and len(calls) == 2
    assert len(first.radial) == 8 and max(first.radial) == 1.0 and 0 < first.high_share < 1 and 0 < first.picture_share < 1
    monkeypatch.setattr(frequency_profiles, "_kept", {})
    assert profile_of(scene, scene.concepts[0]) == first and len(calls) == 2, "read from the folder"
    for path in tmp_path.iterdir():
        path.write_text("{}")
    monkeypatch.setattr(frequency_profiles, "_kept", {})
    assert profile_of(scene, scene.concepts[0]) == first and len(calls) == 3, "a damaged file is measured again"


def test_a_change_finer_than_the_picture_is_of_high_frequency():
    facts = {"radial": (1.0,), "early": 0.0, "late": 0.0}
    assert FrequencyProfile(high_share=0.5, picture_share=0.4, **facts).band == "high"
    assert FrequencyProfile(high_share=0.3, picture_share=0.4, **facts).band == "low"
