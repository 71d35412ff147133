"""The demo: five photos of a thing the base model has never seen, a trained adapter, and pictures of the thing elsewhere."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from studio.evals.concept import ARMS, NUM_SEEDS, Concept, ConceptVerdict, draw_arm, judge_arm, peer_embeddings, verdict
from studio.evals.records import open_log
from studio.evals.sample_concepts import load_sample
from studio.pipelines.adapters import Route, load_adapter
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.files import atomic_write_json, atomic_write_text
from studio.pipelines.pictures import contact_sheet
from studio.pipelines.scoring import embedded_referee
from studio.training.config import load_config
from studio.training.progress import Progress
from studio.training.trainer import TrainResult, train
from studio.workflows.demo_page import DemoFacts, demo_page

TOKEN = "ohwx"  # noqa: S105 (a word, no secret)


SHORTER: Mapping[str, object] = {
    "schedule.steps": 160,
    "optimizer.learning_rate": 1e-3,
    "optimizer.text_encoder_learning_rate": 1e-3,
}
"""Two thirds of the family's steps at a higher rate: two CPU-minutes. The sample robot is learned better so (the right one of
twenty in .78 of the pictures; with 200 steps .59, with the family's own settings .44), other individuals a little worse."""


@dataclass(frozen=True)
class DemoResult:
    """Where the demo's page lies, and what it found."""

    page: Path
    verdict: ConceptVerdict
    seconds: Mapping[str, tuple[float, float]]
    """(wall, CPU) seconds of each part."""


class Stopwatch:
    """Wall and CPU seconds of this process and its children, by part."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}
        self._last = self._now()

    def lap(self, name: str) -> None:
        """Book everything since the last lap under `name`."""
        now = self._now()
        self.parts[name] = (now[0] - self._last[0], now[1] - self._last[1])
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.monotonic(), sum(u.ru_utime + u.ru_stime for u in usage)


def run_demo(
    output: Path, concept_name: str, progress: Progress, *, settings: Mapping[str, str] | None = None, steps: int = 30
) -> DemoResult:
    """Train on the concept's photos, draw the eight scenes with the base, with the adapter and as they truly look, judge, report.

    Everything lands in `output`; the training run in `output/run` resumes when the demo is started again.
    """
    concept, photos_dir = load_sample(concept_name)
    watch = Stopwatch()
    overrides: dict[str, object] = {
        "concept.images": photos_dir,
        "concept.class_noun": concept.class_name,
        "concept.token": TOKEN,
        "run.output_dir": output / "run",
        "run.name": concept.name,
        **SHORTER,
    }
    run = train(load_config(None, {**overrides, **(settings or {})}), progress=progress)
    watch.lap("training")
    base = load_base(None)
    arms = _draw(base, concept, run, steps, progress)
    watch.lap("pictures")
    found = _judge(base, concept, arms, output)
    watch.lap("judging")
    _write(output, concept, arms, run, found, watch)
    return DemoResult(output / "index.html", found, watch.parts)


def _draw(base: BaseModel, concept: Concept, run: TrainResult, steps: int, progress: Progress) -> dict[str, list[Image.Image]]:
    routes = (Route(load_adapter(run.adapter_path)),)
    arms: dict[str, list[Image.Image]] = {}
    for arm, words in zip(ARMS, ("the base model's own attempts", f'pictures of "{run.trigger}"', "the truth"), strict=True):
        progress.say(f"drawing {words}: {len(concept.prompts)} scenes x {NUM_SEEDS}")
        arms[arm] = draw_arm(base, concept, arm, token=TOKEN, routes=routes, steps=steps, on_step=_every_tenth(progress))
    return arms


def _every_tenth(progress: Progress) -> Callable[[int, int], None]:
    start = time.monotonic()

    def report(done: int, total: int) -> None:
        if done % 30 == 0 and done < total:
            left = (time.monotonic() - start) / done * (total - done)
            progress.say(f"  {100 * done // total} %, about {left:.0f} s left")

    return report


def _judge(base: BaseModel, concept: Concept, arms: Mapping[str, list[Image.Image]], output: Path) -> ConceptVerdict:
    judge = embedded_referee("judge")
    peers = peer_embeddings(base, concept, judge)
    (output / "records.jsonl").unlink(missing_ok=True)
    log = open_log(output / "records.jsonl", {"concept": concept.name, "judge": judge.content_hash, "base": base.content_hash})
    for arm, pictures in arms.items():
        log.append(judge_arm(concept, arm, pictures, peers, judge))
    return verdict(log.all())


def _write(
    output: Path,
    concept: Concept,
    arms: Mapping[str, list[Image.Image]],
    run: TrainResult,
    found: ConceptVerdict,
    watch: Stopwatch,
) -> None:
    """grid.png, scores.json, the single pictures and index.html."""
    words = [prompt.filled(concept.class_name, TOKEN) for prompt in concept.prompts]
    rows = [arms[arm][i * NUM_SEEDS] for arm in ARMS for i in range(len(words))]
    labels = ["the base model, without the new word", "with the adapter", "the truth: rendered"]
    contact_sheet(rows, column_labels=words, row_labels=labels).save(output / "grid.png")
    (output / "pictures").mkdir(exist_ok=True)
    for i, photo in enumerate(concept.photos):
        photo.save(output / "pictures" / f"photo-{i}.png")
    for arm, pictures in arms.items():
        for i, picture in enumerate(pictures):
            picture.save(output / "pictures" / f"{arm}-{i // NUM_SEEDS}-{i % NUM_SEEDS}.png")
    scores = {
        "concept": concept.name,
        "learned": found.learned,
        "identity_gain": asdict(found.identity_gain),
        "identity": found.identity,
        "fidelity": found.fidelity,
        "right": {arm: asdict(interval) for arm, interval in found.right.items()},
        "chosen_step": run.chosen_step,
        "seconds": {name: {"wall": round(wall, 1), "cpu": round(cpu, 1)} for name, (wall, cpu) in watch.parts.items()},
    }
    atomic_write_json(output / "scores.json", scores)
    facts = DemoFacts(
        trigger=run.trigger,
        class_name=concept.class_name,
        prompts=tuple(words),
        num_photos=len(concept.photos),
        num_seeds=NUM_SEEDS,
        verdict=found,
        adapter="run/" + run.adapter_path.name,
        reason=run.reason,
        base_score=run.base_score,
        scores=run.scores,
        chosen_step=run.chosen_step,
        seconds=dict(watch.parts),
    )
    atomic_write_text(output / "index.html", demo_page(facts))
