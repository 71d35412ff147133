"""`make bench-batch`: 64 pictures with 16 adapters through `studio batch`, against a loop over PEFT's `set_adapters`.

Both draw the same pictures of the embedded base, warm, on one thread, in float32, with the same sampler and steps; the loop goes
through the adapters one after the other. Adapters are of the kind that `studio train` makes by default: rank 16, in attention,
feed-forwards, projections, convolutions and the text encoder. A round is one group of the batch and the same pictures in the
loop, so that a slow minute of the machine slows both. Both encode PNGs; the batch also writes them with their records.

Writes `batch_speed.txt` (and .csv, .json) and every raw measurement to `raw.json`.
"""

from __future__ import annotations

import argparse
import io
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from studio.batch.folder import BatchFolder
from studio.batch.runner import BatchOptions, Planned, plan_batch
from studio.batch.tasks import PictureTask
from studio.batch.workshop import Workshop
from studio.evals.tables import Table, write_table
from studio.kernels.bench.interleaved import Arm, Session, measure
from studio.pipelines.adapters import new_lora, save_adapter
from studio.pipelines.base_files.loading import quiet_libraries
from studio.pipelines.base_model import load_base
from studio.pipelines.denoising import make_scheduler
from studio.pipelines.files import atomic_write_json, atomic_write_text

OURS, SINGLE, FOURS = "studio batch", "set_adapters loop, one by one", "set_adapters loop, an adapter's pictures at once"
CONTROL = ("base forward again", "base forward")
AIM = 2.5
NUM_ADAPTERS, NUM_SEEDS = 16, 4
LIBRARIES = ("torch", "diffusers", "peft", "transformers")
PROMPTS = ("a red cat left of a boat", "a blue robot in the snow", "a green mug on a table", "a yellow house, watercolour")


def write_inputs(folder: Path, *, steps: int, num_adapters: int = NUM_ADAPTERS) -> Path:
    """Adapters with random values, and the batch file."""
    base = load_base()
    encoders = {facts.component: base.family.text_encoder_targets for facts in base.family.text_encoders}
    targets = {"unet": base.family.adapter_targets} | encoders
    names = []
    for number in range(num_adapters):
        generator = torch.Generator().manual_seed(number)
        rank = base.family.train.rank
        adapter = new_lora(base.components(), targets, rank=rank, alpha=float(rank), generator=generator)
        for name, tensor in adapter.named_tensors().items():
            tensor.requires_grad_(False)
            if name.endswith(".up"):
                nn.init.normal_(tensor, 0.0, 0.01, generator=generator)
        names.append(f"adapter-{number:02d}.safetensors")
        save_adapter(adapter, folder / names[-1], family=base.family)
    jobs = [
        f"  - {{prompt: '{PROMPTS[number % len(PROMPTS)]}', adapters: [{name}], num_images: {NUM_SEEDS}, seed: {number}}}"
        for number, name in enumerate(names)
    ]
    path = folder / "speed.yaml"
    atomic_write_text(path, f"defaults: {{steps: {steps}, scheduler: ddim}}\njobs:\n" + "\n".join(jobs) + "\n")
    return path


@dataclass
class BatchArm:
    """The batch's own way: a group at a time, drawn and written."""

    planned: Planned
    folder: BatchFolder
    workshop: Workshop
    pictures: dict[int, bytes] = field(default_factory=dict)
    done: int = 0

    def step(self) -> None:
        """The next group."""
        group = self.planned.groups[self.done % len(self.planned.groups)]
        tasks = {task.id: task for task in group.tasks}
        drawn = self.workshop.draw(group, frozenset(tasks))
        for picture in drawn.pictures:
            self.folder.save(tasks[picture.task_id], picture.data, picture.record)
            self.pictures[tasks[picture.task_id].index] = picture.data
        self.done += 1


@dataclass
class LoopArm:
    """A loop over diffusers' pipeline and PEFT's adapters. `at_once`: pictures of one adapter in one call."""

    planned: Planned
    pipeline: Any
    at_once: int
    pictures: dict[int, bytes] = field(default_factory=dict)
    done: int = 0

    def step(self) -> None:
        """The pictures of the next group, sorted by adapter."""
        group = self.planned.groups[self.done % len(self.planned.groups)]
        tasks = sorted((task for task in group.tasks if isinstance(task, PictureTask)), key=_name)
        chosen = ""
        while tasks:
            part = [task for task in tasks[: self.at_once] if _name(task) == _name(tasks[0])]
            tasks = tasks[len(part) :]
            if _name(part[0]) != chosen:
                chosen = _name(part[0])
                self.pipeline.set_adapters([chosen])
            images = self.pipeline(
                [task.prompt for task in part],
                num_inference_steps=part[0].steps,
                guidance_scale=part[0].guidance_scale,
                height=part[0].height,
                width=part[0].width,
                generator=[torch.Generator().manual_seed(task.seed) for task in part],
            ).images
            for task, image in zip(part, images, strict=True):
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                self.pictures[task.index] = buffer.getvalue()
        self.done += 1


def make_pipeline(planned: Planned) -> Any:
    """diffusers' pipeline of the embedded base with every adapter loaded."""
    base = load_base()
    pipeline = base.diffusers_pipeline()
    pipeline.scheduler = make_scheduler(base.scheduler, "ddim")
    pipeline.set_progress_bar_config(disable=True)
    files = {_name(task): Path(task.adapters[0].file.path) for task in planned.tasks if isinstance(task, PictureTask)}
    with warnings.catch_warnings(), quiet_libraries():
        warnings.simplefilter("ignore")
        for name, path in files.items():
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    return pipeline


def run_bench(output: Path, *, steps: int = 30, rounds: int | None = None, attempts: int = 2, batch_size: int = 8) -> Table:
    """Measure, and write the table and the raw records into `output`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="studio-bench-") as place:
            folder = Path(place)
            file = write_inputs(folder, steps=steps)
            options = BatchOptions(file=file, output=folder / "out", batch_size=batch_size, threads=1)
            planned = plan_batch(options)
            (folder / "out").mkdir()
            ours = BatchArm(planned, BatchFolder(folder / "out"), Workshop())
            pipeline = make_pipeline(planned)
            single, fours = LoopArm(planned, pipeline, 1), LoopArm(planned, pipeline, NUM_SEEDS)
            arms: dict[str, Arm] = {
                OURS: ours.step,
                SINGLE: single.step,
                FOURS: fours.step,
                **_control_arms(ours.workshop, planned),
            }
            for arm in arms.values():
                arm()  # warm
            for each in (ours, single, fours):
                each.done = 0
            num_rounds = len(planned.groups) if rounds is None else rounds
            sessions: list[Session] = []
            session = measure(arms, CONTROL, rounds=num_rounds, attempts=attempts, on_session=sessions.append, on_round=_say)
            difference, share = compared(ours.pictures, single.pictures)
    finally:
        torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    atomic_write_json(
        output / "raw.json",
        {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "libraries": {name: version(name) for name in LIBRARIES},
            "steps": steps,
            "batch_size": batch_size,
            "groups": len(planned.groups),
            "pictures": len(planned.tasks),
            "compared": len(single.pictures),
            "largest_difference": difference,
            "share_within_one": share,
            "sessions": [
                {"kept": each.valid, "control": each.control.paired, "cpu_seconds": dict(each.seconds)} for each in sessions
            ],
        },
    )
    table = speed_table(session, planned, difference, share, num_compared=len(single.pictures))
    write_table(table, output, "batch_speed")
    return table


def speed_table(session: Session, planned: Planned, difference: int, share: float, *, num_compared: int) -> Table:
    """Pictures per CPU second, and how many times those of each loop."""
    pictures = sum(len(planned.groups[number % len(planned.groups)].tasks) for number in range(len(session.seconds[OURS])))
    rows = [
        (name, pictures / sum(session.seconds[name]), *(_times(session, name) if name != OURS else (1.0, 1.0, 1.0)))
        for name in (OURS, SINGLE, FOURS)
    ]
    state = "holds" if session.valid else "does NOT hold: these figures are not to be used"
    reached = _times(session, SINGLE)[0]
    return Table(
        title=f"{len(planned.tasks)} pictures with {NUM_ADAPTERS} adapters on the embedded base, CPU time on one thread",
        columns=("way", "pictures/s", "batch is so many times as quick: paired", "CPU", "min"),
        rows=tuple(rows),
        notes=(
            f"aim: {AIM} times the loop one by one; {'reached' if reached >= AIM else 'MISSED'} at {reached:.2f}",
            f"pixels of {num_compared} pictures differ by at most {difference} of 255; {share:.5f} of them by at most 1",
            f"the control (the same thing twice, .97 to 1.03) is {session.control.paired:.3f} and {state}",
        ),
    )


def compared(ours: dict[int, bytes], theirs: dict[int, bytes]) -> tuple[int, float]:
    """The largest difference of pixels, of 255, and the share of those that differ by 1 at the most."""
    largest, close, total = 0, 0, 0
    for index in ours.keys() & theirs.keys():
        one, other = (np.asarray(Image.open(io.BytesIO(data[index]))).astype(int) for data in (ours, theirs))
        difference = abs(one - other)
        largest = max(largest, int(difference.max()))
        close += int((difference <= 1).sum())
        total += difference.size
    return largest, close / max(1, total)


def _times(session: Session, name: str) -> tuple[float, float, float]:
    found = session.ratio(name, OURS)
    return found.paired, found.cpu, found.minimum


def _control_arms(workshop: Workshop, planned: Planned) -> dict[str, Callable[[], None]]:
    first = planned.tasks[0]
    base = workshop.base(first.base, "float32")
    unet: Any = base.unet
    text = torch.zeros(16, base.tokenizers[0].model_max_length, base.family.cross_attention_dim)
    latents = torch.zeros(16, base.family.latent_channels, base.size // 8, base.size // 8)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(4):
            unet(latents, torch.tensor(500), encoder_hidden_states=text, return_dict=False)

    return {CONTROL[1]: forward, CONTROL[0]: forward}


def _name(task: PictureTask) -> str:
    return task.adapters[0].file.name.replace("-", "_")


def _say(done: int, total: int) -> None:
    print(f"round {done} of {total}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="studio batch against a loop over diffusers and PEFT.")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/batch"), help="folder of table and raw records")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps")
    parser.add_argument("--rounds", type=int, default=None, help="groups to measure; by default all of the batch once")
    parser.add_argument("--attempts", type=int, default=2, help="sessions at most, until the control holds")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures in a group")
    chosen = parser.parse_args(arguments)
    table = run_bench(
        chosen.output, steps=chosen.steps, rounds=chosen.rounds, attempts=chosen.attempts, batch_size=chosen.batch_size
    )
    print(table.text())


if __name__ == "__main__":
    main()
