"""The fixed prompts of `studio eval base`: drawn once from a seed, kept in assets/prompts, never trained or tuned on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from studio.assets import world
from studio.assets.world.vocabulary import BACKGROUND_PHRASES, STYLE_SUFFIXES
from studio.pipelines.scoring.checklist import ObjectFacts, PromptFacts, check
from studio.pipelines.scoring.scorer import Reading

SEED = 31_415
GROUP_SIZES = {"one": 300, "two": 200, "three": 30, "four": 30}
NUM_OBJECTS = {"one": 1, "two": 2, "three": 3, "four": 4}


@dataclass(frozen=True)
class BasePrompt:
    """One prompt, what it says, and the seed of its picture."""

    id: str
    group: str
    prompt: str
    facts: PromptFacts
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BasePrompt:
        """The prompt that `to_dict` described."""
        facts = data["facts"]
        objects = tuple(ObjectFacts(**thing) for thing in facts["objects"])
        return cls(**{**data, "facts": PromptFacts(**{**facts, "objects": objects})})


def prompts_path() -> Path:
    """Where the fixed list is kept."""
    return Path(str(files("studio.assets"))) / "prompts" / "base.json"


def load_base_prompts() -> list[BasePrompt]:
    """The fixed list, group after group."""
    data = json.loads(prompts_path().read_text(encoding="utf-8"))
    return [BasePrompt.from_dict(item) for item in data["prompts"]]


def make_base_prompts() -> list[BasePrompt]:
    """Draw the list. Classes, colours, patterns, backgrounds, styles and relations occur equally often in a group."""
    rng = np.random.default_rng(SEED)
    return [prompt for group, num in GROUP_SIZES.items() for prompt in _group(group, num, rng, start=7_000)]


def _group(group: str, num: int, rng: np.random.Generator, start: int) -> list[BasePrompt]:
    count = NUM_OBJECTS[group]
    classes = [_balanced(world.CLASSES, num, rng) for _ in range(count)]
    colours = [_balanced(world.COLOURS, num, rng) for _ in range(count)]
    patterns = _balanced((None, *world.PATTERNS[1:]), num, rng)
    backgrounds, styles = _balanced(world.BACKGROUNDS, num, rng), _balanced(world.STYLES, num, rng)
    relations = _balanced(world.RELATIONS, num, rng)
    prompts: list[BasePrompt] = []
    for index in range(num):
        objects: list[ObjectFacts] = []
        for place in range(count):
            name, colour = classes[place][index], colours[place][index]
            taken = {thing.class_name for thing in objects}
            while name in taken and not (group == "two" and index % 10 == 0):
                name = str(rng.choice(world.CLASSES))
            while colour in {thing.colour for thing in objects}:
                colour = str(rng.choice(world.COLOURS))
            objects.append(ObjectFacts(str(name), str(colour), patterns[index] if count == 1 else None))
        relation = str(relations[index]) if count == 2 else None
        facts = PromptFacts(tuple(objects), relation, backgrounds[index], styles[index])
        number = len(prompts)
        seed = start + 1_000 * count + number
        prompts.append(BasePrompt(f"{group}-{number:03d}", group, word_prompt(facts), facts, seed))
    return prompts


def word_prompt(facts: PromptFacts) -> str:
    """The plainest words for facts that name background and style."""
    names = []
    for thing in facts.objects:
        phrase = " ".join(word for word in (thing.colour, thing.pattern, thing.class_name) if word)
        names.append(("an " if phrase[0] in "aeiou" else "a ") + phrase)
    if facts.relation is not None:
        text = f" {facts.relation} ".join(names)
    elif len(names) == 1:
        text = names[0]
    else:
        text = ", ".join(names[:-1]) + " and " + names[-1]
    assert facts.background is not None
    assert facts.style is not None
    return f"{text} {BACKGROUND_PHRASES[facts.background][0]}, {STYLE_SUFFIXES[facts.style][0]}"


def scene_of(facts: PromptFacts, rng: np.random.Generator) -> world.Scene:
    """A random scene that shows the facts of a one- or two-object prompt: what the base is to be like.

    A pattern that the prompt leaves open is plain in 7 of 10, as in the captions the base learned from.
    """
    assert facts.background is not None
    assert facts.style is not None
    named = [
        (thing.class_name, thing.colour or str(rng.choice(world.COLOURS)), thing.pattern or _open_pattern(rng))
        for thing in facts.objects
    ]
    other = named[1] if len(named) > 1 else None
    return world.scene_from_words(
        *named[0], background=facts.background, style=facts.style, other=other, relation=facts.relation, rng=rng
    )


def statements(facts: PromptFacts, reading: Reading) -> tuple[tuple[str, bool], ...]:
    """The prompt's statements and whether they hold; where it names one object, only the surest object counts."""
    if len(facts.objects) == 1:
        reading = replace(reading, detections=reading.detections[:1])
    return check(facts, reading)


def _open_pattern(rng: np.random.Generator) -> str:
    return "plain" if rng.random() < 0.7 else str(rng.choice(world.PATTERNS[1:]))


def _balanced(items: Sequence[Any], num: int, rng: np.random.Generator) -> list[Any]:
    """`num` items, each equally often (up to one), in random order."""
    repeated = (list(items) * (num // len(items) + 1))[: num // len(items) * len(items)]
    rest = [items[int(index)] for index in rng.permutation(len(items))[: num - len(repeated)]]
    order = rng.permutation(num)
    every = repeated + rest
    return [every[int(index)] for index in order]


def main() -> None:
    """Write the list anew: `python -m studio.evals.base_prompts`."""
    data = {"seed": SEED, "prompts": [prompt.to_dict() for prompt in make_base_prompts()]}
    prompts_path().write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
