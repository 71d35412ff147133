"""Turn what is wrong with a configuration into sentences that name the key, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic_core import ErrorDetails

from studio.training.config.schema import SECTIONS

ELSEWHERE: Mapping[str, str] = {
    "accumulation": "run.gradient_accumulation_steps",
    "base_model": "model.base",
    "class_name": "concept.class_noun",
    "class_prompt": "loss.class_prompts",
    "ema": "run.ema_decay",
    "epochs": "schedule.steps",
    "instance_data_dir": "concept.images",
    "instance_dir": "concept.images",
    "instance_prompt": "concept.caption_templates",
    "lora_alpha": "adapter.alpha",
    "lora_rank": "adapter.rank",
    "lr": "optimizer.learning_rate",
    "lr_scheduler": "schedule.name",
    "lr_warmup_steps": "schedule.warmup_steps",
    "max_train_steps": "schedule.steps",
    "min_snr_gamma": "loss.snr_gamma",
    "network_alpha": "adapter.alpha",
    "network_dim": "adapter.rank",
    "optimizer_type": "optimizer.name",
    "pretrained_model_name_or_path": "model.base",
    "prior_loss_weight": "loss.prior_weight",
    "prior_preservation": "loss.prior",
    "r": "adapter.rank",
    "save_every_n_steps": "run.checkpoint_every",
    "text_encoder_lr": "optimizer.text_encoder_learning_rate",
    "train_batch_size": "data.batch_size",
    "trigger": "concept.token",
    "unet_lr": "optimizer.learning_rate",
    "use_8bit_adam": "optimizer.name",
    "use_dora": "adapter.dora",
    "with_prior_preservation": "loss.prior",
}
"""Names that other trainers give the same settings."""

CLASS_NOUN_MISSING = (
    "concept.class_noun is missing: the everyday word for what the photos show, such as dog or backpack. The model "
    'learns "a photo of a {token} dog" from what it already knows about dogs, and the right word does more for the '
    'result than any other setting. Add class_noun = "dog" under [concept], or --class-noun dog.'
)
IMAGES_MISSING = (
    'concept.images is missing: the folder with the photos of the concept. Add images = "path/to/photos" under '
    "[concept], or --images path/to/photos."
)

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text in quotes",
    "path_type": "a path in quotes",
    "tuple_type": "a list of texts",
    "model_type": "a section",
    "model_attributes_type": "a section",
}


def known_keys() -> list[str]:
    """All settings as `section.key`, in the order of the schema."""
    return [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields]


def _holders(key: str) -> list[str]:
    return [name for name in known_keys() if name.endswith(f".{key}")]


def suggest(section: str, key: str) -> str:
    """The part of a sentence that names the setting probably meant, or what there is; `section` may be empty."""
    if not section and key in SECTIONS:
        return f"[{key}] is a section; write its keys below it"
    if section in SECTIONS and (near := get_close_matches(key, SECTIONS[section].model_fields, n=1, cutoff=0.7)):
        return f"did you mean {section}.{near[0]}?"
    if holders := _holders(key):
        return f"{key} belongs to [{holders[0].split('.')[0]}]"
    if key.lower() in ELSEWHERE:
        return f"did you mean {ELSEWHERE[key.lower()]}?"
    short_names = [name.split(".")[1] for name in known_keys()]
    if near := get_close_matches(key.lower().replace("-", "_"), [*short_names, *ELSEWHERE], n=1, cutoff=0.65):
        return f"did you mean {ELSEWHERE.get(near[0], ''.join(_holders(near[0])[:1]))}?"
    if section in SECTIONS:
        return f"[{section}] knows {', '.join(SECTIONS[section].model_fields)}"
    return f"the sections are {', '.join(SECTIONS)}"


def unknown_key(section: str, key: str) -> str:
    """The sentence about a key that does not exist."""
    if section:
        return f"unknown key {section}.{key}: {suggest(section, key)}"
    if key not in SECTIONS and (near := get_close_matches(key, SECTIONS, n=1, cutoff=0.7)):
        return f"unknown section [{key}]: did you mean [{near[0]}]?"
    return f"unknown key {key}: {suggest('', key)}"


def _choices(section: str, key: str) -> list[str]:
    found: list[str] = []

    def collect(annotation: Any) -> None:
        for part in get_args(annotation):
            if isinstance(part, str):
                found.append(part)
            else:
                collect(part)

    collect(SECTIONS[section].model_fields[key].annotation)
    return found


def _expectation(problem: ErrorDetails, section: str, key: str) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = _choices(section, key)
        near = get_close_matches(str(problem["input"]), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"must be one of {', '.join(choices)}{hint}"
    limits = {
        "greater_than": ("more than", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("less than", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in limits:
        words, name = limits[kind]
        return f"must be {words} {context[name]:g}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    return str(problem["msg"])


def sentence(problem: ErrorDetails) -> str:
    """One problem that pydantic found, as a sentence."""
    location = [str(part) for part in problem["loc"]]
    if not location:  # two sections that contradict each other
        return _expectation(problem, "", "")
    section, key = location[0], location[1] if len(location) > 1 else ""
    if problem["type"] == "extra_forbidden":
        return unknown_key(section, key) if key else unknown_key("", section)
    if problem["type"] == "missing":
        return IMAGES_MISSING if key == "images" else CLASS_NOUN_MISSING
    if not key:
        if problem["type"] == "value_error":
            return f"[{section}]: {problem['ctx']['error']}"
        return f"{section} must be a section: write [{section}] on a line of its own and the keys below it"
    return f"{section}.{key} = {problem['input']!r} {_expectation(problem, section, key)}"


def sentences(problems: Iterable[ErrorDetails]) -> list[str]:
    """All problems as sentences, each said once; a missing [concept] counts as its missing keys."""
    said: list[str] = []
    for problem in problems:
        both = problem["type"] == "missing" and len(problem["loc"]) == 1
        for text in (IMAGES_MISSING, CLASS_NOUN_MISSING) if both else (sentence(problem),):
            if text not in said:
                said.append(text)
    return said
