"""Words of a prompt that are not meant as they stand: substitutions, wildcards, and tags that name a LoRA."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio.pipelines.errors import ConfigError, MissingDependencyError

Wildcards = Literal["all", "random", "off"]

MAX_PROMPT = 20_000
MAX_DYNAMIC = 4_000
"""Letters of a prompt with wildcards: their grammar's parser is slow."""

_ARRAY = re.compile(r"\[\[([^\[\]]+)\]\]")
_DYNAMIC = re.compile(r"\{[^{}|]*\|[^{}]*\}|\{\d*(?:-\d+)?\$\$|__[\w*/-]+__")
_TAG = re.compile(r"(?<!\s)\s*<lora:([^<>:]+)(?::([-+\d.]+))?(?::[-+\d.]+)?>")


@dataclass(frozen=True)
class WildcardSettings:
    """How wildcards are taken.

    Attributes:
        mode: "all" makes a request of every combination, "random" of `count` of them, "off" leaves prompts as they are.
        folder: of the text files that `__name__` stands for, a line each. seed: of the random choice.
    """

    mode: Wildcards = "all"
    folder: Path | None = None
    count: int = 1
    seed: int = 0


def substituted(prompt: str, replacements: Mapping[str, str], where: str) -> str:
    """`prompt` with words replaced; `ConfigError` where they are not in it."""
    for old, new in replacements.items():
        if not old or old not in prompt:
            raise ConfigError(f"{where}: replace: {old!r} is not in the prompt {prompt[:60]!r}.")
        if len(prompt) + prompt.count(old) * len(new) > MAX_PROMPT:
            raise ConfigError(f"{where}: replace: {old!r} makes the prompt longer than {MAX_PROMPT:,} letters.")
        prompt = prompt.replace(old, new)
    return prompt


def variants(prompt: str, settings: WildcardSettings, limit: int, where: str) -> list[str]:
    """The prompts that one with {a|b}, [[a, b]] or __name__ stands for; one without, as it is.

    Raises:
        ConfigError: the wildcards cannot be read, or stand for more than `limit` prompts.
    """
    text = _ARRAY.sub(lambda match: "{" + "|".join(part.strip() for part in match[1].split(",")) + "}", prompt)
    if settings.mode == "off" or _DYNAMIC.search(text) is None:
        return [prompt]
    if len(text) > MAX_DYNAMIC:
        raise ConfigError(
            f"{where}: a prompt with wildcards has {MAX_DYNAMIC:,} letters at the most, and this one {len(text):,}."
        )
    if settings.mode == "random" and settings.count > limit:
        raise ConfigError(f"{where}: wildcard_count is {settings.count:,}; a batch may have {limit:,} requests.")
    try:
        from dynamicprompts.generators import CombinatorialPromptGenerator, RandomPromptGenerator
        from dynamicprompts.wildcards import WildcardManager
    except ImportError as error:
        raise MissingDependencyError(
            "Wildcards in prompts need the package dynamicprompts: pip install dynamicprompts."
        ) from error
    for name in re.findall(r"__([\w*/-]+)__", text):
        if settings.folder is None or not list(settings.folder.glob(f"{name}.txt")):
            place = "no wildcards_dir is given" if settings.folder is None else f"{settings.folder} has no {name}.txt"
            raise ConfigError(f"{where}: the prompt asks for __{name}__, and {place}.")
    manager = WildcardManager(settings.folder)
    generator: Any
    try:
        if settings.mode == "all":
            generator = CombinatorialPromptGenerator(wildcard_manager=manager)
            found = [str(each) for each in itertools.islice(generator.generate(text, limit + 1), limit + 1)]
        else:
            seed = random.Random(f"{settings.seed} {where} {prompt}").randrange(2**31)
            generator = RandomPromptGenerator(wildcard_manager=manager, seed=seed)
            found = [str(each) for each in generator.generate(text, settings.count)]
    except Exception as error:  # the parser's own errors are of many kinds
        raise ConfigError(f"{where}: the wildcards in {prompt[:60]!r} cannot be read: {error}") from error
    if len(found) > limit:
        raise ConfigError(f"{where}: the wildcards in {prompt[:60]!r} stand for more than {limit:,} prompts.")
    return list(dict.fromkeys(found))


def without_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """A prompt without its <lora:name:strength> tags, and their names and strengths."""
    tags = [(match[1].strip(), 1.0 if match[2] is None else float(match[2])) for match in _TAG.finditer(prompt)]
    return _TAG.sub("", prompt).strip() if tags else prompt, tags
