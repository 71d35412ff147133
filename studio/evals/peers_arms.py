"""A training step by our trainer and by other people's, on the same small UNet with the structure of Stable Diffusion 1.5.

Ours is the trainer's own loop, `run_loop`, with its `TrainStep` and the method's `Trainable`. Theirs is the loop of diffusers'
example `train_dreambooth_lora.py` (0.42): PEFT's adapter, accelerate, torch's AdamW and a constant schedule. Both get latents
and text features that were made before, which the example only does with `--pre_compute_text_embeddings`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoKrConfig, LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from studio.kernels.bench.interleaved import Arm
from studio.pipelines.base_model import BaseModel, TextCondition
from studio.pipelines.families import SD15
from studio.training.config import load_config, resolve_defaults
from studio.training.data.batches import BatchPlan, PlanItem
from studio.training.data.buckets import Size
from studio.training.data.captions import Captions
from studio.training.loop import Crew, Position, run_loop
from studio.training.method import Trainable
from studio.training.methods import method_named
from studio.training.optimizers import optimizer_factory
from studio.training.progress import Silence
from studio.training.session import Concept, Session
from studio.training.signals import StopRequest
from studio.training.step import Objective, StepBatch, TrainStep

RANK = 16
FACTOR = 16
"""Side of the square Kronecker factor."""

LEARNING_RATE, WEIGHT_DECAY, BETAS, EPSILON, MAX_GRAD_NORM = 1e-4, 1e-2, (0.9, 0.999), 1e-8, 1.0
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
TEXT_LENGTH = 77


@dataclass(frozen=True)
class Size15:
    """Size of a UNet with SD1.5's structure: 16 transformer blocks, 128 attention projections."""

    channels: tuple[int, int, int, int] = (64, 128, 256, 256)
    cross_attention_dim: int = 128
    groups: int = 32
    latent_side: int = 32


SMALL = Size15()
"""34.3 million parameters."""


def make_unet(size: Size15, seed: int = 0) -> UNet2DConditionModel:
    """A random UNet of that size, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=size.latent_side,
            block_out_channels=size.channels,
            layers_per_block=2,
            cross_attention_dim=size.cross_attention_dim,
            attention_head_dim=8,
            norm_num_groups=size.groups,
        )
    return unet.requires_grad_(False).eval()


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch of two halves, the concept's picture and one of the class, the same for everybody."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor

    @classmethod
    def make(cls, size: Size15, seed: int = 1) -> Inputs:
        """A batch of two."""
        generator = torch.Generator().manual_seed(seed)
        shape = (2, 4, size.latent_side, size.latent_side)
        return cls(
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator),
            torch.tensor([211, 742]),
            torch.randn(2, TEXT_LENGTH, size.cross_attention_dim, generator=generator),
        )


@dataclass(frozen=True, eq=False)
class TrainingArm:
    """Somebody's training step. `losses` is what it returned, call by call; `opened` is what stays open as long as it runs."""

    name: str
    step: Arm
    losses: list[float]
    num_parameters: int
    opened: ExitStack = field(default_factory=ExitStack)


class _FixedSession(Session):
    """A session whose batch is always the same, and whose run ends where it is told to."""

    fixed: StepBatch
    until: int

    def batch(self, micro_step: int) -> StepBatch:
        """The one batch."""
        return self.fixed

    @property
    def total_steps(self) -> int:
        """One more than were done."""
        return self.until


class _Losses(Silence):
    """Keeps the losses that the loop reports; the smoothed one of a fresh loop's first step is that step's own."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, report: Any) -> None:
        """Note the loss."""
        self.losses.append(report.loss)


def our_arm(
    name: str, method: str, unet: nn.Module, inputs: Inputs, accelerator: Accelerator, settings: dict[str, object]
) -> tuple[TrainingArm, Trainable]:
    """A step by the trainer's own loop. `unet` is used as it is: give each arm its own copy."""
    overrides = {
        "concept.images": ".",
        "concept.class_noun": "dog",
        "adapter.method": method,
        "adapter.targets": SD15.attention_targets,
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "schedule.warmup_steps": 0,
        "schedule.steps": 1_000_000,
        "run.checkpoint_every": 1_000_000,
        "run.sample_every": 0,
        "loss.prior": "class-images",
        "loss.snr_gamma": 0.0,
        **settings,
    }
    config = resolve_defaults(load_config(None, overrides), SD15, 4)
    base = _base_model(unet)
    chosen = method_named(method)
    trainable = chosen.attach(base, chosen.configure(config), torch.Generator().manual_seed(0))
    condition = TextCondition(inputs.prompt_embeds, None)
    step = TrainStep(base, trainable, Objective(prediction="epsilon"), lambda captions: condition, lambda captions: condition)
    model = accelerator.prepare(step)
    factory = optimizer_factory("adamw", weight_decay=WEIGHT_DECAY, betas=BETAS, epsilon=EPSILON)
    concept = Concept(config=config, base=base, dataset=cast("Any", None), method=chosen, accelerator=accelerator)
    item = PlanItem(size=Size(8, 8), captions=Captions(full=("",), bare=""))
    session = _FixedSession(
        concept=concept,
        plan=BatchPlan(seed=0, items=(item,), batch_size=1),
        loader=cast("Any", None),
        trainable=trainable,
        step=step,
        model=model,
        optimizer=trainable.make_optimizer(factory),
        ema=None,
    )
    batch = StepBatch(latents=inputs.latents, noise=inputs.noise, timesteps=inputs.timesteps, captions=("", ""), num_instance=1)
    object.__setattr__(session, "fixed", batch)
    watch = _Losses()
    crew = Crew(checkpoint=lambda at: None, look=lambda at: None, metrics=None, progress=watch, stop=StopRequest())
    opened = ExitStack()
    opened.enter_context(trainable.active())

    def one_step() -> None:
        done = len(watch.losses)
        object.__setattr__(session, "until", done + 1)
        run_loop(session, Position(step=done, micro_step=done), crew)

    return TrainingArm(name, one_step, watch.losses, _count(trainable), opened), trainable


def peer_arm(name: str, adapter: LoraConfig | LoKrConfig, unet: Any, inputs: Inputs, accelerator: Accelerator) -> TrainingArm:
    """A step as diffusers' example takes it, with PEFT's adapter in `unet`."""
    unet.add_adapter(adapter)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPSILON)
    schedule = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=1_000_000)
    unet, optimizer, schedule = accelerator.prepare(unet, optimizer, schedule)
    scheduler = _noise_scheduler()
    unet.train()
    losses: list[float] = []

    def one_step() -> None:
        with accelerator.accumulate(unet):
            noised = scheduler.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
            prediction = unet(noised, inputs.timesteps, inputs.prompt_embeds, class_labels=None, return_dict=False)[0]
            prediction, prior_prediction = torch.chunk(prediction, 2, dim=0)
            target, prior_target = torch.chunk(inputs.noise, 2, dim=0)
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            loss = loss + 1.0 * F.mse_loss(prior_prediction.float(), prior_target.float(), reduction="mean")
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.detach().item())

    return TrainingArm(name, one_step, losses, sum(parameter.numel() for parameter in parameters))


def peer_lora_config(rank: int = RANK) -> LoraConfig:
    """As the example makes it."""
    return LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, init_lora_weights="gaussian", target_modules=TARGETS)


def peer_lokr_config(factor: int = FACTOR) -> LoKrConfig:
    """Two full factors, the smaller one square: what our Kronecker adapter is by default."""
    everything = 1_000_000  # a rank that leaves both factors whole
    return LoKrConfig(r=everything, alpha=everything, decompose_factor=factor, target_modules=TARGETS, init_weights=True)


def copy_lora(trainable: Trainable, unet: nn.Module) -> None:
    """Give PEFT's LoRA the values of ours, so that both learn the same."""
    ours = {name.replace("/", "."): value for name, value in trainable.state_dict().items()}
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                module, _, which = name.removesuffix(".default.weight").rpartition(".")
                wanted = "down" if which == "lora_A" else "up"
                (source,) = [value for key, value in ours.items() if f".{module}." in f".{key}" and key.endswith(wanted)]
                parameter.copy_(source.reshape(parameter.shape))


def base_arms(unet: nn.Module, inputs: Inputs) -> dict[str, Arm]:
    """The untouched UNet's forward pass, under two names."""

    @torch.no_grad()
    def forward() -> None:
        unet(inputs.latents, inputs.timesteps, inputs.prompt_embeds, return_dict=False)

    return {"base forward": forward, "base forward again": forward}


def copies(unet: nn.Module, num: int) -> Sequence[nn.Module]:
    """So many UNets of the same values."""
    return [copy.deepcopy(unet) for _ in range(num)]


def _base_model(unet: nn.Module) -> BaseModel:
    family = replace(SD15, text_encoders=())
    return BaseModel(
        family=family,
        unet=unet,
        vae=nn.Identity(),
        text_encoders=(),
        tokenizers=(),
        scheduler=_noise_scheduler(),
        source="a random UNet",
        size=256,
    )


def _noise_scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon")


def _count(trainable: Trainable) -> int:
    return sum(parameter.numel() for parameter in trainable.parameters())
