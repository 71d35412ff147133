"""Whether a run folder holds something to go on with, and the exact return to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from studio.pipelines.errors import ResumeError
from studio.training.checkpoint import Checkpoint, TrainState, complete_checkpoints, read_checkpoint, remove_leftovers
from studio.training.config import TrainConfig, config_difference, load_config
from studio.training.record import FINISHED, RunRecord
from studio.training.rng import rng_state, set_rng_state
from studio.training.run_folder import RunFolder
from studio.training.session import Concept, Session


def earlier_run(folder: RunFolder, resume: bool | None) -> RunRecord | None:
    """The run that lies in `folder`, or None to start from the beginning.

    Args:
        resume: None goes on when there is something; True insists on it; False removes what an earlier run wrote.

    Raises:
        ResumeError: `resume` is True and there is nothing, or the record is damaged.
    """
    if resume is False:
        folder.clear()
        return None
    remove_leftovers(folder.checkpoints)
    data = folder.read_run()
    if data is None:
        if resume is True:
            raise ResumeError(f"there is no run in {folder.path} to resume; leave out --resume to start one")
        return None
    return RunRecord.from_json(data)


def refuse_changes(folder: RunFolder, record: RunRecord, concept: Concept) -> None:
    """Raise ResumeError with the differences when `concept` isn't the run that `folder` holds."""
    differences = [str(change) for change in config_difference(_former_config(folder), concept.config)]
    former, now = dict(record.fingerprint), concept.fingerprint
    if former.get("photos") != now["photos"]:
        differences.append("the photos or their captions have changed")
    if former.get("base") != now["base"]:
        differences.append("the base model's weights have changed")
    if differences:
        listed = "\n  ".join(differences)
        raise ResumeError(
            f"{folder.path} holds a run with other settings, which can't be continued with these:\n  {listed}\n"
            "Restore the settings, choose another --output, or start over with --no-resume."
        )


def is_finished(folder: RunFolder, record: RunRecord) -> bool:
    """True when the run is over and its adapter is there."""
    return record.status == FINISHED and folder.adapter.is_file()


def newest_state(folder: RunFolder) -> tuple[Checkpoint, TrainState] | None:
    """The newest checkpoint that can be read, or None; a damaged one is passed over for the one before."""
    error: ResumeError | None = None
    for checkpoint in reversed(complete_checkpoints(folder.checkpoints)):
        try:
            return checkpoint, read_checkpoint(checkpoint)
        except ResumeError as caught:
            error = caught
    if error is not None:
        raise error
    return None


def capture(session: Session, step: int, micro_step: int) -> TrainState:
    """Everything that changes while training, at this moment. Tensors are copies where training changes them in place."""
    named = dict(session.trainable.named_parameters())
    at_edge = micro_step == step * session.plan.accumulation
    gradients: dict[str, Tensor] = {}
    if not at_edge:
        gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    scaler = session.concept.accelerator.scaler
    return TrainState(
        step=step,
        micro_step=micro_step,
        trainable={name: tensor.detach().clone() for name, tensor in session.trainable.state_dict().items()},
        gradients=gradients,
        optimizer=session.optimizer.state_dict(),
        ema={} if session.ema is None else session.ema.state(),
        ema_updates=0 if session.ema is None else session.ema.num_updates,
        rng=rng_state(),
        facts={"scaler": None if scaler is None else scaler.state_dict()},
    )


def restore(session: Session, state: TrainState) -> None:
    """Put `state` into a session that was just opened; the run then goes on bit-equal. Call it inside `active()`."""
    session.trainable.load_state_dict(dict(state.trainable))
    session.optimizer.load_state_dict(_plain_dict(state.optimizer))
    for name, parameter in session.trainable.named_parameters():
        gradient = state.gradients.get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    if session.ema is not None:
        session.ema.load(state.ema, state.ema_updates)
    scaler = session.concept.accelerator.scaler
    if scaler is not None and state.facts["scaler"] is not None:
        scaler.load_state_dict(state.facts["scaler"])
    set_rng_state(state.rng)


def _former_config(folder: RunFolder) -> TrainConfig:
    if not folder.config_toml.is_file():
        raise ResumeError(f"{folder.config_toml} is missing, so the run can't be continued; use --no-resume to start over")
    return load_config(folder.config_toml)


def _plain_dict(mapping: Any) -> dict[str, Any]:
    return dict(mapping)
