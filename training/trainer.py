"""`train`: from a configuration to an adapter, whatever happens on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from studio.pipelines.adapters import Redaction
from studio.pipelines.errors import Interrupted, NonFiniteLossError, StudioError
from studio.pipelines.files import atomic_write_text
from studio.pipelines.scoring import Scorer
from studio.training.checkpoint import adapter_file_of, rotate_checkpoints, write_checkpoint
from studio.training.config import TrainConfig, config_hash, config_warnings, dump_toml
from studio.training.loop import Crew, Position, run_loop
from studio.training.metrics import MetricsLog
from studio.training.outputs import save_checkpoint_adapter, save_final_adapters
from studio.training.progress import Progress, Silence
from studio.training.record import FAILED, FINISHED, RUNNING, STOPPED, RunRecord
from studio.training.report.build import write_photos, write_report
from studio.training.resume import capture, earlier_run, is_finished, newest_state, refuse_changes, restore
from studio.training.run_folder import RunFolder
from studio.training.samples import best_sample
from studio.training.selection import CheckpointScore
from studio.training.session import Concept, Session, open_concept, open_session
from studio.training.signals import StopRequest, catch_stop_signals
from studio.training.watcher import Watcher, default_scorer
from studio.training.wishes import take_wishes


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run left behind.

    Attributes:
        adapter_path: PEFT file, or the studio's own. kohya_path: the same for other tools; not there if it would be large.
        report_path: index.html.
        chosen_step, reason: which checkpoint it is, and why. warnings: sentences.
        base_score, scores: None and empty without a scorer. already_finished: nothing was left to do.
        train_seconds: wall time in training steps. cpu_seconds: of the process, all threads, samples included.
    """

    run_dir: Path
    adapter_path: Path
    kohya_path: Path
    report_path: Path
    trigger: str
    steps: int
    chosen_step: int
    reason: str
    warnings: tuple[str, ...]
    base_score: CheckpointScore | None
    scores: tuple[CheckpointScore, ...]
    train_seconds: float
    cpu_seconds: float
    already_finished: bool = False


def train(
    config: TrainConfig,
    *,
    resume: bool | None = None,
    progress: Progress | None = None,
    scorer: Scorer | Literal["auto"] | None = "auto",
    redact: Redaction = "none",
) -> TrainResult:
    """Learn the concept that `config` describes.

    Args:
        config: as read; defaults by family and number of photos are filled in here.
        resume: None goes on with a run that lies in the output folder; True insists on it; False starts over.
        scorer: judges the checkpoints; "auto" is the embedded guide for the embedded base model, none for others.
        redact: what to leave out of the finished files' metadata: "none", "private" or "minimal".

    Raises:
        UserError: a setting, a photo, the base model or the folder can't be used; ResumeError for a changed run.
        Interrupted: a signal asked to stop; everything is written down.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    progress = Silence() if progress is None else progress
    with catch_stop_signals() as stop, _out_of_memory_as_sentence():
        concept = open_concept(config, progress)
        assert concept.config.run.output_dir is not None
        folder = RunFolder(concept.config.run.output_dir)
        with _one_writer(concept, folder):
            return _Run(concept, folder, progress, stop, scorer, redact).go(resume)


class _Run:
    """One call of `train`, with the folder locked."""

    def __init__(
        self,
        concept: Concept,
        folder: RunFolder,
        progress: Progress,
        stop: StopRequest,
        scorer: Scorer | Literal["auto"] | None,
        redact: Redaction,
    ) -> None:
        self.concept = concept
        self.config = concept.config
        self.folder = folder
        self.is_main = concept.accelerator.is_main_process
        self.progress = progress if self.is_main else Silence()
        self.stop = stop
        self.redact = redact
        self.scorer = default_scorer(concept) if isinstance(scorer, str) else scorer
        self.clock = _Clock()

    def go(self, resume: bool | None) -> TrainResult:
        """Start or go on, train, choose, and write the adapters."""
        earlier = self._earlier_run(resume)
        if earlier is not None and is_finished(self.folder, earlier):
            self.progress.say(f"this run is finished already ({earlier.step} steps); there is nothing left to do")
            return self._result(earlier, already_finished=True)
        for warning in config_warnings(self.config, self.concept.base.family):
            self.progress.say(f"note: {warning}")
        self._prepare(earlier)
        session = open_session(self.concept, self.folder.path, self.progress)
        self.session = session
        found = newest_state(self.folder) if earlier is not None else None
        position = Position(step=0, micro_step=0)
        if found is not None:
            position = Position(step=found[1].step, micro_step=found[1].micro_step)
        self.record = self._new_record() if earlier is None else earlier.through(position.step)
        self.clock.start(self.record)
        self.watcher = Watcher(self.concept, self.folder, self.scorer)
        if self.is_main:
            self.record = self.watcher.look_at_base(self.record)
            self._write_record()
        with session.trainable.active():
            if found is not None:
                restore(session, found[1])
            self._train(session, position)
            if self.is_main:
                self.record = self.watcher.look(self.record, self.record.step, session.evaluating)
        if self.is_main:
            self._finish()
        self.concept.accelerator.wait_for_everyone()
        return self._result(self.record)

    def _earlier_run(self, resume: bool | None) -> RunRecord | None:
        """The run to go on with; the main process looks first, because it may have to clear the folder."""
        with self.concept.accelerator.main_process_first():
            earlier = earlier_run(self.folder, resume if self.is_main or resume is not False else None)
        if earlier is not None:
            refuse_changes(self.folder, earlier, self.concept)
        return earlier

    def _prepare(self, earlier: RunRecord | None) -> None:
        if not self.is_main:
            return
        if earlier is None:
            self.folder.clear()
            atomic_write_text(self.folder.config_toml, dump_toml(self.config))
        write_photos(self.concept, self.folder)

    def _train(self, session: Session, start: Position) -> None:
        """Run the loop, and write down how it ended."""
        if start.step:
            self.progress.say(f"going on after step {start.step}")
        self.progress.begin(session.total_steps, start.step)
        metrics = MetricsLog(self.folder.metrics, keep_through=start.micro_step) if self.is_main else None
        self.metrics = metrics
        crew = Crew(
            checkpoint=self._checkpoint,
            look=self._look,
            metrics=metrics,
            progress=self.progress,
            stop=self.stop,
            wishes=partial(take_wishes, self.folder.path),
        )
        try:
            position = run_loop(session, start, crew)
        except NonFiniteLossError:
            self._close(FAILED)
            raise
        finally:
            self.progress.end()
        if self.stop:
            self._close(STOPPED)
            assert self.stop.signal_number is not None
            raise Interrupted(
                f"stopped after step {position.step}; everything is saved, the same command goes on from there",
                self.stop.signal_number,
            )
        self.record = replace(self.record, step=position.step)
        if metrics is not None:
            metrics.flush()

    def _checkpoint(self, position: Position) -> None:
        """Write everything down. The processes wait for each other, so that none runs ahead of a write that fails."""
        session = self.session
        if self.is_main:
            self.record = replace(self.record, step=position.step)
            if self.metrics is not None:
                self.metrics.flush()
            state = capture(session, position.step, position.micro_step)
            micro_in_step = position.micro_step - position.step * session.plan.accumulation
            with session.evaluating():
                write_checkpoint(
                    self.folder.checkpoints,
                    state,
                    micro_in_step,
                    lambda path: save_checkpoint_adapter(self.concept, session.trainable, position.step, path),
                )
            self._rotate()
            self._write_record(report=False)
        self.concept.accelerator.wait_for_everyone()

    def _rotate(self) -> None:
        """Old states go; the best checkpoint so far stays whole."""
        saved = self._checkpointed_steps()
        scored = [score.step for score in self.record.scores if score.step in saved]
        best = {self.watcher.choose(self.record, scored).step} if scored else set()
        rotate_checkpoints(self.folder.checkpoints, self.config.run.keep_checkpoints, best)

    def _look(self, step: int) -> None:
        if self.is_main:
            self.record = self.watcher.look(self.record, step, self.session.evaluating)
            self._write_record()
        self.concept.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        """Choose the checkpoint and write the two adapter files and the report."""
        choice = self.watcher.choose(self.record, self._checkpointed_steps())
        self.record = replace(self.record, chosen_step=choice.step, reason=choice.reason, warnings=choice.warnings)
        images = self.watcher.chosen_images(choice.step)
        thumbnail = None
        if images:
            noun = self.config.concept.class_noun
            best = 0 if self.scorer is None else best_sample(self.scorer, images, self.watcher.photos, noun)
            thumbnail = images[best]
        file = adapter_file_of(self.folder.checkpoints, choice.step)
        save_final_adapters(self.concept, self.record, file, self.folder, thumbnail, self.redact)
        self.record = replace(self.record, status=FINISHED)
        self._write_record()
        for sentence in (choice.reason, *choice.warnings):
            self.progress.say(sentence)

    def _checkpointed_steps(self) -> list[int]:
        """Steps whose adapter file is there, whole checkpoint or rotated."""
        every, total = self.config.run.checkpoint_every, self.session.total_steps
        steps = sorted({*range(every, total + 1, every), total}) if every else [total]
        return [step for step in steps if adapter_file_of(self.folder.checkpoints, step).is_file()]

    def _new_record(self) -> RunRecord:
        return RunRecord(
            status=RUNNING,
            step=0,
            total_steps=self.session.total_steps,
            config_hash=config_hash(self.config),
            fingerprint=self.concept.fingerprint,
            trigger=self.concept.trigger,
            class_noun=self.config.concept.class_noun,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _close(self, status: str) -> None:
        if self.is_main:
            if self.metrics is not None:
                self.metrics.flush()
            self.record = replace(self.record, status=status)
            self._write_record()

    def _write_record(self, *, report: bool = True) -> None:
        self.record = self.clock.on(self.record)
        self.folder.write_run(self.record.as_json())
        if report:
            count = sum(parameter.numel() for parameter in self.session.trainable.parameters())
            write_report(self.concept, self.folder, self.record, count)

    def _result(self, record: RunRecord, *, already_finished: bool = False) -> TrainResult:
        return TrainResult(
            run_dir=self.folder.path,
            adapter_path=self.folder.adapter,
            kohya_path=self.folder.kohya_adapter,
            report_path=self.folder.report,
            trigger=record.trigger,
            steps=record.step,
            chosen_step=record.step if record.chosen_step is None else record.chosen_step,
            reason=record.reason,
            warnings=record.warnings,
            base_score=record.base_score,
            scores=record.scores,
            train_seconds=record.train_seconds,
            cpu_seconds=record.cpu_seconds,
            already_finished=already_finished,
        )


class _Clock:
    """Wall and CPU seconds of a run, over all its parts."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._wall_before = self._cpu_before = 0.0

    def start(self, record: RunRecord) -> None:
        """Count on from what earlier parts took."""
        self._wall_before, self._cpu_before = record.train_seconds, record.cpu_seconds

    def on(self, record: RunRecord) -> RunRecord:
        """The record with the time so far."""
        return replace(
            record,
            train_seconds=round(self._wall_before + time.monotonic() - self._wall, 2),
            cpu_seconds=round(self._cpu_before + time.process_time() - self._cpu, 2),
        )


@contextmanager
def _one_writer(concept: Concept, folder: RunFolder) -> Iterator[None]:
    """The main process holds the folder's lock; the others only read from it."""
    if not concept.accelerator.is_main_process:
        yield
        return
    folder.create()
    with folder.locked():
        yield


@contextmanager
def _out_of_memory_as_sentence() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StudioError(
            "the device has not enough memory for this run; try data.batch_size=1 with "
            "run.gradient_accumulation_steps, run.gradient_checkpointing=true, or a smaller data.resolution"
        ) from error
