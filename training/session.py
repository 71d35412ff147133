"""Everything one run trains with, put together from its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from studio.pipelines.base_model import BaseModel, encode_images, load_base
from studio.pipelines.generation import GenerationRequest, generate
from studio.training.config import TrainConfig
from studio.training.config.words import trigger_of
from studio.training.data.batches import BatchPlan
from studio.training.data.buckets import Size
from studio.training.data.dataset import ConceptDataset, Picture, load_concept
from studio.training.data.latents import LatentCache, make_store
from studio.training.data.loader import Batch, BatchLoader
from studio.training.data.prior import ClassPictures, class_pictures
from studio.training.data.texts import TextCache
from studio.training.ema import ExponentialMovingAverage
from studio.training.hardware import frozen_dtype, make_accelerator
from studio.training.live_text import LiveText, read_prompts
from studio.training.losses import prediction_type_of
from studio.training.method import AdapterMethod, Trainable
from studio.training.methods import method_named
from studio.training.optimizers import evaluation_weights, optimizer_factory
from studio.training.progress import Progress
from studio.training.step import Objective, StepBatch, TrainStep
from studio.training.timesteps import logit_normal_timesteps, uniform_timesteps


@dataclass(frozen=True, eq=False, kw_only=True)
class Concept:
    """What is learned from what: the resolved settings, the base model, the photos."""

    config: TrainConfig
    base: BaseModel
    dataset: ConceptDataset
    method: AdapterMethod[Any]
    accelerator: Accelerator

    @property
    def trigger(self) -> str:
        """The words that call the concept: "ohwx dog"."""
        words = self.config.concept
        return trigger_of(words.token, words.class_noun, words.bare_template)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must share besides its settings."""
        return {"photos": self.dataset.signature, "base": self.base.content_hash}


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """A concept ready to train. `model` is what accelerate made of `step`; call it inside `trainable.active()`."""

    concept: Concept
    plan: BatchPlan
    loader: BatchLoader
    trainable: Trainable
    step: TrainStep
    model: nn.Module
    optimizer: Optimizer
    ema: ExponentialMovingAverage | None

    @property
    def config(self) -> TrainConfig:
        """The resolved settings."""
        return self.concept.config

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.config.schedule.steps
        assert steps is not None
        return steps

    def batch(self, micro_step: int) -> StepBatch:
        """The batch of forward pass `micro_step`, on the device."""
        return step_batch(self.loader.load(micro_step), self.concept)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside the block the trainable holds the weights to use and to save (averaged ones where there are)."""
        with evaluation_weights(self.optimizer):
            if self.ema is None:
                yield
            else:
                with self.ema.swapped_in():
                    yield


def open_concept(config: TrainConfig, progress: Progress) -> Concept:
    """Load the base model and the photos, and complete the settings by both.

    Raises the sentences of those rooms: MissingFileError, BaseModelError, DatasetError, ConfigError.
    """
    method = method_named(config.adapter.method)
    accelerator = make_accelerator(config.run)
    base = load_base(config.model.base, dtype=frozen_dtype(accelerator), device=accelerator.device)
    resolved, dataset = load_concept(config, base.family)
    for note in dataset.notes:
        progress.say(note)
    return Concept(config=resolved, base=base, dataset=dataset, method=method, accelerator=accelerator)


def open_session(concept: Concept, run_dir: Path, progress: Progress) -> Session:
    """Attach the method to the base model and make all that a run needs, at step 0."""
    config, base, accelerator = concept.config, concept.base, concept.accelerator
    torch.manual_seed(config.run.seed)
    plan = concept.dataset.plan(config)
    loader = _loader(concept, plan, run_dir, progress)
    trainable = concept.method.attach(base, concept.method.configure(config), torch.Generator().manual_seed(config.run.seed))
    _save_memory(concept)
    step = _train_step(concept, trainable)
    model = accelerator.prepare(step)
    optimizer = trainable.make_optimizer(_factory(config))
    decay = config.run.ema_decay
    tensors = {name: parameter.detach() for name, parameter in trainable.named_parameters()}
    return Session(
        concept=concept,
        plan=plan,
        loader=loader,
        trainable=trainable,
        step=step,
        model=model,
        optimizer=optimizer,
        ema=ExponentialMovingAverage(tensors, decay) if decay > 0 else None,
    )


def step_batch(batch: Batch, concept: Concept) -> StepBatch:
    """The loader's batch with timesteps drawn, on the device."""
    loss, device = concept.config.loss, concept.accelerator.device
    num_timesteps = int(concept.base.scheduler.config.num_train_timesteps)
    if loss.timesteps == "uniform":
        timesteps = uniform_timesteps(batch.timestep_uniforms[:, 0], num_timesteps)
    else:
        assert loss.timestep_mean is not None and loss.timestep_uniform_share is not None
        timesteps = logit_normal_timesteps(
            batch.timestep_uniforms, num_timesteps, loss.timestep_mean, loss.timestep_uniform_share
        )
    needs_sizes = any(facts.projection for facts in concept.base.family.text_encoders)
    return StepBatch(
        latents=batch.latents.to(device),
        noise=batch.noise.to(device),
        timesteps=timesteps.to(device),
        captions=batch.captions,
        num_instance=batch.num_instance,
        time_ids=batch.time_ids().to(device) if needs_sizes else None,
    )


def _loader(concept: Concept, plan: BatchPlan, run_dir: Path, progress: Progress) -> BatchLoader:
    config, base, accelerator = concept.config, concept.base, concept.accelerator
    cache_dir = run_dir / "cache" if config.data.cache_dir is None else config.data.cache_dir
    latents = LatentCache(
        lambda pixels, generator: encode_images(base, pixels, generator).cpu(),
        base.content_hash,
        make_store(config.data.cache, cache_dir / "latents"),
    )
    pictures: tuple[Picture, ...] = ()
    if config.loss.prior == "class-images":
        with accelerator.main_process_first():  # the others find them drawn
            pictures = _class_pictures(concept, plan, cache_dir, progress)
    return BatchLoader(
        plan,
        concept.dataset,
        latents,
        pictures,
        noise_offset=config.loss.noise_offset,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def _class_pictures(concept: Concept, plan: BatchPlan, cache_dir: Path, progress: Progress) -> tuple[Picture, ...]:
    base, run = concept.base, concept.config.run
    assert plan.prior is not None and run.sample_steps is not None and run.sample_guidance_scale is not None
    steps, guidance_scale = run.sample_steps, run.sample_guidance_scale
    wanted = ClassPictures(
        base_hash=base.content_hash,
        prompts=plan.prior.prompts,
        num_images=plan.prior.num_class_images,
        size=Size(base.size, base.size),
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=base.family.default_scheduler,
    )

    def draw(prompts: Any, seeds: Any) -> Any:
        return generate(
            base,
            GenerationRequest(
                prompts=tuple(prompts),
                seeds=tuple(seeds),
                steps=steps,
                guidance_scale=guidance_scale,
                height=base.size,
                width=base.size,
            ),
        )

    def tell(there: int, wanted_images: int) -> None:
        progress.say(f"pictures of the class: {there} of {wanted_images}")

    return class_pictures(wanted, cache_dir, draw, tell)


def _train_step(concept: Concept, trainable: Trainable) -> TrainStep:
    config, base = concept.config, concept.base
    cached = TextCache(lambda prompts: read_prompts(base, prompts), base.content_hash, make_store("memory", Path()))
    loss = config.loss
    assert loss.snr_gamma is not None and loss.prior_weight is not None
    objective = Objective(
        prediction=prediction_type_of(base.scheduler.config),
        snr_gamma=None if loss.snr_gamma == 0 else loss.snr_gamma,
        prior_weight=loss.prior_weight,
        prior_is_base_output=loss.prior == "base-output",
    )
    live = bool(config.adapter.train_text_encoder)
    return TrainStep(base, trainable, objective, LiveText(base) if live else cached.condition, cached.condition)


def _save_memory(concept: Concept) -> None:
    if concept.config.run.gradient_checkpointing:
        concept.base.unet.enable_gradient_checkpointing()  # type: ignore[operator]
        if concept.config.adapter.train_text_encoder:
            for encoder in concept.base.text_encoders:
                encoder.gradient_checkpointing_enable()  # type: ignore[operator]
                encoder.train()  # transformers checkpoints in training mode only; CLIP's dropout is 0


def _factory(config: TrainConfig) -> Any:
    optimizer = config.optimizer
    assert optimizer.weight_decay is not None
    return optimizer_factory(
        optimizer.name,
        weight_decay=optimizer.weight_decay,
        betas=(optimizer.beta1, optimizer.beta2),
        epsilon=optimizer.epsilon,
    )
