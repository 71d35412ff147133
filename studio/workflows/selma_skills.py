"""Skills: kinds of prompts that a model shall get better at, as templates, as lists of prompts, or as examples to go on from."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from studio.pipelines.errors import ConfigError, MissingFileError

MAX_BYTES = 4 * 2**20
_PLACE = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
_Text = Annotated[str, Field(min_length=1, max_length=500)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Skill(_Part):
    """One skill.

    Attributes:
        name: for folders and tables. templates: sentences with {placeholders}. prompts: sentences as they are.
        prompts_file: a text file beside this one, a prompt a line. examples: what a language model goes on from.
        instruction: what it is told to write; by default made of the name.
    """

    name: _Name
    templates: tuple[_Text, ...] = ()
    prompts: tuple[_Text, ...] = ()
    prompts_file: _Text | None = None
    examples: tuple[_Text, ...] = ()
    instruction: _Text | None = None


class SkillSet(_Part):
    """Skills, and the words that their templates draw from."""

    words: Mapping[str, tuple[_Text, ...]] = {}
    skills: Annotated[tuple[Skill, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> SkillSet:
        names = [skill.name for skill in self.skills]
        if len(set(names)) < len(names):
            raise ValueError(f"two skills are called {next(name for name in names if names.count(name) > 1)!r}")
        for skill in self.skills:
            if not (skill.templates or skill.prompts or skill.prompts_file or skill.examples):
                raise ValueError(f"the skill {skill.name!r} has no templates, prompts, prompts_file or examples")
            for name, _ in (place for template in skill.templates for place in _PLACE.findall(template)):
                if not self.words.get(name):
                    raise ValueError(f"the skill {skill.name!r} has the placeholder {{{name}}}, and words: has no such list")
        return self


def builtin_skills() -> SkillSet:
    """The skills of the toy world, for the embedded base model."""
    return read_skills(Path(str(files("studio.assets"))) / "prompts" / "selma.yaml")


def read_skills(path: Path) -> SkillSet:
    """The skills in a YAML file, with the prompts of their files read in.

    Raises:
        MissingFileError: there is no such file. ConfigError: it cannot be read as skills; says what is wrong.
    """
    try:
        values = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no skills; it begins with a line skills: and a list of tables with a name each.")
    found = skills_from_values(values, str(path))
    return found.model_copy(update={"skills": tuple(_with_file(skill, path.parent) for skill in found.skills)})


def skills_from_values(values: Mapping[Any, Any], source: str) -> SkillSet:
    """Skills of plain values; `ConfigError`, with `source` before each sentence, if something is wrong."""
    try:
        return SkillSet.model_validate(dict(values))
    except ValidationError as error:
        found = error.errors(include_url=False)
    raise ConfigError("\n".join(f"{source}: {_sentence(each)}" for each in found))


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a text file, a line each; empty lines and lines that begin with # do not count."""
    lines = (" ".join(line.split()) for line in _text(path).splitlines())
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise ConfigError(f"{path} holds no prompts; write one a line.")
    return prompts


def fill_template(template: str, words: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """A prompt of a template: each placeholder draws a word that this prompt has not had from its list, if there is one.

    {noun:a} is one word wherever it stands. "a" before a vowel becomes "an".
    """
    labelled: dict[tuple[str, str], str] = {}
    used: dict[str, set[str]] = {}

    def draw(match: re.Match[str]) -> str:
        name, label = match.group(1), match.group(2)
        if label is not None and (name, label) in labelled:
            return labelled[name, label]
        had = used.setdefault(name, set())
        fresh = [word for word in words[name] if word not in had]
        word = rng.choice(fresh if fresh else list(words[name]))
        had.add(word)
        if label is not None:
            labelled[name, label] = word
        return word

    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", _PLACE.sub(draw, template))


def _with_file(skill: Skill, folder: Path) -> Skill:
    if skill.prompts_file is None:
        return skill
    path = folder / skill.prompts_file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"The skill {skill.name!r} names the file {skill.prompts_file}, which is not beside the skills' file.")
    return skill.model_copy(update={"prompts": (*skill.prompts, *read_prompts(path)), "prompts_file": None})


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} is too large for prompts: {path.stat().st_size / 2**20:.0f} MB.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a UTF-8 text file.") from error


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "is no key that is known here"
    if where.endswith(".name") and error["type"] == "string_pattern_mismatch":
        message = "should be letters, digits, - and _, as it names files"
    return f"{where + ': ' if where else ''}{message}."
