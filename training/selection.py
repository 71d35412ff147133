"""Which checkpoint to keep, and the warning when a run learned its photos by heart. Pure functions of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FIDELITY_MARGIN = 0.05
"""A checkpoint may lose at most this much prompt fidelity against the base model."""

OVERFIT_DROP = 0.02
"""Falls smaller than this are noise."""

PHOTOS_TO_HOLD_ONE_OUT = 4


@dataclass(frozen=True, kw_only=True)
class CheckpointScore:
    """How the samples of one checkpoint score (means over prompts and seeds, cosines in −1 … 1).

    Attributes:
        step: optimizer steps done. prompt_fidelity: samples to their prompts.
        identity_training: samples to the training photos.
        identity_held_out: samples to the photo that wasn't trained on; None when none was held out.
    """

    step: int
    prompt_fidelity: float
    identity_training: float
    identity_held_out: float | None = None

    @property
    def identity(self) -> float:
        """The identity that counts: to the held-out photo when there is one."""
        return self.identity_training if self.identity_held_out is None else self.identity_held_out

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The checkpoint that becomes the adapter, why, and what to beware of (sentences for people)."""

    step: int
    reason: str
    warnings: tuple[str, ...] = ()


def choose_checkpoint(base: CheckpointScore, scores: Sequence[CheckpointScore]) -> Choice:
    """The highest identity among the checkpoints within `FIDELITY_MARGIN` of the base's prompt fidelity.

    When none is within it, the one with the highest prompt fidelity. `base` is the untouched model on the same prompts
    with the class noun alone; `scores`, oldest first, must not be empty.
    """
    floor = base.prompt_fidelity - FIDELITY_MARGIN
    allowed = [score for score in scores if score.prompt_fidelity >= floor]
    warnings = overfit_warnings(base, scores)
    held_out = scores[-1].identity_held_out is not None
    to_what = "the held-out photo" if held_out else "the training photos (fewer than four photos: none was held out)"
    if not allowed:
        best = max(scores, key=lambda score: (score.prompt_fidelity, score.identity))
        reason = (
            f"No checkpoint stays within {FIDELITY_MARGIN:.2f} of the base model's prompt fidelity "
            f"({base.prompt_fidelity:.3f}); step {best.step} keeps most of it ({best.prompt_fidelity:.3f})."
        )
        return Choice(step=best.step, reason=reason, warnings=warnings)
    best = max(allowed, key=lambda score: (score.identity, -score.step))
    ruled_out = len(scores) - len(allowed)
    reason = (
        f"Step {best.step} looks most like {to_what}: identity {best.identity:.3f} (base model {base.identity:.3f}), "
        f"with prompt fidelity {best.prompt_fidelity:.3f} (base model {base.prompt_fidelity:.3f})."
    )
    if ruled_out:
        reason += f" {ruled_out} of {len(scores)} checkpoints lost more than {FIDELITY_MARGIN:.2f} of it and were left out."
    return Choice(step=best.step, reason=reason, warnings=warnings)


def overfit_warnings(base: CheckpointScore, scores: Sequence[CheckpointScore]) -> tuple[str, ...]:
    """Sentences about learning by heart: held-out identity falls while training identity rises; prompts are lost."""
    warnings = []
    last = scores[-1]
    if last.identity_held_out is not None:
        peak = max(scores, key=lambda score: score.identity)
        fell = peak.identity - last.identity > OVERFIT_DROP
        rose = last.identity_training - peak.identity_training > OVERFIT_DROP
        if fell and rose:
            warnings.append(
                f"After step {peak.step} the samples grow more like the training photos but less like the held-out one: "
                "the photos are being learned by heart. Fewer steps or a lower learning rate would do."
            )
    if last.prompt_fidelity < base.prompt_fidelity - FIDELITY_MARGIN:
        warnings.append(
            f"Prompt fidelity fell from {base.prompt_fidelity:.3f} to {last.prompt_fidelity:.3f} by step {last.step}: "
            "the model obeys prompts less than it did. Fewer steps, a lower learning rate or a stronger prior would help."
        )
    return tuple(warnings)
