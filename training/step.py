"""The one module that trains: a batch goes in, the loss comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studio.pipelines.base_model import BaseModel, TextCondition
from studio.training.live_text import TextSource
from studio.training.losses import (
    PredictionType,
    add_noise,
    denoising_target,
    prior_preservation_loss,
    signal_to_noise,
    snr_weights,
)
from studio.training.method import Trainable


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised.

    Attributes:
        prediction: what the denoiser predicts. snr_gamma: of min-SNR weighting, None for none.
        prior_weight: λ of the prior half.
        prior_is_base_output: the prior half's target is the untouched base model's own output, not the noise.
    """

    prediction: PredictionType
    snr_gamma: float | None = None
    prior_weight: float = 1.0
    prior_is_base_output: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class StepBatch:
    """What one forward pass sees, on the device. The first `num_instance` rows are the concept, the rest keep the class.

    Attributes:
        latents, noise: [B, C, h, w] float32. timesteps: [B] int64. captions: B texts.
        time_ids: [B, 6], SDXL's size conditioning, or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: tuple[str, ...]
    num_instance: int
    time_ids: Tensor | None = None

    def prior_half(self, tensor: Tensor) -> Tensor:
        """The rows of `tensor` that keep the class."""
        return tensor[self.num_instance :]


class TrainStep(nn.Module):
    """Denoiser, text encoders and trainable in one module: `forward(batch)` is the loss.

    Only the trainable's parameters require gradients. Call it inside `trainable.active()`. After a call, `instance_loss`
    and `prior_loss` are the parts, detached scalars on the device.
    """

    alphas_cumprod: Tensor
    instance_loss: Tensor
    prior_loss: Tensor

    def __init__(
        self, base: BaseModel, trainable: Trainable, objective: Objective, text: TextSource, base_text: TextSource
    ) -> None:
        """`text` reads prompts with what trains (or from a cache, when no text encoder does); `base_text` without it."""
        super().__init__()
        self.denoiser = base.unet.requires_grad_(False)
        self.text_encoders = nn.ModuleList(base.text_encoders).requires_grad_(False)
        self.trainable = trainable
        self.objective = objective
        self.text = text
        self.base_text = base_text
        self.register_buffer("alphas_cumprod", base.scheduler.alphas_cumprod.float().clone(), persistent=False)

    def forward(self, batch: StepBatch) -> Tensor:
        """The loss of `batch`, a scalar."""
        objective = self.objective
        noised = add_noise(batch.latents, batch.noise, self.alphas_cumprod, batch.timesteps)
        target = denoising_target(objective.prediction, batch.latents, batch.noise, self.alphas_cumprod, batch.timesteps)
        if objective.prior_is_base_output and batch.num_instance < len(batch.captions):
            target = torch.cat([target[: batch.num_instance], self._base_output(batch, noised)])
        prediction = self._predict(noised, batch.timesteps, self.text(batch.captions), batch.time_ids)
        snr = signal_to_noise(self.alphas_cumprod, batch.timesteps)
        weights = snr_weights(snr, objective.snr_gamma, objective.prediction)
        loss, instance_loss, prior_loss = prior_preservation_loss(
            prediction, target, weights, batch.num_instance, objective.prior_weight
        )
        self.instance_loss, self.prior_loss = instance_loss.detach(), prior_loss.detach()
        regularizer = self.trainable.regularizer()
        return loss if regularizer is None else loss + regularizer

    @torch.no_grad()
    def _base_output(self, batch: StepBatch, noised: Tensor) -> Tensor:
        """What the untouched base answers to the prior half, float32."""
        time_ids = None if batch.time_ids is None else batch.prior_half(batch.time_ids)
        with self.trainable.disabled():
            text = self.base_text(batch.captions[batch.num_instance :])
            return self._predict(batch.prior_half(noised), batch.prior_half(batch.timesteps), text, time_ids).float()

    def _predict(self, noised: Tensor, timesteps: Tensor, text: TextCondition, time_ids: Tensor | None) -> Tensor:
        """The denoiser's answer, [B, C, h, w]."""
        dtype = next(self.denoiser.parameters()).dtype
        added = None
        if time_ids is not None:
            assert text.pooled is not None
            added = {"text_embeds": text.pooled.to(noised.device, dtype), "time_ids": time_ids.to(noised.device, dtype)}
        prompt_embeds = text.prompt_embeds.to(noised.device, dtype)
        answer: Tensor = self.denoiser(noised.to(dtype), timesteps, prompt_embeds, added_cond_kwargs=added, return_dict=False)[0]
        return answer
