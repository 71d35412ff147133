"""SELMA (Li et al. 2024, arXiv 2403.06952): a model teaches itself skills, one adapter each, and the adapters are merged.

Prompts for each skill, pictures of them by the base model itself (or by a weaker one), one LoRA per skill on its pictures, and
the uniform mean of the LoRAs: θ₀ + 1/K Σₖ Bₖ Aₖ. (The published script weighs each by 1 / the length of the model's *name*.) The
paper mirrors half of the pictures; here none is, since "left of" would become a lie.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from studio.composition.merging import Weighted, compress, merge_exactly
from studio.composition.plan import CompositionPlan, Entry, StrategyChoice
from studio.composition.plan_files import write_plan
from studio.pipelines.adapters import Adapter, load_adapter, save_adapter
from studio.pipelines.adapters.files import dialects_for
from studio.pipelines.base_model import BaseModel
from studio.pipelines.files import atomic_write_json
from studio.pipelines.scoring import Scorer
from studio.training.config import config_hash, load_config
from studio.training.data.dataset import load_concept
from studio.training.progress import Progress, Silence
from studio.training.trainer import train
from studio.workflows.selma_language import LanguageModel
from studio.workflows.selma_pictures import Drawing, PictureSet, PictureStore
from studio.workflows.selma_prompts import skill_prompts
from studio.workflows.selma_skills import SkillSet
from studio.workflows.selma_text import MOST_ALIKE

MIXTURE = "mixture"
"""Name of the one adapter that is trained on all skills' pictures together: SELMA's baseline."""


_STABLE_DIFFUSION: Mapping[str, object] = {
    "adapter.rank": 128,
    "optimizer.learning_rate": 3e-4,
    "schedule.name": "constant",
    "schedule.steps": 3000,
    "data.batch_size": 16,
    "run.gradient_accumulation_steps": 4,
}
TRAIN: Mapping[str, Mapping[str, object]] = {
    "embedded": {"schedule.steps": 200, "optimizer.learning_rate": 3e-4, "data.batch_size": 8},
    "sd15": _STABLE_DIFFUSION,
    "sd2": _STABLE_DIFFUSION,
    "sdxl": {
        **_STABLE_DIFFUSION,
        "schedule.steps": 10_000,
        "data.batch_size": 4,
        "run.gradient_accumulation_steps": 8,
    },
}
"""Family -> what its experts train with: the paper's settings, and on the embedded model what did well on other prompts."""


@dataclass(frozen=True, kw_only=True)
class SelmaSettings:
    """What is made.

    Attributes:
        num_prompts: of each skill. most_alike: ROUGE-L that two prompts may have. max_words: of a language model's prompts.
        seed: of prompts and pictures. drawing: of the training pictures. never: prompts that are not trained on.
        train: settings of the trainings by `section.key`; stronger than SELMA's own.
        mixture: whether one adapter learns from all skills' pictures too, each seen as often as an expert sees it.
        rank: of the merged file; None for the exact sum.
    """

    num_prompts: int = 100
    most_alike: float = MOST_ALIKE
    max_words: int = 30
    seed: int = 0
    drawing: Drawing = field(default_factory=Drawing)
    never: frozenset[str] = frozenset()
    train: Mapping[str, object] = field(default_factory=dict)
    mixture: bool = False
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class SelmaResult:
    """What there is now.

    Attributes:
        experts: skill -> adapter file. merged: their mean as one file. plan: a plan that draws with the experts.
        mixture: the adapter trained on everything, or None. pictures: skill -> its pictures.
        cpu_seconds: of the trainings, by skill.
    """

    experts: Mapping[str, Path]
    merged: Path
    plan: Path
    mixture: Path | None
    pictures: Mapping[str, PictureSet]
    cpu_seconds: Mapping[str, float]


def run_selma(
    base: BaseModel,
    skills: SkillSet,
    folder: Path,
    settings: SelmaSettings,
    *,
    picture_base: BaseModel | None = None,
    scorer: Scorer | None = None,
    language_model: LanguageModel | None = None,
    progress: Progress | None = None,
) -> SelmaResult:
    """Everything from prompts to the merged file. What lies in `folder` already is not made again, picture by picture.

    Args:
        picture_base: draws the training pictures; `base` itself by default. A weaker one can do ("weak to strong").
        scorer: for `settings.drawing.keep_from`.

    Raises:
        UserError: a skill has no prompts, or too few pictures were kept; a training's own errors.
    """
    progress = Silence() if progress is None else progress
    store = PictureStore(base if picture_base is None else picture_base, settings.drawing, scorer, folder / "pictures")
    workshop = _Workshop(base, folder, settings, progress)
    pictures: dict[str, PictureSet] = {}
    for skill in skills.skills:
        prompts = skill_prompts(
            skills,
            skill,
            folder / "prompts",
            num=settings.num_prompts,
            most_alike=settings.most_alike,
            max_words=settings.max_words,
            seed=settings.seed,
            never=settings.never,
            language_model=language_model,
            say=progress.say,
        )
        pictures[skill.name] = store.pictures_of(skill.name, prompts, progress.say)
        progress.say(f"{skill.name}: {len(prompts)} prompts, {len(pictures[skill.name].prompts)} pictures to learn from")
    experts = {name: workshop.expert(name, [chosen]) for name, chosen in pictures.items()}
    mixture = workshop.expert(MIXTURE, list(pictures.values())) if settings.mixture else None
    merged = folder / "merged.safetensors"
    write_merged(base, list(experts.values()), merged, settings.rank)
    plan = folder / "plan.yaml"
    write_plan(_plan(base, experts, next(iter(pictures.values())).prompts[0]), plan)
    result = SelmaResult(
        experts=experts, merged=merged, plan=plan, mixture=mixture, pictures=pictures, cpu_seconds=workshop.cpu_seconds
    )
    atomic_write_json(folder / "selma.json", _summary(result))
    return result


def write_merged(base: BaseModel, experts: Sequence[Path], path: Path, rank: int | None = None) -> Adapter:
    """The uniform mean of `experts` as one adapter file, exact or of a given rank; K equal experts are the expert."""
    parts = [Weighted(load_adapter(expert), 1.0 / len(experts)) for expert in experts]
    merged = merge_exactly(parts, base.components())
    if rank is not None:
        merged = compress(merged, rank, base.components())
    named = replace(merged.adapter, info=replace(merged.adapter.info, name=path.stem, base_hash=base.content_hash or None))
    save_adapter(named, path, dialects_for(named)[0], family=base.family)
    return named


class _Workshop:
    """Trains the experts."""

    def __init__(self, base: BaseModel, folder: Path, settings: SelmaSettings, progress: Progress) -> None:
        self.base = base
        self.folder = folder
        self.settings = settings
        self.progress = progress
        self.cpu_seconds: dict[str, float] = {}
        self._steps: dict[str, int] = {}

    def expert(self, name: str, sets: Sequence[PictureSet]) -> Path:
        """The adapter of one skill, or of several skills' pictures together."""
        photos = sets[0].folder if len(sets) == 1 else self._together(name, sets)
        given = self._settings(name, photos, len(sets))
        resolved, dataset = load_concept(load_config(None, given), self.base.family)
        # One checkpoint, at the end; it changes no weight and so is not in the hash.
        given |= {"run.checkpoint_every": resolved.schedule.steps}
        run = f"{name}-{config_hash(resolved)[:8]}{dataset.signature[:4]}{self.base.content_hash[:4]}"
        given["run.output_dir"] = self.folder / "runs" / run
        self.progress.say(f"{name}: training on {len(dataset.train_items)} pictures")
        result = train(load_config(None, given), progress=self.progress, scorer=None)
        self._steps[name] = result.steps
        self.cpu_seconds[name] = result.cpu_seconds
        return self._without_trigger(name, result.adapter_path, sum(len(each.prompts) for each in sets))

    def _settings(self, name: str, photos: Path, num_skills: int) -> dict[str, object]:
        own: dict[str, object] = {
            "concept.class_noun": "picture",  # it only names files: captions stay as they are, and there is no prior
            "concept.caption_words": "as-written",
            "concept.bare_caption_share": 0.0,
            "concept.hold_out": "none",
            "loss.prior": "none",
            "adapter.train_text_encoder": False,
            "data.buckets": False,
            "run.sample_every": 0,
            **TRAIN.get(self.base.family.name, {}),
            **self.settings.train,
        }
        if num_skills > 1:  # so many steps that each picture is seen as often as by an expert
            own["schedule.steps"] = sum(self._steps.values())
        return own | {"concept.images": photos, "model.base": self.base.source, "run.name": name}

    def _together(self, name: str, sets: Sequence[PictureSet]) -> Path:
        """All pictures with their captions in one folder."""
        folder = self.folder / "pictures" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for each in sets:
            for path in sorted(each.folder.iterdir()):
                shutil.copyfile(path, folder / f"{each.folder.name}-{path.name}")
        return folder

    def _without_trigger(self, name: str, trained: Path, num_pictures: int) -> Path:
        """The trained adapter as a file of its own that answers to no words: it acts on every prompt."""
        adapter = load_adapter(trained)
        info = replace(
            adapter.info,
            name=name,
            trigger=None,
            class_noun=None,
            description=f"SELMA's expert for the skill {name!r}, trained on {num_pictures} pictures.",
        )
        path = self.folder / "experts" / f"{name}.safetensors"
        named = replace(adapter, info=info)
        save_adapter(named, path, dialects_for(named)[0], family=self.base.family)
        return path


def _plan(base: BaseModel, experts: Mapping[str, Path], prompt: str) -> CompositionPlan:
    entries = tuple(Entry(adapter=str(Path("experts") / path.name), name=name) for name, path in experts.items())
    return CompositionPlan(base=base.source, prompt=prompt, entries=entries, strategy=StrategyChoice(name="selma"))


def _summary(result: SelmaResult) -> dict[str, object]:
    return {
        "skills": {
            name: {
                "drawn": chosen.num_drawn,
                "kept": len(chosen.prompts),
                "expert": result.experts[name].name,
                "training_cpu_seconds": result.cpu_seconds[name],
            }
            for name, chosen in result.pictures.items()
        },
        "merged": result.merged.name,
        "plan": result.plan.name,
    }
