"""Pictures for prompts, drawn by a base model, with their captions beside them: what a skill's expert learns from.

SELMA takes one picture a prompt, unseen. Where a scorer is given, up to so many are drawn for each prompt, and the first that
shows enough of what the prompt says is kept. That is the model learning from its own better pictures, as in rejection
sampling; the paper does not do it. The scorer must not be the one that results are judged by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.evals.records import Record, open_log
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from studio.pipelines.files import atomic_write_text
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.pictures import save_picture
from studio.pipelines.scoring import Scorer

FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How training pictures are drawn.

    Attributes:
        seed, steps, guidance_scale: of the pictures. batch_size: drawn at once; changes nothing but rounding.
        attempts: pictures per prompt at most. keep_from: score from which one is kept; None keeps the first, unseen.
    """

    seed: int = 0
    steps: int = 30
    guidance_scale: float | None = None
    batch_size: int = 16
    attempts: int = 1
    keep_from: float | None = None


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one skill: their folder, how many were drawn, and the prompts of which one was kept."""

    folder: Path
    num_drawn: int
    prompts: tuple[str, ...]


class PictureStore:
    """Training pictures of one base model and way of drawing, in a folder; what is there is not drawn again."""

    def __init__(self, base: BaseModel, drawing: Drawing, scorer: Scorer | None, folder: Path) -> None:
        self.base = base
        self.drawing = drawing
        self.scorer = scorer if drawing.keep_from is not None else None
        self.folder = folder
        header = {
            "what": "selma pictures 1",
            "base": base.content_hash,
            "seed": drawing.seed,
            "steps": drawing.steps,
            "guidance_scale": drawing.guidance_scale,
            "keep_from": drawing.keep_from,
            "scorer": None if self.scorer is None else self.scorer.content_hash,
        }
        self.log = open_log(folder / "pictures.jsonl", header)
        self._kept = {(record["skill"], record["prompt"]): record for record in self.log.all() if record["kept"]}
        if len(self.log) == 0:
            _remove([*folder.glob("*/*.png"), *folder.glob("*/*.txt")])  # of another base or way of drawing

    def pictures_of(self, name: str, prompts: Sequence[str], say: Callable[[str], None] = print) -> PictureSet:
        """The pictures of one skill, now or from before, in a folder that holds nothing else.

        Raises:
            UserError: too few pictures show what their prompts say.
        """
        for attempt in range(self.drawing.attempts):
            missing = [prompt for prompt in prompts if not self._settled(name, prompt, attempt)]
            for start in range(0, len(missing), self.drawing.batch_size):
                self._draw(name, missing[start : start + self.drawing.batch_size], attempt)
                say(f"{name}: {start + min(self.drawing.batch_size, len(missing) - start)} of {len(missing)} pictures drawn")
        kept = {prompt: self._kept[name, prompt] for prompt in prompts if (name, prompt) in self._kept}
        folder = self.folder / name
        files = {record["file"] for record in kept.values()}
        _remove([path for path in folder.glob("*.*") if path.with_suffix(".png").name not in files])
        if len(kept) < FEWEST:
            raise UserError(
                f"Of {len(prompts)} prompts of the skill {name!r} {len(kept)} had a picture with a score of "
                f"{self.drawing.keep_from} or more. Ask for less, or for more attempts."
            )
        drawn = [record for record in self.log.all() if record["skill"] == name and record["prompt"] in set(prompts)]
        return PictureSet(folder, len(drawn), tuple(kept))

    def _settled(self, name: str, prompt: str, attempt: int) -> bool:
        """Whether this attempt was made already, or is not needed."""
        return _id(name, prompt, attempt) in self.log or (name, prompt) in self._kept

    def _draw(self, name: str, prompts: Sequence[str], attempt: int) -> None:
        drawing = self.drawing
        request = GenerationRequest(
            prompts=tuple(prompts),
            seeds=tuple(_seed(drawing.seed, prompt, attempt) for prompt in prompts),
            steps=drawing.steps,
            guidance_scale=drawing.guidance_scale,
        )
        images = generate(self.base, request, batch_size=drawing.batch_size)
        scores = [None] * len(images) if self.scorer is None else self.scorer.prompt_fidelity(images, prompts).tolist()
        records = []
        for prompt, image, score in zip(prompts, images, scores, strict=True):
            kept = drawing.keep_from is None or score is None or score >= drawing.keep_from
            file = f"{_short(prompt)}-{attempt}.png"
            if kept:
                save_picture(self.folder / name / file, image, None)
                atomic_write_text((self.folder / name / file).with_suffix(".txt"), prompt + "\n")
            record: Record = {
                "id": _id(name, prompt, attempt),
                "skill": name,
                "prompt": prompt,
                "attempt": attempt,
                "score": None if score is None else round(score, 5),
                "kept": kept,
                "file": file,
            }
            records.append(record)
        self.log.append(records)
        self._kept |= {(name, record["prompt"]): record for record in records if record["kept"]}


def _id(name: str, prompt: str, attempt: int) -> str:
    return f"{name}/{_short(prompt)}/{attempt}"


def _short(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def _seed(seed: int, prompt: str, attempt: int) -> int:
    """A picture's seed belongs to its prompt, wherever that stands in a list."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt} {attempt}".encode()).digest()[:4], "big")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
