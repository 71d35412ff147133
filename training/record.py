"""run.json: what a run is, how far it came, and what its samples scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from studio.pipelines.errors import ResumeError
from studio.training.selection import CheckpointScore

RUNNING, STOPPED, FINISHED, FAILED = "running", "stopped", "finished", "failed"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The state of a run, for its folder.

    Attributes:
        status: "running", "stopped" (by a signal), "failed" or "finished". step, total_steps: optimizer steps.
        config_hash: of the settings that make the run. fingerprint: of photos and base model.
        started: ISO 8601. train_seconds: wall time in steps; cpu_seconds: of the whole process, all threads.
        sampled_steps: steps with sample pictures. base_score, scores: None and empty without a scorer.
        scorer: its name. chosen_step, reason, warnings: filled at the end.
    """

    status: str
    step: int
    total_steps: int
    config_hash: str
    fingerprint: Mapping[str, str]
    trigger: str
    class_noun: str
    started: str
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0
    sampled_steps: tuple[int, ...] = ()
    base_score: CheckpointScore | None = None
    scores: tuple[CheckpointScore, ...] = ()
    scorer: str | None = None
    chosen_step: int | None = None
    reason: str = ""
    warnings: tuple[str, ...] = field(default=())

    def through(self, step: int) -> Self:
        """The record as it was at `step`: later samples and scores are about to be made again."""
        return replace(
            self,
            status=RUNNING,
            step=step,
            sampled_steps=tuple(number for number in self.sampled_steps if number <= step),
            scores=tuple(score for score in self.scores if score.step <= step),
            chosen_step=None,
            reason="",
            warnings=(),
        )

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Back from `as_json`. Raises ResumeError for a record of another version."""
        try:
            values = dict(data)
            base = values["base_score"]
            values["base_score"] = None if base is None else CheckpointScore(**base)
            values["scores"] = tuple(CheckpointScore(**score) for score in values["scores"])
            values["sampled_steps"] = tuple(values["sampled_steps"])
            values["warnings"] = tuple(values["warnings"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ResumeError(f"run.json was written by another version of the studio ({error}); use --no-resume") from error
