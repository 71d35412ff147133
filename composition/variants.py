"""Variants of one sentence, each about one concept by its own words and about the others by plain ones (CLoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studio.composition.scene import Concept, Scene, naming
from studio.composition.spans import find_words, token_span


@dataclass(frozen=True)
class Variant:
    """One way to say the prompt.

    Attributes:
        concept: whose own words stand there, by its place among the concepts; None for plain words only.
        tokens: where each concept's words are, whichever stand there; empty for one that is not spoken of.
    """

    concept: int | None
    prompt: str
    tokens: tuple[tuple[int, ...], ...]


def prompt_variants(scene: Scene, concepts: Sequence[Concept]) -> list[Variant]:
    """The sentence in plain words, then a variant for each concept: "a cat and a dog", "a ohwx cat and a dog", …

    A concept with a prompt of its own has that for its variant; the others are looked for in it by their words, own or plain.

    Raises:
        UserError: words stand past what the text encoder sees.
    """
    return [_variant(scene, concepts, own) for own in (None, *range(len(concepts)))]


def plain_words(concept: Concept) -> str | None:
    """What to call it without its trigger: "cat" for "ohwx cat"; None for a concept without words.

    The class noun that its file names stands for the trigger; without one, the last of several words does.
    """
    words, info = concept.words, concept.adapter.info
    if words is None:
        return None
    if info.class_noun is not None:
        place = None if info.trigger is None else find_words(words, info.trigger)
        if place is None:
            return info.class_noun
        rest = " ".join((words[: place[0]] + words[place[1] :]).split())
        has_noun = find_words(rest, info.class_noun) is not None
        return rest if has_noun else words[: place[0]] + info.class_noun + words[place[1] :]
    return words.split()[-1]


def _variant(scene: Scene, concepts: Sequence[Concept], own: int | None) -> Variant:
    prompt, places = _said(scene, concepts, own)
    if own is not None and concepts[own].entry.prompt is not None:
        prompt = scene.own_prompt(concepts[own])
        places = [_found(prompt, concept) for concept in concepts]
    tokens = []
    for concept, place in zip(concepts, places, strict=True):
        with naming(concept.title):
            tokens.append(() if place is None else token_span(scene.base.tokenizers[0], prompt, place).tokens)
    return Variant(own, prompt, tuple(tokens))


def _said(scene: Scene, concepts: Sequence[Concept], own: int | None) -> tuple[str, list[tuple[int, int] | None]]:
    """The plan's prompt with plain words for all but one, and where each concept's words are in it."""
    prompt = scene.plan.prompt
    order = sorted(
        (concept.span.start, concept.span.end, index) for index, concept in enumerate(concepts) if concept.span is not None
    )
    places: list[tuple[int, int] | None] = [None] * len(concepts)
    text, last = "", 0
    for start, end, index in order:
        plain = plain_words(concepts[index])
        words = prompt[start:end] if index == own or plain is None else plain
        text += prompt[last:start]
        places[index] = (len(text), len(text) + len(words))
        text, last = text + words, end
    return text + prompt[last:], places


def _found(prompt: str, concept: Concept) -> tuple[int, int] | None:
    if concept.words is None:
        return None
    plain = plain_words(concept)
    return find_words(prompt, concept.words) or (None if plain is None else find_words(prompt, plain))
