"""The loop: forward, backward, step. It knows when something is due, and asks its crew to do it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.pipelines.errors import NonFiniteLossError
from studio.training.metrics import MetricsLog
from studio.training.optimizers import set_learning_rates
from studio.training.progress import Progress, Speedometer
from studio.training.schedules import learning_rate_factor
from studio.training.session import Session
from studio.training.signals import StopRequest

READ_LOSS_EVERY = {"cpu": 1}
READ_LOSS_OTHERWISE = 10
"""Reading a number from an accelerator waits for it; on the CPU it is free."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is: optimizer steps done, and forward passes done."""

    step: int
    micro_step: int


@dataclass(frozen=True, kw_only=True)
class Crew:
    """What the loop asks for besides training.

    Attributes:
        checkpoint: write everything down. look: draw samples, score them, renew the report, for a step.
        metrics: None in processes that only compute.
        wishes: what somebody wants now and once, "save" or "sample"; asked after each step of a run in one process.
    """

    checkpoint: Callable[[Position], None]
    look: Callable[[int], None]
    metrics: MetricsLog | None
    progress: Progress
    stop: StopRequest
    wishes: Callable[[], frozenset[str]] = frozenset


def run_loop(session: Session, start: Position, crew: Crew) -> Position:
    """Train from `start` to the end, or until a stop is asked for; a checkpoint is there in both cases.

    Call it inside `session.trainable.active()`.

    Raises:
        NonFiniteLossError: the loss isn't a number any more; the last checkpoint is the last good state.
    """
    loop = _Loop(session, crew, start)
    while loop.step < session.total_steps:
        loop.micro_step_once()
        at_edge = loop.micro_step % session.plan.accumulation == 0
        wishes = loop.wishes(at_edge)
        due = at_edge and (loop.is_due(session.config.run.checkpoint_every) or "save" in wishes)
        stopping = loop.should_stop(at_edge)
        if due or stopping:
            loop.drain()
            crew.checkpoint(loop.position)
        if stopping:
            break
        if at_edge and (loop.is_due(session.config.run.sample_every) or "sample" in wishes):
            loop.drain()
            loop.look()
    loop.drain()
    return loop.position


class _Loop:
    """The running numbers of one call of `run_loop`."""

    def __init__(self, session: Session, crew: Crew, start: Position) -> None:
        self.session = session
        self.crew = crew
        self.step, self.micro_step = start.step, start.micro_step
        self.accelerator = session.concept.accelerator
        self.parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
        self.accumulation = session.plan.accumulation
        self.read_every = READ_LOSS_EVERY.get(self.accelerator.device.type, READ_LOSS_OTHERWISE)
        self.waiting: list[tuple[int, Tensor]] = []
        self.learning_rate = 0.0
        self.gradient_norm: Tensor | None = None
        rows = session.plan.step_size
        self.speed = Speedometer(session.total_steps, rows)

    @property
    def position(self) -> Position:
        return Position(step=self.step, micro_step=self.micro_step)

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return bool(every) and (self.step % every == 0 or self.step == self.session.total_steps)  # type: ignore[operator]

    def micro_step_once(self) -> None:
        """One forward and backward pass; at the end of an accumulation an optimizer step too."""
        session = self.session
        part = self.micro_step % self.accumulation
        is_last = part == self.accumulation - 1
        batch = session.batch(self.micro_step)
        with nullcontext() if is_last else self.accelerator.no_sync(session.model):
            loss = session.model(batch)
            self._note(loss)
            self.accelerator.backward(loss / self.accumulation)
        self.micro_step += 1
        if is_last:
            self._optimize()

    def _optimize(self) -> None:
        session, optimizer, scaler = self.session, self.session.optimizer, self.accelerator.scaler
        config = session.config
        assert config.schedule.warmup_steps is not None and config.schedule.name is not None
        # Schedule-free has its own way of settling down: a falling rate would do it twice.
        shape = "constant" if config.optimizer.name == "schedule-free" else config.schedule.name
        factor = learning_rate_factor(self.step, session.total_steps, config.schedule.warmup_steps, shape)
        set_learning_rates(optimizer, factor)
        if scaler is not None:
            scaler.unscale_(optimizer)
        longest = config.optimizer.max_grad_norm
        if longest > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, longest)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if session.ema is not None:
            session.ema.update()
        self.step += 1
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        session.trainable.on_step(self.step)

    def _note(self, loss: Tensor) -> None:
        """Keep the loss of a forward pass; read what waits when enough has come together, before weights are touched."""
        step = self.session.step
        self.waiting.append((self.micro_step, torch.stack([loss.detach().float(), step.instance_loss, step.prior_loss])))
        if len(self.waiting) >= self.read_every:
            self.drain()

    def drain(self) -> None:
        """Read the losses that wait: log them, show them, and stop when one isn't finite."""
        if not self.waiting:
            return
        values = torch.stack([value for _, value in self.waiting])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="mean")
        for (micro_step, _), (loss, instance, prior) in zip(self.waiting, values.tolist(), strict=True):
            self._tell(micro_step, loss, instance, prior)
        self.waiting.clear()

    def _tell(self, micro_step: int, loss: float, instance: float, prior: float) -> None:
        step = micro_step // self.accumulation + 1
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss became {loss} at step {step}; the last checkpoint is untouched. A lower learning rate, "
                "gradient clipping (optimizer.max_grad_norm) or mixed_precision bf16 instead of fp16 usually helps"
            )
        report = self.speed.report(step, loss, is_step=(micro_step + 1) % self.accumulation == 0)
        self.crew.progress.step(report)
        if self.crew.metrics is not None:
            record = {
                "step": step,
                "micro_step": micro_step + 1,
                "loss": loss,
                "instance_loss": instance,
                "prior_loss": prior,
                "learning_rate": self.learning_rate,
                "images_per_second": round(report.images_per_second, 3),
            }
            self.crew.metrics.add(record)

    def should_stop(self, at_edge: bool) -> bool:
        """Whether somebody asked to stop. Several processes agree on it at the edge of a step, one at any time."""
        asked = bool(self.crew.stop)
        if self.accelerator.num_processes == 1:
            return asked
        if not at_edge:
            return False
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        return float(self.accelerator.reduce(flag, reduction="sum").item()) > 0

    def wishes(self, at_edge: bool) -> frozenset[str]:
        """What somebody wants besides what is due; several processes would have to agree on it, and only do what is due."""
        return self.crew.wishes() if at_edge and self.accelerator.num_processes == 1 else frozenset()

    def look(self) -> None:
        """Samples and report, whose time doesn't count as training."""
        started = time.monotonic()
        self.crew.look(self.step)
        self.speed.pause(time.monotonic() - started)
