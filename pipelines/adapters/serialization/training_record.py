"""How an adapter was trained, in the words that sd-scripts established and other tools show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Facts of a training run. Each field is the `ss_` key of its name; None is left out.

    Attributes:
        learning_rate, unet_lr, text_encoder_lr: peak rates.
        optimizer, lr_scheduler: by name; lr_warmup_steps in optimizer steps.
        max_train_steps: what was planned. steps: how many this adapter has had. epoch, num_epochs: passes over the data.
        num_train_images, num_reg_images: photos of the concept and pictures of its class.
        batch_size_per_device, total_batch_size, gradient_accumulation_steps: pictures per step.
        mixed_precision: "no", "fp16" or "bf16". full_fp16: kept for readers that ask.
        resolution: "(width, height)" in pixels. enable_bucket: whether pictures kept their aspect.
        noise_offset, min_snr_gamma, prior_loss_weight, caption_dropout_rate: of the loss and captions.
        network_dropout: of the adapter.
        clip_skip: last text-encoder layers left out.
        seed: of the run. session_id: random.
        training_started_at, training_finished_at: Unix seconds.
        training_comment, output_name: free text.
        dataset_dirs: folder -> {"n_repeats": …, "img_count": …}. Private.
        tag_frequency: folder -> {tag: count}; other tools show trigger words from it. Private.
    """

    learning_rate: float | None = None
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    optimizer: str | None = None
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    max_train_steps: int | None = None
    steps: int | None = None
    epoch: int | None = None
    num_epochs: int | None = None
    num_train_images: int | None = None
    num_reg_images: int | None = None
    num_batches_per_epoch: int | None = None
    batch_size_per_device: int | None = None
    total_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    mixed_precision: str | None = None
    full_fp16: bool | None = None
    max_grad_norm: float | None = None
    resolution: str | None = None
    enable_bucket: bool | None = None
    min_bucket_reso: int | None = None
    max_bucket_reso: int | None = None
    cache_latents: bool | None = None
    noise_offset: float | None = None
    min_snr_gamma: float | None = None
    prior_loss_weight: float | None = None
    caption_dropout_rate: float | None = None
    network_dropout: float | None = None
    clip_skip: int | None = None
    seed: int | None = None
    session_id: int | None = None
    training_started_at: float | None = None
    training_finished_at: float | None = None
    training_comment: str | None = None
    output_name: str | None = None
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None

    def as_strings(self) -> dict[str, str]:
        """The fields that are known, as safetensors metadata holds them: for `AdapterInfo.training`."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _text(value) for name, value in known.items() if value is not None}


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
