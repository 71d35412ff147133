"""The one schema of a training run: every setting with its type, its default and its explanation.

TOML files, `section.key=value` overrides, the command line's options and the table in `docs/training-config.md` are all
made from these classes. A value of None means "the model family's default"; `resolve_defaults` puts it in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from studio.training.config.b_lora import BLoRAConfig
from studio.training.config.krona import KronaConfig
from studio.training.config.methods import check_sections, with_presets
from studio.training.config.sara import SaraConfig
from studio.training.config.section import (
    AboveZero,
    Bool,
    Count,
    Float,
    Int,
    NotNegative,
    Positive,
    Prompt,
    Section,
    Share,
    Template,
    setting,
)
from studio.training.config.words import check_class_noun, check_output_name, check_token


class ConceptConfig(Section):
    """What is taught: the photos, the word for them, the captions."""

    images: Path = Field(description="Folder with the photos of the concept, or one photo.")
    class_noun: Annotated[str, AfterValidator(check_class_noun)] = Field(
        description="The everyday word for what the photos show: dog, backpack, house."
    )
    token: Annotated[str, AfterValidator(check_token)] = setting(
        "ohwx", "The new word for exactly this one; rare, so that it means nothing to the model yet."
    )
    caption_templates: tuple[Template, ...] = setting(
        (
            "a photo of a {token} {class_noun}",
            "a picture of a {token} {class_noun}",
            "an image of a {token} {class_noun}",
        ),
        "Captions of photos that have no .txt file beside them, drawn in turn at random.",
    )
    bare_template: Template = setting("a {token} {class_noun}", "The bare caption.")
    bare_caption_share: Share | None = setting(None, "Share of bare captions, which teach the words by themselves.")
    caption_dropout: Share | None = setting(None, "Share of empty captions, which keep guidance working.")
    caption_words: Literal["with-token", "as-written"] = setting(
        "with-token",
        "What .txt files say: with the token put in where it is missing, or as it is written, for many pictures of no one "
        "thing.",
    )
    hold_out: str = setting(
        "auto", 'Photo kept out of training to judge the checkpoints: "auto" (one of four or more), "none" or a file name.'
    )

    @model_validator(mode="after")
    def _has_templates(self) -> Self:
        if not self.caption_templates:
            raise ValueError("caption_templates is empty; give at least one, or leave the key out")
        return self


class ModelConfig(Section):
    """What is taught to it."""

    base: str = setting("embedded", 'Base model: "embedded", a diffusers folder, a hub id, or a .safetensors checkpoint.')


class AdapterConfig(Section):
    """What is trained."""

    method: str = setting("dreambooth-lora", "Training method.")
    rank: Positive | None = setting(None, "Rank of the low-rank matrices: size of the adapter.")
    alpha: AboveZero | None = setting(None, "The adapter's effect is scaled by alpha / rank.")
    targets: str | None = setting(None, "Regular expression on the denoiser's module names: where the adapter sits.")
    text_encoder_targets: str | None = setting(None, "The same for the text encoders.")
    train_text_encoder: Bool | None = setting(None, "Train an adapter of the text encoders too.")
    dora: Bool = setting(False, "Weight-decomposed LoRA (DoRA): learns the magnitude apart; slower.")
    rslora: Bool = setting(False, "Scale by alpha / sqrt(rank) instead; for high ranks.")


class OptimizerConfig(Section):
    """How the weights move."""

    name: Literal["adamw", "adamw8bit", "prodigy", "schedule-free"] = setting("adamw", "Optimizer.", flag="--optimizer")
    learning_rate: AboveZero | None = setting(None, "Learning rate of the denoiser's adapter.")
    text_encoder_learning_rate: AboveZero | None = setting(None, "Learning rate of the text encoders' adapter.")
    weight_decay: NotNegative | None = setting(None, "Pull of the weights towards zero.")
    beta1: Share = setting(0.9, "Memory of the mean gradient.")
    beta2: Share = setting(0.999, "Memory of its square.")
    epsilon: AboveZero = setting(1e-8, "Guard against division by zero.")
    max_grad_norm: NotNegative = setting(1.0, "Longest step of the gradient; 0 does not clip.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> Self:
        if self.beta1 >= 1.0 or self.beta2 >= 1.0:
            raise ValueError("beta1 and beta2 must be less than 1")
        return self


class ScheduleConfig(Section):
    """How long, and how the learning rate goes."""

    steps: Positive | None = setting(None, "Steps of the optimizer; by default so many per photo, within limits.")
    name: Literal["constant", "linear", "cosine"] | None = setting(None, "Learning rate after the warm-up.", flag="--schedule")
    warmup_steps: Count | None = setting(None, "Steps in which the learning rate rises from zero.")


class LossConfig(Section):
    """What is minimised."""

    snr_gamma: NotNegative | None = setting(None, "Min-SNR weighting's gamma; 0 weights all noise levels alike.")
    timesteps: Literal["uniform", "logit-normal"] | None = setting(
        None, "How noise levels are drawn: all alike, or mostly in the middle."
    )
    timestep_mean: Float | None = setting(None, "Mean of the normal before the sigmoid, for logit-normal.")
    timestep_uniform_share: Share | None = setting(None, "Share drawn uniformly all the same, for logit-normal.")
    noise_offset: NotNegative = setting(0.0, "Extra noise on the mean of each channel; about 0.05 helps dark pictures.")
    prior: Literal["none", "class-images", "base-output"] | None = setting(
        None, "What keeps the rest of the class as it was: nothing, pictures of it, or the base model's own output."
    )
    prior_weight: NotNegative | None = setting(None, "Weight of that term.")
    prior_batch_size: Positive | None = setting(None, "Pictures of that term per step; by default batch_size.")
    num_class_images: Positive | None = setting(None, 'How many pictures "class-images" draws, once.')
    class_prompts: tuple[Prompt, ...] | None = setting(None, "Prompts of that term; by default made from the class noun.")


class DataConfig(Section):
    """How photos become batches."""

    resolution: Annotated[Int, Field(ge=16, le=8192)] | None = setting(None, "Side of the square whose area a picture has.")
    batch_size: Positive | None = setting(None, "Photos per forward pass, all processes together.")
    buckets: Bool = setting(True, "Keep the photos' shapes, in a few sizes of one area; otherwise crop squares.")
    bucket_step: Positive | None = setting(None, "Sides are multiples of it, in pixels.")
    max_bucket_aspect: Annotated[Float, Field(ge=1.0, le=8.0)] = setting(2.0, "Longest shape kept; longer ones are cropped.")
    upscale: Bool = setting(False, "Enlarge small photos to the full area rather than use a smaller size.")
    crop: Literal["center", "random"] = setting("center", "Which part of a photo is kept that does not fit its size.")
    flip: Bool = setting(False, "Mirror half of the pictures; wrong for faces, text and logos.")
    max_megapixels: AboveZero = setting(64.0, "Larger photos are refused before they are read.")
    cache: Literal["memory", "disk", "off"] = setting("memory", "Where encoded pictures are kept.")
    cache_dir: Path | None = setting(None, "Folder of the disk cache and of the class pictures; by default in the run's folder.")


class RunConfig(Section):
    """Where, how and how often."""

    output_dir: Path | None = setting(None, "Folder of the run; by default outputs/<class noun>.")
    name: Annotated[str, AfterValidator(check_output_name)] | None = setting(None, "Name of the adapter.")
    seed: Count = setting(0, "The same seed gives the same run.")
    device: str = setting("auto", 'Device: "auto", "cpu", "cuda", "cuda:1", "mps".')
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting("auto", "Number format of the frozen model.")
    gradient_accumulation_steps: Positive = setting(1, "Forward passes per step.")
    gradient_checkpointing: Bool = setting(False, "Less memory, about a third more time.")
    ema_decay: Annotated[Float, Field(ge=0.0, lt=1.0)] = setting(0.0, "Running mean of the weights; 0 has none.")
    checkpoint_every: Positive | None = setting(None, "Steps between checkpoints; by default a tenth of the run.")
    keep_checkpoints: Positive = setting(2, "Checkpoints that keep what resuming needs; the adapters of all are kept.")
    sample_every: Count | None = setting(None, "Steps between sample pictures; by default with each checkpoint; 0 has none.")
    sample_prompts: tuple[Prompt, ...] = setting(
        (
            "a photo of a {token} {class_noun}",
            "a {token} {class_noun} in the snow",
            "a pencil sketch of a {token} {class_noun}",
            "a watercolour painting of a {token} {class_noun}",
        ),
        "Prompts of the sample pictures.",
    )
    sample_steps: Positive | None = setting(None, "Denoising steps of a sample picture.")
    sample_guidance_scale: NotNegative | None = setting(None, "Guidance of a sample picture.")


class TrainConfig(Section):
    """All settings of a training run."""

    concept: ConceptConfig
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    run: RunConfig = RunConfig()
    b_lora: BLoRAConfig = BLoRAConfig()
    krona: KronaConfig = KronaConfig()
    sara: SaraConfig = SaraConfig()

    @model_validator(mode="before")
    @classmethod
    def _presets_of_the_method(cls, tables: Any) -> Any:
        return with_presets(tables)

    @model_validator(mode="after")
    def _sections_of_the_method(self) -> Self:
        check_sections(self.adapter.method, self.model_fields_set)
        return self


SECTIONS: dict[str, type[Section]] = {
    "concept": ConceptConfig,
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "loss": LossConfig,
    "data": DataConfig,
    "run": RunConfig,
    "b_lora": BLoRAConfig,
    "krona": KronaConfig,
    "sara": SaraConfig,
}
"""The sections by name, in the order of `TrainConfig`."""
