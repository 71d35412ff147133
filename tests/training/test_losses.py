"""Targets, SNR weights and the two halves of the DreamBooth loss."""

from __future__ import annotations

import math

import pytest
import torch

from studio.pipelines.errors import BaseModelError
from studio.training.losses import (
    add_noise,
    denoising_target,
    prediction_type_of,
    prior_preservation_loss,
    signal_to_noise,
    snr_weights,
)

ALPHAS = torch.linspace(0.999, 0.0, 10)  # zero terminal SNR
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


def test_v_target_and_noised_latents_are_a_rotation_of_data_and_noise():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(10, 4, 3, 3, generator=generator), torch.randn(10, 4, 3, 3, generator=generator)
    timesteps = torch.arange(10)
    z = add_noise(x0, noise, ALPHAS, timesteps)
    v = denoising_target("v_prediction", x0, noise, ALPHAS, timesteps)
    signal = ALPHAS.sqrt().reshape(-1, 1, 1, 1)
    sigma = (1 - ALPHAS).sqrt().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(signal * z - sigma * v, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sigma * z + signal * v, noise, atol=1e-5, rtol=1e-5)


def test_targets_of_the_other_predictions():
    x0, noise, timesteps = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0), torch.tensor([0, 9])
    assert denoising_target("epsilon", x0, noise, ALPHAS, timesteps) is noise
    assert denoising_target("sample", x0, noise, ALPHAS, timesteps) is x0
    assert denoising_target("flow", x0, noise, ALPHAS, timesteps).unique().item() == 2.0


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_weights_are_the_clamped_x0_weight_times_the_jacobian(gamma: float):
    snr = torch.tensor([0.01, 1.0, 4.9, 5.1, 300.0])
    clamped = snr.clamp(max=gamma)
    torch.testing.assert_close(snr_weights(snr, gamma, "epsilon"), clamped / snr)
    torch.testing.assert_close(snr_weights(snr, gamma, "v_prediction"), clamped / (snr + 1))
    torch.testing.assert_close(snr_weights(snr, gamma, "sample"), clamped)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_finite_at_every_snr(prediction: str):
    snr = torch.tensor([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30])
    weights = snr_weights(snr, 5.0, prediction)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weight_at_zero_snr_is_the_limit_from_above(prediction: str):
    at_zero, near_zero = snr_weights(torch.tensor([0.0, 1e-12]), 5.0, prediction)
    torch.testing.assert_close(at_zero, near_zero, atol=1e-5, rtol=1e-5)
    assert at_zero.item() == (1.0 if prediction == "epsilon" else 0.0)


def test_snr_of_zero_terminal_schedule():
    snr = signal_to_noise(ALPHAS, torch.tensor([0, 9]))
    assert snr[0].item() == pytest.approx(999.0, rel=1e-3)
    assert snr[1].item() == 0.0


@pytest.mark.parametrize("half", [1, 2])
def test_both_halves_are_weighted_each_with_its_own_weights(half: int):
    generator = torch.Generator().manual_seed(1)
    prediction = torch.randn(2 * half, 4, 3, 3, generator=generator)
    target = torch.randn(2 * half, 4, 3, 3, generator=generator)
    weights = torch.rand(2 * half, generator=generator)
    total, instance, prior = prior_preservation_loss(prediction, target, weights, half, prior_weight=0.7)
    errors = [float((prediction[i] - target[i]).square().mean()) * float(weights[i]) for i in range(2 * half)]
    assert instance.item() == pytest.approx(sum(errors[:half]) / half, rel=1e-5)
    assert prior.item() == pytest.approx(sum(errors[half:]) / half, rel=1e-5)
    assert total.item() == pytest.approx(instance.item() + 0.7 * prior.item(), rel=1e-5)


def test_halves_of_different_size_and_no_prior_half():
    prediction, target = torch.ones(5, 1, 2, 2), torch.zeros(5, 1, 2, 2)
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0])
    total, instance, prior = prior_preservation_loss(prediction, target, weights, 4, 1.0)
    assert (total.item(), instance.item(), prior.item()) == (4.0, 1.0, 3.0)
    total, instance, prior = prior_preservation_loss(prediction, target, weights, 5, 1.0)
    assert total.item() == instance.item() == pytest.approx(7 / 5)
    assert prior.item() == 0.0


def test_loss_at_zero_snr_has_finite_gradients():
    prediction = torch.randn(2, 1, 2, 2, requires_grad=True)
    snr = signal_to_noise(ALPHAS, torch.tensor([9, 9]))
    for kind in PREDICTIONS:
        loss, _, _ = prior_preservation_loss(prediction, torch.zeros(2, 1, 2, 2), snr_weights(snr, 5.0, kind), 1, 1.0)
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert math.isfinite(loss.item())
        assert gradient.isfinite().all()


def test_unknown_prediction_is_one_sentence():
    assert prediction_type_of({"prediction_type": "v_prediction"}) == "v_prediction"
    assert prediction_type_of({}) == "epsilon"
    with pytest.raises(BaseModelError, match="'velocity'"):
        prediction_type_of({"prediction_type": "velocity"})
