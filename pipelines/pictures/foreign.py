"""What pictures of other tools say of themselves: AUTOMATIC1111 and its kin, ComfyUI, InvokeAI."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from studio.pipelines.errors import ImageError, MissingFileError
from studio.pipelines.pictures.infotext import read_infotext
from studio.pipelines.pictures.png import INFOTEXT_KEY, RECORD_KEY
from studio.pipelines.pictures.record import PictureRecord

MAX_PIXELS = 100_000_000
MAX_TEXT = 8 * 2**20
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_TAG = re.compile(r"\s*<lora:([^<>:]+)(?::([-+\d.]+))?(?::[-+\d.]+)?>")
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What a picture says of how it was made; None and empty for what it does not say.

    Attributes:
        tool: "studio", "AUTOMATIC1111", "ComfyUI", "InvokeAI", or None if it says nothing.
        adapters: name and strength. adapter_hashes: name -> its short hash.
        settings: all else, as it stands there. record: the studio's own.
    """

    tool: str | None = None
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    width: int
    height: int
    model: str | None = None
    model_hash: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    adapter_hashes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    record: PictureRecord | None = None


def read_picture(path: Path) -> PictureFacts:
    """The facts in a PNG, JPEG or WebP. The studio's own are trusted over others in the same file.

    Raises:
        MissingFileError: there is no file. ImageError: it is no picture, too large, or its record is damaged.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no picture at {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a size of our own is checked right below
            opened = Image.open(path)
        with opened as image:
            size = image.size
            if size[0] * size[1] > MAX_PIXELS:
                raise ImageError(f"{path} has {size[0]}x{size[1]} pixels, which is too many.")
            if image.format == "PNG":
                image.load()  # chunks may stand after the pixels
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str) and len(value) <= MAX_TEXT}
            comment = _user_comment(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is not a readable picture.") from error
    if comment and INFOTEXT_KEY not in texts:
        texts[INFOTEXT_KEY] = comment
    try:
        return _facts(texts, *size)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"What {path} says of itself is damaged: {error}") from error


def _facts(texts: Mapping[str, str], width: int, height: int) -> PictureFacts:
    if RECORD_KEY in texts:
        return _ours(PictureRecord.from_json(json.loads(texts[RECORD_KEY])))
    if "invokeai_metadata" in texts:
        return _invoke(_table(texts["invokeai_metadata"]), width, height)
    if "prompt" in texts and texts["prompt"].lstrip().startswith("{"):
        return _comfy(_table(texts["prompt"]), width, height)
    if INFOTEXT_KEY in texts:
        return _a1111(texts[INFOTEXT_KEY], width, height)
    return PictureFacts(width=width, height=height)


def _ours(record: PictureRecord) -> PictureFacts:
    return PictureFacts(
        tool="studio",
        prompt=record.prompt,
        negative_prompt=record.negative_prompt,
        seed=record.seed,
        steps=record.steps,
        guidance_scale=record.guidance_scale,
        sampler=record.scheduler,
        width=record.width,
        height=record.height,
        model=record.base,
        model_hash=record.base_hash,
        adapters=tuple((use.name, use.strength) for use in record.adapters),
        adapter_hashes={use.name: use.short_hash for use in record.adapters},
        settings={"version": record.version, "dtype": record.dtype, "family": record.family},
        record=record,
    )


def _a1111(text: str, width: int, height: int) -> PictureFacts:
    found = read_infotext(text)
    settings = dict(found.settings)
    size = _SIZE.fullmatch(settings.get("Size", ""))
    hashes = [part.partition(":") for part in settings.get("Lora hashes", "").split(",") if ":" in part]
    return PictureFacts(
        tool="AUTOMATIC1111",
        prompt=_TAG.sub("", found.prompt).strip(),
        negative_prompt=found.negative_prompt,
        seed=_int(settings.pop("Seed", None)),
        steps=_int(settings.pop("Steps", None)),
        guidance_scale=_float(settings.pop("CFG scale", None)),
        sampler=settings.pop("Sampler", None),
        width=int(size[1]) if size else width,
        height=int(size[2]) if size else height,
        model=settings.pop("Model", None),
        model_hash=settings.pop("Model hash", None),
        adapters=tuple((match[1].strip(), float(match[2] or 1.0)) for match in _TAG.finditer(found.prompt)),
        adapter_hashes={name.strip(): value.strip() for name, _, value in hashes},
        settings=settings,
    )


def _invoke(values: Mapping[str, Any], width: int, height: int) -> PictureFacts:
    model = values.get("model")
    model = model if isinstance(model, Mapping) else {}
    adapters = []
    for each in values.get("loras") or ():
        if isinstance(each, Mapping):
            inner = each.get("model") or each.get("lora") or {}
            name = inner.get("name") or inner.get("model_name") if isinstance(inner, Mapping) else None
            adapters.append((str(name), _float(each.get("weight")) or 1.0))
    known = ("positive_prompt", "negative_prompt", "seed", "steps", "cfg_scale", "scheduler", "width", "height", "model", "loras")
    return PictureFacts(
        tool="InvokeAI",
        prompt=str(values.get("positive_prompt") or ""),
        negative_prompt=str(values.get("negative_prompt") or ""),
        seed=_int(values.get("seed")),
        steps=_int(values.get("steps")),
        guidance_scale=_float(values.get("cfg_scale")),
        sampler=None if values.get("scheduler") is None else str(values["scheduler"]),
        width=_int(values.get("width")) or width,
        height=_int(values.get("height")) or height,
        model=str(model.get("name") or model.get("model_name") or "") or None,
        model_hash=str(model.get("hash") or "") or None,
        adapters=tuple(adapters),
        settings={key: str(value) for key, value in values.items() if key not in known and isinstance(value, str | int | float)},
    )


def _comfy(nodes: Mapping[str, Any], width: int, height: int) -> PictureFacts:
    """From the graph that was run: the sampler, and what its inputs lead to."""
    graph = {str(key): node for key, node in nodes.items() if isinstance(node, Mapping)}
    sampler = next((node for node in graph.values() if "KSampler" in str(node.get("class_type"))), {})
    inputs = _inputs(sampler)
    model, adapters = None, []
    node = _node(graph, inputs.get("model"))
    for _ in range(len(graph)):
        own = _inputs(node)
        if isinstance(own.get("lora_name"), str):
            adapters.append((Path(own["lora_name"].replace("\\", "/")).stem, _float(own.get("strength_model")) or 0.0))
        if isinstance(own.get("ckpt_name") or own.get("unet_name"), str):
            model = str(own.get("ckpt_name") or own.get("unet_name"))
            break
        node = _node(graph, own.get("model"))
    latent = _inputs(_node(graph, inputs.get("latent_image")))
    return PictureFacts(
        tool="ComfyUI",
        prompt=_text(graph, inputs.get("positive")),
        negative_prompt=_text(graph, inputs.get("negative")),
        seed=_int(inputs.get("seed", inputs.get("noise_seed"))),
        steps=_int(inputs.get("steps")),
        guidance_scale=_float(inputs.get("cfg")),
        sampler=str(inputs["sampler_name"]) if isinstance(inputs.get("sampler_name"), str) else None,
        width=_int(latent.get("width")) or width,
        height=_int(latent.get("height")) or height,
        model=model,
        adapters=tuple(reversed(adapters)),
        settings={"scheduler": str(inputs["scheduler"])} if isinstance(inputs.get("scheduler"), str) else {},
    )


def _text(graph: Mapping[str, Mapping[str, Any]], link: Any, depth: int = 12) -> str:
    """The words that a conditioning comes from, through the nodes on the way; several are joined."""
    own = _inputs(_node(graph, link))
    if depth == 0 or not own:
        return ""
    for key in ("text", "text_g", "value", "string"):
        if isinstance(own.get(key), str):
            return str(own[key])
    links = [value for value in own.values() if isinstance(value, list)]
    return ", ".join(dict.fromkeys(filter(None, (_text(graph, each, depth - 1) for each in links))))


def _node(graph: Mapping[str, Mapping[str, Any]], link: Any) -> Mapping[str, Any]:
    return graph.get(str(link[0]), {}) if isinstance(link, list) and link else {}


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _table(text: str) -> Mapping[str, Any]:
    values = json.loads(text)
    if not isinstance(values, Mapping):
        raise ValueError("it should be a table.")  # noqa: TRY004 - the caller tells of damage
    return values


def _user_comment(image: Image.Image) -> str:
    """A JPEG's or WebP's comment, where A1111 writes its text: eight bytes that name the encoding, and then the text."""
    try:
        raw = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    except (OSError, ValueError, SyntaxError):
        return ""
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, bytes):
        return ""
    head, body = raw[:8], raw[8:]
    if head.startswith(b"UNICODE"):
        big = body[:1] == b"\0"
        return body.decode("utf-16-be" if big else "utf-16-le", errors="replace").rstrip("\0")
    return (body if head.startswith(b"ASCII") else raw).decode("utf-8", errors="replace").rstrip("\0")


def _int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
