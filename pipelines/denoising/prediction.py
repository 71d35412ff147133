"""What denoisers predict, and how one kind of prediction becomes another.

Everything is about x_t = α·x₀ + σ·ε, where x_t is the latents *as the model sees them*. With this, the four kinds are

* epsilon: ε; * sample: x₀; * v_prediction: v = α·ε − σ·x₀ (Salimans and Ho 2022);
* flow: u = ε − x₀, the velocity of a rectified flow (Liu et al. 2022), where α = 1 − σ.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


def split_prediction(
    prediction: Tensor, kind: PredictionType, latents: Tensor, alpha: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """(x₀, ε) of a prediction `[B, C, h, w]` for the latents of the same shape.

    Raises:
        ValueError: α = 0 and the prediction is ε, or σ = 0 and it is x₀: the other one cannot be known.
    """
    if kind == "epsilon":
        if alpha == 0.0:
            raise ValueError("At α = 0 the latents are noise alone, and a prediction of noise says nothing of the picture.")
        return (latents - sigma * prediction) / alpha, prediction
    if kind == "sample":
        if sigma == 0.0:
            raise ValueError("At σ = 0 there is no noise to be told from the picture.")
        return prediction, (latents - alpha * prediction) / sigma
    if kind == "v_prediction":
        length = alpha**2 + sigma**2
        return (alpha * latents - sigma * prediction) / length, (sigma * latents + alpha * prediction) / length
    picture = (latents - sigma * prediction) / (alpha + sigma)
    return picture, picture + prediction


def join_prediction(picture: Tensor, noise: Tensor, kind: PredictionType, alpha: float, sigma: float) -> Tensor:
    """The prediction of a kind that says x₀ = `picture` and ε = `noise`."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return picture
    return alpha * noise - sigma * picture if kind == "v_prediction" else noise - picture


def convert_prediction(
    prediction: Tensor, source: PredictionType, target: PredictionType, latents: Tensor, alpha: float, sigma: float
) -> Tensor:
    """A prediction of one kind as another; errors as in `split_prediction`. Itself where nothing is to be done."""
    if source == target:
        return prediction
    return join_prediction(*split_prediction(prediction, source, latents, alpha, sigma), target, alpha, sigma)


def noise_level(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """(α, σ) of the latents as the model sees them at a diffusers scheduler's timestep.

    Of schedulers with α² + σ² = 1 it reads `alphas_cumprod`, between two whole timesteps linearly in log(σ/α), as Euler's
    own σ are made; of flow matching, σ = timestep / number of training timesteps.
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        sigma = float(timestep) / float(scheduler.config.num_train_timesteps)
        return 1.0 - sigma, sigma
    products = scheduler.alphas_cumprod.double().cpu()
    at = min(max(float(timestep), 0.0), len(products) - 1.0)
    below = int(at)
    above = min(below + 1, len(products) - 1)
    if at == below or products[above] <= 0.0:
        product = float(products[below])
    else:
        ratios = torch.log((1.0 - products) / products)
        product = float(torch.sigmoid(-torch.lerp(ratios[below], ratios[above], at - below)))
    return product**0.5, (1.0 - product) ** 0.5


def prediction_type_of(scheduler: Any) -> PredictionType:
    """What a diffusers scheduler takes its model to predict."""
    kind = scheduler.config.get("prediction_type", "flow")
    return "flow" if kind in ("flow", "flow_prediction") else kind
