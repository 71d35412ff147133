"""What one request of a batch file may say: pictures from a prompt, a composition, or a training."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from studio.pipelines.errors import ConfigError

Kind = Literal["generate", "compose", "train"]
Int = Annotated[int, Strict()]
Float = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Strict(), Field(min_length=1, max_length=20_000)]
Seed = Annotated[Int, Field(ge=0, le=2**63 - 1)]
Side = Annotated[Int, Field(ge=1, le=16_384)]

_SIZE = re.compile(r"(\d+)(?:\s*[x×*]\s*(\d+))?", re.IGNORECASE)


class Part(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class AdapterRef(Part):
    """An adapter file and how it acts; as a text it is FILE or FILE:STRENGTH."""

    file: Text
    strength: Float = 1.0
    half: Literal["content", "style"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        head, colon, tail = value.rpartition(":")
        try:
            return {"file": head, "strength": float(tail)} if colon and head else {"file": value}
        except ValueError:
            return {"file": value}


class Request(Part):
    """What every kind of request has.

    Attributes:
        name: for labels and reports. num_images: pictures, with seeds in a row.
    """

    kind: Kind
    name: Text | None = None


class GenerateRequest(Request):
    """Pictures from a prompt. None means the base model's own default.

    Attributes:
        seed: of the first picture. "random" and -1 stand for a number that is made of the request's place in the file: the
            same one whenever the file is run.
        strength: of all adapters, over what they say themselves. replace: words of the prompt -> other words.
    """

    kind: Literal["generate"] = "generate"
    prompt: Text
    negative_prompt: Annotated[str, Strict(), Field(max_length=20_000)] = ""
    seed: Seed | Literal["random"] = 0
    num_images: Annotated[Int, Field(ge=1, le=10_000)] = 1
    steps: Annotated[Int, Field(ge=1, le=1000)] = 30
    guidance_scale: Float | None = None
    width: Side | None = None
    height: Side | None = None
    scheduler: Text | None = None
    base: Text = "embedded"
    adapters: tuple[AdapterRef, ...] = ()
    strength: Float | None = None
    replace: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("seed", mode="before")
    @classmethod
    def _any_seed(cls, value: Any) -> Any:
        return "random" if value == -1 else value


class ComposeRequest(Request):
    """Pictures of a plan: all keys of a plan (docs/composition.md), or `plan`, a file, with keys that change it."""

    kind: Literal["compose"] = "compose"
    plan: Text | None = None
    values: Mapping[str, Any] = Field(default_factory=dict)


class TrainRequest(Request):
    """A training run: sections of docs/training-config.md, or `config`, a TOML file, with sections that change it.

    Attributes:
        num_processes: more than one trains on so many devices with `accelerate launch`.
    """

    kind: Literal["train"] = "train"
    method: Text
    config: Text | None = None
    values: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    num_processes: Annotated[Int, Field(ge=1, le=64)] = 1


AnyRequest = GenerateRequest | ComposeRequest | TrainRequest

_ALIASES = {
    "negative": "negative_prompt",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "adapter": "adapters",
    "lora": "adapters",
    "loras": "adapters",
    "n_iter": "num_images",
    "model": "base",
    "sd_model": "base",
    "strategy_name": "strategy",
}
"""Other tools' words for the fields of pictures."""

_PLAN_ONLY = ("plan", "entries", "strategy")


def canonical_keys(values: Mapping[str, Any], *, is_training: bool = False) -> dict[str, Any]:
    """`values` with other tools' words replaced by ours, a size by width and height, and dotted keys by tables.

    Args:
        is_training: whether they are settings of a training, whose words are all its own.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        for name, part in ({str(key): value} if is_training else _renamed(str(key), value)).items():
            set_path(found, name, part)
    return found


def _renamed(key: str, value: Any) -> dict[str, Any]:
    head, dot, rest = key.strip().partition(".")
    name = _ALIASES.get(head, head) + dot + rest
    if name == "size":
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ConfigError(f"size: {value!r} should be a width and a height such as 640x480, or one number for a square.")
        return {"width": int(match[1]), "height": int(match[2] or match[1])}
    if name == "adapters" and isinstance(value, str):
        return {name: [part.strip() for part in value.split(";") if part.strip()]}
    if name == "adapters" and isinstance(value, Mapping):
        return {name: [dict(value)]}
    if name == "scheduler" and isinstance(value, str):
        return {name: scheduler_name(value)}
    return {name: value}


def scheduler_name(text: str) -> str:
    """Our word for a sampler that may be called as other tools do; unknown ones as they are."""
    plain = re.sub(r"[\s_-]+", " ", text.lower().replace("karras", "").replace("sampler", "")).strip()
    return {
        "euler a": "euler_a",
        "euler ancestral": "euler_a",
        "k euler a": "euler_a",
        "k euler": "euler",
        "dpm++ 2m": "dpm++",
        "dpmpp 2m": "dpm++",
    }.get(plain, text)


def set_path(values: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at a dotted path, as "adapters.0.strength"; tables on the way are made, lists must be there.

    Raises:
        ConfigError: the path leads through something else.
    """
    head, dot, rest = path.partition(".")
    if not dot:
        values[head] = value
        return
    inner = values.get(head, {})
    if isinstance(inner, list | tuple):
        number, _, deeper = rest.partition(".")
        items = list(inner)
        if not number.isdecimal() or int(number) >= len(items):
            raise ConfigError(f"{path}: {head} has {len(items)} entries, counted from 0; there is no {number!r}.")
        if deeper:
            item = items[int(number)]
            table = dict(item) if isinstance(item, Mapping) else AdapterRef.model_validate(item).model_dump()
            set_path(table, deeper, value)
            items[int(number)] = table
        else:
            items[int(number)] = value
        values[head] = items
        return
    if not isinstance(inner, Mapping):
        inner = {"name": inner} if head == "strategy" else {}
    table = dict(inner)
    set_path(table, rest, value)
    values[head] = table


def request_of(values: Mapping[str, Any], where: str) -> AnyRequest:
    """A request of plain values with canonical keys.

    Args:
        where: names the place in the file, for the error.

    Raises:
        ConfigError: something is wrong; says all that is, a line each.
    """
    kind = values.get("kind") or _kind_of(values)
    if kind not in get_args(Kind):
        raise ConfigError(f"{where}: kind should be {', '.join(get_args(Kind))}, not {kind!r}.")
    rest = {key: value for key, value in values.items() if key != "kind"}
    model: type[Request]
    if kind == "generate":
        model = GenerateRequest
    else:
        model = ComposeRequest if kind == "compose" else TrainRequest
        own = {key: rest.pop(key) for key in list(rest) if key in model.model_fields and key != "values"}
        rest = {**own, "values": rest}
    try:
        return model.model_validate(rest)
    except ValidationError as error:
        problems = [_sentence(each, model, where) for each in error.errors(include_url=False)]
    raise ConfigError("\n".join(dict.fromkeys(problems)))


def _kind_of(values: Mapping[str, Any]) -> Kind:
    if "method" in values or "config" in values:
        return "train"
    return "compose" if any(key in values for key in _PLAN_ONLY) else "generate"


def _sentence(error: Mapping[str, Any], model: type[Request], where: str) -> str:
    place = ".".join(str(part) for part in error["loc"] if not isinstance(part, str) or not part.startswith("literal"))
    if error["type"] == "extra_forbidden":
        names = [*model.model_fields, "size", *_ALIASES]
        near = difflib.get_close_matches(str(error["loc"][-1]), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(n for n in names if n not in _ALIASES)}."
        return f"{where}: there is no field {place!r}{hint}"
    if error["type"] == "missing":
        return f"{where}: {place} is missing."
    return f"{where}: {place}: {error['msg'][0].lower()}{error['msg'][1:]}."
