"""What a model family is: every fact about one kind of base model, once, as a frozen record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Prior = Literal["none", "class-images", "base-output"]
PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, kw_only=True)
class TextEncoderFacts:
    """One text encoder of a family, and the names that files give it.

    Attributes:
        component: its name in a diffusers folder and in a `ParameterPath`.
        tokenizer: the component name of its tokenizer.
        kohya_prefix: what kohya files put before its modules (`lora_te_text_model_encoder_…`).
        file_prefix: what diffusers/PEFT files put before its modules (`text_encoder.text_model.encoder…`).
        projection: whether it is a CLIPTextModelWithProjection, whose pooled vector the UNet takes as well.
        penultimate: whether the UNet takes the output of the last layer but one, without the final layer norm (SDXL).
    """

    component: str
    tokenizer: str
    kohya_prefix: str
    file_prefix: str
    projection: bool
    penultimate: bool


@dataclass(frozen=True, kw_only=True)
class TrainDefaults:
    """What a newcomer with three to ten photos should train with on this family.

    The number of steps is `steps_per_image` × photos, kept between `min_steps` and `max_steps`, at `batch_size`.

    Attributes:
        resolution: side of the square, in pixels, whose area the training pictures have.
        rank: of the LoRA. alpha: its scale is alpha / rank.
        learning_rate: of the denoiser's adapter. text_encoder_learning_rate: of the text encoders', when they train.
        schedule: how the rates go after the warm-up.
        train_text_encoder: whether they do by default.
        snr_gamma: min-SNR weighting's gamma (Hang et al. 2023), or None for the plain loss.
        prior: how the class's other members are kept: pictures of the class drawn by the base model, the base model's
            own outputs on the training batch, or nothing.
        prior_weight: weight of that term. num_class_images: how many pictures are drawn for "class-images".
        caption_dropout: share of empty captions, so that guidance still works.
        bare_caption_share: share of captions that are only "a <token> <class>".
        timesteps: how a training step's noise level is drawn: all alike, or mostly in the middle as
            sigmoid(N(timestep_mean, 1)) × 1000, with `timestep_uniform_share` of them uniform all the same.
        targets: regular expression of what trains in the denoiser; None for the family's `adapter_targets`.
        kronecker_factors: size of the first Kronecker factor, "OUTxIN", where there is one.
        sparse_threshold, sparse_density: which single weights train, where such do: all below the threshold, or this share
            of each tensor, the smallest; one of the two.
    """

    resolution: int
    rank: int = 16
    alpha: float = 16.0
    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    text_encoder_learning_rate: float = 5e-6
    train_text_encoder: bool = False
    batch_size: int = 1
    steps_per_image: int = 100
    min_steps: int = 400
    max_steps: int = 1500
    weight_decay: float = 1e-2
    snr_gamma: float | None = 5.0
    prior: Prior = "class-images"
    prior_weight: float = 1.0
    num_class_images: int = 100
    caption_dropout: float = 0.05
    bare_caption_share: float = 0.0
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    timestep_mean: float = 0.0
    timestep_uniform_share: float = 0.0
    targets: str | None = None
    kronecker_factors: str | None = None
    sparse_threshold: float | None = None
    sparse_density: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Every fact about one kind of base model; all else asks here.

    Attributes:
        name: short and fixed: "embedded", "sd15", "sd2" or "sdxl". title: how people call it.
        modelspec_architecture: value of `modelspec.architecture` (without "/lora") in adapter files.
        ss_base_model_version: value of kohya's `ss_base_model_version`.
        pipeline_class: name of the diffusers pipeline that runs it.
        text_encoders: in the order in which their outputs are joined.
        cross_attention_dim: width of the text features that the full-size UNet takes.
        latent_channels: of the latents. vae_scale_factor: pixels per latent, a side.
        default_size: side of the square the family draws best, in pixels.
        size_multiple: width and height must be multiples of it, in pixels.
        prediction_type: usual one; a base model's scheduler config decides.
        default_scheduler, default_steps, default_guidance_scale: for drawing pictures.
        attention_targets: regular expression, for full matches of module paths in the UNet, of the attention projections.
        adapter_targets: the same for what a LoRA trains by default.
        text_encoder_targets: the same on canonical module paths of a text encoder (`text_model.encoder.layers.…`).
        content_block, style_block: the two blocks that B-LoRA trains (Frenkel et al. 2024), as path prefixes; None where no
            split is known. What `studio probe-blocks` found for a base model is stronger than these.
        kohya_names: (path prefix in diffusers, path prefix in the original LDM code) where kohya files use the latter.
        train: what training starts from.
        method_train: the same for training methods that start from something else, by the method's name.
    """

    name: str
    title: str
    modelspec_architecture: str
    ss_base_model_version: str
    pipeline_class: str
    text_encoders: tuple[TextEncoderFacts, ...]
    cross_attention_dim: int
    latent_channels: int
    vae_scale_factor: int
    default_size: int
    size_multiple: int
    prediction_type: PredictionType
    default_scheduler: str
    default_steps: int
    default_guidance_scale: float
    attention_targets: str
    adapter_targets: str
    text_encoder_targets: str
    content_block: str | None = None
    style_block: str | None = None
    kohya_names: tuple[tuple[str, str], ...] = ()
    train: TrainDefaults
    method_train: Mapping[str, TrainDefaults] = field(default_factory=dict, hash=False)

    def train_defaults(self, method: str) -> TrainDefaults:
        """What training with the method called `method` starts from."""
        return self.method_train.get(method, self.train)
