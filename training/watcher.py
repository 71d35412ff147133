"""Looks at a run from time to time: draws the samples, scores them, keeps the record and the report up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from PIL import Image

from studio.pipelines.errors import MissingFileError
from studio.pipelines.scoring import Scorer, load_scorer
from studio.training.record import RunRecord
from studio.training.run_folder import RunFolder
from studio.training.samples import SCORED_SEEDS, SamplePlan, draw_samples, sample_plan, save_samples, score_samples
from studio.training.selection import CheckpointScore, Choice, choose_checkpoint
from studio.training.session import Concept


class Watcher:
    """Samples and scores of one run. Only the main process has one.

    Args:
        scorer: None for none; the choice is then the last checkpoint.
    """

    def __init__(self, concept: Concept, folder: RunFolder, scorer: Scorer | None) -> None:
        self.concept = concept
        self.folder = folder
        self.scorer = scorer
        self.plan: SamplePlan = sample_plan(concept.config, concept.base, 1 if scorer is None else SCORED_SEEDS)
        dataset = concept.dataset
        self.photos: list[Image.Image] = [item.picture.image() for item in dataset.train_items]
        self.held_out = None if dataset.held_out is None else dataset.held_out.picture.image()

    @property
    def wanted(self) -> bool:
        """Whether the run draws samples at all."""
        return bool(self.concept.config.run.sample_every) and len(self.plan) > 0

    def look_at_base(self, record: RunRecord) -> RunRecord:
        """Draw and score what the untouched base model makes of the prompts with the class noun alone (row 0)."""
        if not self.wanted or 0 in record.sampled_steps:
            return record
        images = draw_samples(self.concept.base, self.plan, with_token=False)
        save_samples(images, self.folder.samples_of(0))
        base_score = self._score(images, 0)
        name = None if self.scorer is None else self.scorer.name
        return replace(record, sampled_steps=(0,), base_score=base_score, scorer=name)

    def look(self, record: RunRecord, step: int, evaluating: Callable[[], AbstractContextManager[None]]) -> RunRecord:
        """Draw and score the samples of `step`, with the weights as in `evaluating()`."""
        if not self.wanted or step in record.sampled_steps:
            return record
        with evaluating():
            images = draw_samples(self.concept.base, self.plan, with_token=True)
        save_samples(images, self.folder.samples_of(step))
        score = self._score(images, step)
        scores = record.scores if score is None else (*record.scores, score)
        return replace(record, sampled_steps=(*record.sampled_steps, step), scores=scores)

    def choose(self, record: RunRecord, candidates: Sequence[int]) -> Choice:
        """The checkpoint to keep, out of the steps in `candidates`."""
        scores = [score for score in record.scores if score.step in candidates]
        if scores and record.base_score is not None:
            return choose_checkpoint(record.base_score, scores)
        why = "no samples were drawn" if not self.wanted else "there is no scorer for this base model"
        last = max(candidates)
        return Choice(step=last, reason=f"Step {last} is the last checkpoint; {why}, so the checkpoints were not compared.")

    def chosen_images(self, step: int) -> list[Image.Image]:
        """The sample pictures of `step`, from its files."""
        return [Image.open(path).convert("RGB") for path in self.sample_files(step)]

    def sample_files(self, step: int) -> list[Path]:
        """Paths of the sample pictures of `step`."""
        return sorted(self.folder.samples_of(step).glob("*.png"))

    def _score(self, images: Sequence[Image.Image], step: int) -> CheckpointScore | None:
        if self.scorer is None:
            return None
        noun = self.concept.config.concept.class_noun
        return score_samples(self.scorer, images, self.plan, step, noun, self.photos, self.held_out)


def default_scorer(concept: Concept) -> Scorer | None:
    """The embedded guide for the embedded base model; None for others, whose pictures it can't read."""
    if concept.base.family.name != "embedded":
        return None
    try:
        return load_scorer("guide")
    except MissingFileError:
        return None
