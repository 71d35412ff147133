"""The prompts of each skill, made once and kept in a file that a person can read and change."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from studio.pipelines.errors import ConfigError
from studio.pipelines.files import atomic_write_json
from studio.workflows.selma_language import LanguageModel, write_prompts
from studio.workflows.selma_skills import Skill, SkillSet, fill_template
from studio.workflows.selma_text import PromptPool

TRIES_PER_PROMPT = 50
CHUNK = 20
"""A language model's prompts are written down after so many."""


def skill_prompts(
    skills: SkillSet,
    skill: Skill,
    folder: Path,
    *,
    num: int,
    most_alike: float,
    max_words: int,
    seed: int,
    never: Iterable[str] = (),
    language_model: LanguageModel | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Up to `num` prompts of one skill: its own ones, then a language model's or its templates'. None is much like another.

    They are kept in `folder/<skill>.json`, and are made anew only if what they are made of has changed.

    Args:
        never: prompts that may not be among them.

    Raises:
        ConfigError: there is nothing to make prompts of, or the file was damaged.
    """
    path = folder / f"{skill.name}.json"
    refused = sorted(never)
    made_of = {
        "skill": skill.model_dump(mode="json"),
        "words": {name: list(words) for name, words in skills.words.items()} if skill.templates else {},
        "most_alike": most_alike,
        "max_words": max_words,
        "seed": seed,
        "never": hashlib.sha256("\n".join(refused).encode()).hexdigest(),
        "language_model": None if language_model is None else language_model.name,
    }
    known, finished = _read(path, made_of)
    if len(known) >= num or finished:
        return known[:num]
    pool = PromptPool(most_alike, known, never=refused)
    for prompt in skill.prompts:
        if len(pool) < num:
            pool.take(prompt)
    remark = None
    if language_model is not None and len(pool) < num:
        while len(pool) < num and remark is None:
            some = min(num, len(pool) + CHUNK)
            remark = write_prompts(language_model, skill, pool, some, seed=seed, max_words=max_words)
            _write(path, made_of, pool.prompts, finished=False)
    elif skill.templates:
        remark = _from_templates(skills, skill, pool, num, seed)
    elif len(pool) < num:
        remark = f"The skill {skill.name!r} has {len(pool)} prompts that differ enough, not {num}."
        if not pool.prompts:
            raise ConfigError(f"The skill {skill.name!r} has examples only: name a language model with --language-model.")
    if remark is not None:
        say(remark)
    _write(path, made_of, pool.prompts, finished=remark is not None)
    return list(pool.prompts)


def _from_templates(skills: SkillSet, skill: Skill, pool: PromptPool, num: int, seed: int) -> str | None:
    """Fill the pool, a prompt of each template in turn; a sentence if the templates give no more that is different."""
    rng = random.Random(f"{seed} {skill.name} {len(pool)}")
    misses = turn = 0
    while len(pool) < num:
        taken = pool.take(fill_template(skill.templates[turn % len(skill.templates)], skills.words, rng))
        turn += 1
        misses = 0 if taken else misses + 1
        if misses == TRIES_PER_PROMPT * len(skill.templates):
            return f"The templates of {skill.name!r} gave {len(pool)} prompts that differ enough, not {num}."
    return None


def _read(path: Path, made_of: dict[str, object]) -> tuple[list[str], bool]:
    if not path.is_file():
        return [], False
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        same = data["made_of"] == json.loads(json.dumps(made_of))
        return ([str(prompt) for prompt in data["prompts"]], bool(data["finished"])) if same else ([], False)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; delete it, and the prompts are made again.") from error


def _write(path: Path, made_of: dict[str, object], prompts: list[str], *, finished: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, {"made_of": made_of, "finished": finished, "prompts": prompts})
