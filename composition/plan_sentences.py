"""What pydantic finds wrong with a plan or with a strategy's settings, as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from studio.composition.plan import CompositionPlan, Entry, Region

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text in quotes",
    "tuple_type": "a list",
    "model_type": "a table of keys and values",
    "model_attributes_type": "a table of keys and values",
    "mapping_type": "a table of keys and values",
    "too_short": "four numbers: left, top, right, bottom",
    "too_long": "four numbers: left, top, right, bottom",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a SHA-256 of 64 hex digits",
}
_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def plan_sentences(problems: Iterable[ErrorDetails], values: Any) -> list[str]:
    """All problems of a plan's values, a sentence each; `values` is what was read, for the entries' names."""
    return list(dict.fromkeys(_plan_sentence(problem, values) for problem in problems))


def settings_sentences(problems: Iterable[ErrorDetails], config: type[BaseModel], strategy: str) -> list[str]:
    """All problems of a strategy's settings, a sentence each."""
    said = []
    for problem in problems:
        if not problem["loc"]:
            said.append(f"strategy {strategy}: {_expectation(problem, config, '')}")
            continue
        key = str(problem["loc"][0])
        text = _unknown(key, config) if problem["type"] == "extra_forbidden" else _expectation(problem, config, key)
        said.append(f"strategy {strategy}: {key} {text}")
    return list(dict.fromkeys(said))


def _plan_sentence(problem: ErrorDetails, values: Any) -> str:
    place = list(problem["loc"])
    model: type[BaseModel] = CompositionPlan
    where = ""
    if len(place) > 1 and place[0] == "entries" and isinstance(place[1], int):
        where, model, place = f"entry {place[1] + 1}{_name_of(values, place[1])}: ", Entry, place[2:]
        if place and place[0] == "region":
            model, place = Region, place[1:]
            where += "region" if not place else "region."
    if not place:
        return f"{where.removesuffix('.')} {_expectation(problem, model, '')}".strip()
    key = str(place[0])
    if problem["type"] == "missing" and len(place) == 1:
        meaning = model.model_fields[key].description
        return f"{where}{key} is missing. {meaning}"
    if problem["type"] == "extra_forbidden":
        return f"{where}{key} {_unknown(key, model)}"
    return f"{where}{key} {_expectation(problem, model, key)}"


def _name_of(values: Any, index: int) -> str:
    try:
        entry = values["entries"][index]
        name = entry.get("name") or entry.get("adapter")
    except (TypeError, KeyError, IndexError, AttributeError):
        return ""
    return f" ({name})" if isinstance(name, str) else ""


def _unknown(key: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    near = get_close_matches(key.lower().replace("-", "_"), [*known, *ELSEWHERE], n=1, cutoff=0.65)
    if near:
        return f"is no key here; did you mean {ELSEWHERE.get(near[0], near[0])}?"
    return f"is no key here; there is {', '.join(known)}." if known else "is no key here; there are none."


ELSEWHERE: Mapping[str, str] = {
    "alpha": "strength",
    "cfg": "guidance_scale",
    "file": "adapter",
    "lora": "adapter",
    "method": "strategy",
    "path": "adapter",
    "sampler": "scheduler",
    "scale": "strength",
    "token": "words",
    "trigger": "words",
    "weight": "strength",
}
"""Names that people give the same keys."""


def _expectation(problem: ErrorDetails, model: type[BaseModel], key: str) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = _choices(model, key)
        near = get_close_matches(str(problem["input"]), choices, n=1)
        return f"must be one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else ".")
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return f"must be {words} {context[name]:g}, not {problem['input']}."
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}."
    if kind == "missing":
        return f"must be {_KINDS['too_short']}."
    return f"is wrong: {problem['msg']}."


def _choices(model: type[BaseModel], key: str) -> list[str]:
    found: list[str] = []

    def collect(annotation: Any) -> None:
        for part in get_args(annotation):
            if isinstance(part, str):
                found.append(part)
            else:
                collect(part)

    collect(model.model_fields[key].annotation)
    return found
