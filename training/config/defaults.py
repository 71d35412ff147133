"""Put a model family's defaults, and what follows from the number of photos, into a configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from studio.pipelines.errors import ConfigError
from studio.pipelines.families import ModelFamily, TrainDefaults
from studio.pipelines.families.sara import sara_learning_rate
from studio.training.config.sara import SaraConfig
from studio.training.config.schema import AdapterConfig, DataConfig, OptimizerConfig, RunConfig, TrainConfig
from studio.training.config.words import slug, with_article

CHECKPOINTS_PER_RUN = 10
WARMUP_SHARE, LONGEST_WARMUP = 0.05, 50


def resolve_defaults(config: TrainConfig, family: ModelFamily, num_images: int) -> TrainConfig:
    """Fill every None of `config` that has a meaning.

    Args:
        family: whose record for the method holds the defaults.
        num_images: photos trained on, the held-out one not counted.

    Raises:
        ConfigError: the settings contradict each other: a warm-up as long as the run, sides that are no multiples.
    """
    train = family.train_defaults(config.adapter.method)
    steps = _steps(config, train, num_images)
    return config.model_copy(
        update={
            "concept": config.concept.model_copy(
                update={
                    "images": config.concept.images.expanduser().absolute(),
                    "bare_caption_share": _first(config.concept.bare_caption_share, train.bare_caption_share),
                    "caption_dropout": _first(config.concept.caption_dropout, train.caption_dropout),
                }
            ),
            "krona": config.krona.model_copy(update={"factors": _first(config.krona.factors, train.kronecker_factors)}),
            "sara": _sara(config, train),
            "adapter": _adapter(config.adapter, family, train),
            "optimizer": _optimizer(config, train),
            "schedule": config.schedule.model_copy(
                update={
                    "steps": steps,
                    "name": _first(config.schedule.name, train.schedule),
                    "warmup_steps": _warmup_steps(config.schedule.warmup_steps, steps),
                }
            ),
            "loss": _loss(config, train),
            "data": _data(config.data, family, train),
            "run": _run(config, family, steps),
        }
    )


def config_warnings(config: TrainConfig, family: ModelFamily) -> tuple[str, ...]:
    """What is allowed and probably not wanted, a sentence each."""
    found = []
    if config.concept.token.lower() == "sks" and family.name != "embedded":
        found.append(
            'The token "sks" is the name of a rifle, and this base model has seen it: weapons may appear in the '
            'pictures. Prefer another rare word, such as "ohwx".'
        )
    if config.concept.token.lower() in config.concept.class_noun.lower().split():
        found.append("The token is part of the class noun, so the adapter will change the whole class; prefer a rare word.")
    return tuple(found)


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _steps(config: TrainConfig, train: TrainDefaults, num_images: int) -> int:
    if config.schedule.steps is not None:
        return config.schedule.steps
    wanted = train.steps_per_image * num_images
    return min(max(wanted, train.min_steps), train.max_steps)


def _warmup_steps(warmup_steps: int | None, steps: int) -> int:
    if warmup_steps is None:
        return min(LONGEST_WARMUP, int(WARMUP_SHARE * steps))
    if warmup_steps >= steps:
        raise ConfigError(
            f"schedule.warmup_steps = {warmup_steps} is not shorter than the run of {steps} steps, so the learning rate "
            f"would never be reached; use at most {steps - 1}, or leave it out for {_warmup_steps(None, steps)}"
        )
    return warmup_steps


def _adapter(config: AdapterConfig, family: ModelFamily, train: TrainDefaults) -> AdapterConfig:
    rank = _first(config.rank, train.rank)
    return config.model_copy(
        update={
            "rank": rank,
            "alpha": _first(config.alpha, rank * train.alpha / train.rank),
            "targets": _first(config.targets, _first(train.targets, family.adapter_targets)),
            "text_encoder_targets": _first(config.text_encoder_targets, family.text_encoder_targets),
            "train_text_encoder": _first(config.train_text_encoder, train.train_text_encoder),
        }
    )


def _sara(config: TrainConfig, train: TrainDefaults) -> SaraConfig:
    sara = config.sara
    if config.adapter.method != "sara" or sara.threshold is not None or sara.density is not None:
        return sara
    return sara.model_copy(update={"threshold": train.sparse_threshold, "density": train.sparse_density})


def _optimizer(config: TrainConfig, train: TrainDefaults) -> OptimizerConfig:
    optimizer = config.optimizer
    rate, text_rate = train.learning_rate, train.text_encoder_learning_rate
    if config.adapter.method == "sara" and config.sara.threshold is not None:  # the paper's rule by the threshold
        rate = _first(sara_learning_rate(config.sara.threshold), rate)
    if optimizer.name == "prodigy":  # it finds the rate itself and takes a factor
        rate = text_rate = 1.0
    return optimizer.model_copy(
        update={
            "learning_rate": _first(optimizer.learning_rate, rate),
            "text_encoder_learning_rate": _first(optimizer.text_encoder_learning_rate, text_rate),
            "weight_decay": _first(optimizer.weight_decay, train.weight_decay),
        }
    )


def _loss(config: TrainConfig, train: TrainDefaults) -> Any:
    loss = config.loss
    noun = config.concept.class_noun
    prompts = (f"a photo of {with_article(noun)}", f"a picture of {with_article(noun)}", with_article(noun))
    return loss.model_copy(
        update={
            "snr_gamma": _first(loss.snr_gamma, 0.0 if train.snr_gamma is None else train.snr_gamma),
            "timesteps": _first(loss.timesteps, train.timesteps),
            "timestep_mean": _first(loss.timestep_mean, train.timestep_mean),
            "timestep_uniform_share": _first(loss.timestep_uniform_share, train.timestep_uniform_share),
            "prior": _first(loss.prior, train.prior),
            "prior_weight": _first(loss.prior_weight, train.prior_weight),
            "prior_batch_size": _first(loss.prior_batch_size, _first(config.data.batch_size, train.batch_size)),
            "num_class_images": _first(loss.num_class_images, train.num_class_images),
            "class_prompts": _first(loss.class_prompts, prompts),
        }
    )


def _data(config: DataConfig, family: ModelFamily, train: TrainDefaults) -> DataConfig:
    multiple = family.size_multiple
    resolution = _first(config.resolution, train.resolution)
    # An eighth of the side, at most 64: finer steps would leave every photo alone in a bucket of its own.
    step = _first(config.bucket_step, math.ceil(min(64, resolution / 8) / multiple) * multiple)
    for key, value in (("resolution", resolution), ("bucket_step", step)):
        if value % multiple:
            below = max(multiple, value // multiple * multiple)
            raise ConfigError(
                f"data.{key} = {value} is not a multiple of {multiple}, as {family.title} needs; "
                f"use {below} or {value // multiple * multiple + multiple}"
            )
    return config.model_copy(
        update={
            "resolution": resolution,
            "batch_size": _first(config.batch_size, train.batch_size),
            "bucket_step": step,
            "cache_dir": None if config.cache_dir is None else config.cache_dir.expanduser().absolute(),
        }
    )


def _run(config: TrainConfig, family: ModelFamily, steps: int) -> RunConfig:
    run = config.run
    name = _first(run.name, slug(config.concept.class_noun))
    every = _first(run.checkpoint_every, max(1, steps // CHECKPOINTS_PER_RUN))
    output_dir: Path = _first(run.output_dir, Path("outputs") / name)
    return run.model_copy(
        update={
            "name": name,
            "output_dir": output_dir.expanduser().absolute(),
            "checkpoint_every": every,
            "sample_every": _first(run.sample_every, every),
            "sample_steps": _first(run.sample_steps, family.default_steps),
            "sample_guidance_scale": _first(run.sample_guidance_scale, family.default_guidance_scale),
        }
    )
