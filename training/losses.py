"""Denoising targets, SNR weights and the DreamBooth loss, as pure functions.

Symbols: x0 = clean latents, ε = noise, t = timestep, ᾱ = ``alphas_cumprod``, z_t = √ᾱ·x0 + √(1−ᾱ)·ε.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from studio.pipelines.errors import BaseModelError

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


def is_prediction_type(name: object) -> TypeGuard[PredictionType]:
    """True when `name` is one of the predictions this module has a target for."""
    return name in get_args(PredictionType)


def prediction_type_of(scheduler_config: Mapping[str, object]) -> PredictionType:
    """What the base model was trained to predict, as its scheduler's config says.

    Raises BaseModelError for a prediction this module doesn't know.
    """
    name = scheduler_config.get("prediction_type", "epsilon")
    if name == "flow_prediction":
        return "flow"
    if not is_prediction_type(name):
        known = ", ".join(get_args(PredictionType))
        raise BaseModelError(f"the base model's scheduler predicts {name!r}; known predictions are {known}")
    return name


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR(t) = ᾱ / (1 − ᾱ) in float32. `alphas_cumprod` [T], `timesteps` [B] → [B]; 0 at zero terminal SNR."""
    alpha = alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    return alpha / (1.0 - alpha)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """z_t = √ᾱ·x0 + √(1−ᾱ)·ε. `latents`, `noise` [B, C, h, w]; `timesteps` [B] → [B, C, h, w]."""
    signal, sigma = _signal_and_sigma(alphas_cumprod, timesteps, latents)
    return signal * latents + sigma * noise


def denoising_target(
    prediction: PredictionType, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor
) -> Tensor:
    """What the denoiser should answer: ε, v = √ᾱ·ε − √(1−ᾱ)·x0, x0, or ε − x0 (flow matching). [B, C, h, w]."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return latents
    if prediction == "flow":
        return noise - latents
    signal, sigma = _signal_and_sigma(alphas_cumprod, timesteps, latents)
    return signal * noise - sigma * latents


def snr_weights(snr: Tensor, gamma: float | None, prediction: PredictionType) -> Tensor:
    """Min-SNR-γ loss weights (arXiv 2303.09556), [B] → [B] float32, finite for every SNR in [0, ∞].

    The paper clamps the weight of the *x0* error at γ: ``min(snr, γ)``. An error in the prediction y becomes an x0 error
    of squared size ``|∂x0/∂y|²`` = 1/snr for ε, σ² = 1/(snr+1) for v, and σ² with σ = 1/(1+√snr) for flow matching. So

    * ε: ``min(snr, γ)/snr``. At SNR = 0 (zero terminal SNR) the limit is 1, written as ``min(γ/snr, 1)`` to get there.
    * v: ``min(snr, γ)/(snr+1)``, 0 at SNR = 0. (diffusers' example scripts use ``min(snr,γ)/snr + 1``, which is no
      clamped weight at all.)

    `gamma` None: all ones.
    """
    snr = snr.to(torch.float32)
    if gamma is None:
        return torch.ones_like(snr)
    clamped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if prediction == "sample":
        return clamped
    if prediction == "flow":
        return clamped / (1.0 + snr.sqrt()).square()
    return clamped / (snr + 1.0)


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """mean over the batch of wᵢ · mean((ŷᵢ − yᵢ)²), in float32. [B, C, h, w] twice and [B] → scalar."""
    error = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return (error * weights).mean()


def prior_preservation_loss(
    prediction: Tensor, target: Tensor, weights: Tensor, num_instance: int, prior_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """DreamBooth's loss, L_instance + λ·L_prior (arXiv 2208.12242, eq. 2), over a batch of both halves.

    The first `num_instance` rows are the concept, the rest the class; `weights` [B] belongs to all rows and is split with
    them (diffusers' scripts weigh only one half, with the other half's broadcast into it). Returns (total, instance,
    prior); with no prior rows, prior is 0 and total is the instance loss.
    """
    instance = weighted_mse(prediction[:num_instance], target[:num_instance], weights[:num_instance])
    if num_instance == prediction.shape[0]:
        return instance, instance, torch.zeros_like(instance)
    prior = weighted_mse(prediction[num_instance:], target[num_instance:], weights[num_instance:])
    return instance + prior_weight * prior, instance, prior


def _signal_and_sigma(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha = alphas_cumprod.to(like.device, torch.float32)[timesteps]
    shape = (-1,) + (1,) * (like.dim() - 1)
    return alpha.sqrt().reshape(shape).to(like.dtype), (1.0 - alpha).sqrt().reshape(shape).to(like.dtype)
