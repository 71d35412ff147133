"""Write the report of a run from what lies in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from studio.pipelines.files import atomic_write_text
from studio.training.checkpoint import output_errors
from studio.training.config import flat_settings
from studio.training.metrics import read_metrics
from studio.training.outputs import file_list, usage_commands
from studio.training.progress import clock
from studio.training.record import FINISHED, RunRecord
from studio.training.report.chart import standalone
from studio.training.report.page import ReportFacts, SampleRow, loss_chart, report_page
from studio.training.run_folder import RunFolder
from studio.training.samples import sample_plan
from studio.training.session import Concept

PHOTO_PIXELS = 384


def write_photos(concept: Concept, folder: RunFolder) -> None:
    """Put small copies of the photos beside the report."""
    with output_errors(folder.path):
        folder.photos.mkdir(parents=True, exist_ok=True)
        for index, item in enumerate(concept.dataset.train_items):
            _small(item.picture.image()).save(folder.photos / f"{index:02d}.png")
        if concept.dataset.held_out is not None:
            _small(concept.dataset.held_out.picture.image()).save(folder.photos / "held-out.png")


def write_report(concept: Concept, folder: RunFolder, record: RunRecord, trainable_parameters: int) -> None:
    """Write index.html and loss.svg. Raises OutputError when that isn't possible."""
    loss = [line for line in read_metrics(folder.metrics) if "instance_loss" in line]
    config, dataset = concept.config, concept.dataset
    held_out = folder.photos / "held-out.png"
    prompts = sample_plan(config, concept.base).prompts
    facts = ReportFacts(
        title=record.trigger,
        subtitle=f"{concept.method.title} on {concept.base.family.title}",
        status=record.status,
        facts=_strip(concept, record, trainable_parameters),
        photos=tuple(_relative(folder, sorted(folder.photos.glob("[0-9]*.png")))),
        held_out=_relative(folder, [held_out])[0] if held_out.is_file() else None,
        loss=loss,
        prompts=prompts,
        samples=tuple(
            SampleRow(step=step, images=tuple(_relative(folder, sorted(folder.samples_of(step).glob("*.png"))[: len(prompts)])))
            for step in record.sampled_steps
        ),
        base_score=record.base_score,
        scores=record.scores,
        scorer=record.scorer,
        chosen_step=record.chosen_step,
        reason=record.reason if record.reason else "The run is not finished yet; the choice is made at its end.",
        warnings=record.warnings,
        notes=dataset.notes,
        files=file_list(folder, config, concept.method.adapter_type) if record.status == FINISHED else (),
        commands=usage_commands(folder, config, record.trigger, concept.method.adapter_type),
        settings=flat_settings(config),
    )
    atomic_write_text(folder.report, report_page(facts))
    atomic_write_text(folder.loss_plot, standalone(loss_chart(loss)))


def _size(concept: Concept) -> tuple[tuple[str, str], ...]:
    """What decides the adapter's size, where one number does."""
    config = concept.config
    sizes = {"lora": ("rank", str(config.adapter.rank)), "lokr": ("first factor", str(config.krona.factors))}
    size = sizes.get(concept.method.adapter_type)
    return () if size is None else (size,)


def _strip(concept: Concept, record: RunRecord, trainable_parameters: int) -> tuple[tuple[str, str], ...]:
    config = concept.config
    steps = f"{record.step} of {record.total_steps}" if record.step < record.total_steps else str(record.step)
    return (
        ("photos", str(len(concept.dataset.train_items) + (concept.dataset.held_out is not None))),
        ("steps", steps),
        *_size(concept),
        ("trained numbers", f"{trainable_parameters:,}"),
        ("learning rate", f"{config.optimizer.learning_rate:g}"),
        ("prior", str(config.loss.prior)),
        ("training time", clock(record.train_seconds)),
        ("CPU time, all in all", clock(record.cpu_seconds)),
        ("device", str(concept.accelerator.device)),
    )


def _small(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((PHOTO_PIXELS, PHOTO_PIXELS), Image.Resampling.LANCZOS)
    return small


def _relative(folder: RunFolder, paths: Sequence[Path]) -> list[str]:
    return [path.relative_to(folder.path).as_posix() for path in paths]
