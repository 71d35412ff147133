"""Pictures with their records: in the PNG itself for people and other tools, beside it for programs."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from PIL import Image, PngImagePlugin

from studio.pipelines.errors import ImageError, MissingFileError
from studio.pipelines.files import atomic_write_bytes, atomic_write_json
from studio.pipelines.pictures.infotext import Infotext, infotext, read_infotext
from studio.pipelines.pictures.record import PictureRecord

INFOTEXT_KEY = "parameters"
RECORD_KEY = "studio"


def save_picture(path: Path, image: Image.Image, record: PictureRecord | None) -> None:
    """Write the picture and then its sidecar `<name>.json`, each in one step: where the sidecar is, the picture is whole.

    Args:
        record: how it was made; None writes the bare picture alone.

    Raises:
        OutputError: the disk is full, or the place cannot be written to.
    """
    save_png(path, png_bytes(image, record), record)


def save_png(path: Path, data: bytes, record: PictureRecord | None) -> None:
    """`save_picture` of a picture that is bytes already: those of `png_bytes` with the same record."""
    atomic_write_bytes(path, data)
    if record is not None:
        values = record.to_json() | {"file": path.name, "file_sha256": hashlib.sha256(data).hexdigest()}
        atomic_write_json(sidecar_path(path), values)


def png_bytes(image: Image.Image, record: PictureRecord | None) -> bytes:
    """A PNG with the record in two text chunks: `parameters` as AUTOMATIC1111 writes it, and `studio` as JSON."""
    chunks = PngImagePlugin.PngInfo()
    if record is not None:
        chunks.add_text(INFOTEXT_KEY, infotext(record))
        chunks.add_text(RECORD_KEY, json.dumps(record.to_json(), ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_png(path: Path) -> tuple[PictureRecord | None, Infotext | None]:
    """The studio's record and the `parameters` text of a PNG, each None where there is none.

    Raises:
        MissingFileError: there is no file. ImageError: it is no picture, or its record is damaged.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no picture at {path}.")
    try:
        with Image.open(path) as image:
            image.load()  # chunks may stand after the pixels
            texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
        values = json.loads(texts[RECORD_KEY]) if RECORD_KEY in texts else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is not a readable picture, or its record is damaged.") from error
    record = None if values is None else PictureRecord.from_json(values)
    return record, read_infotext(texts[INFOTEXT_KEY]) if INFOTEXT_KEY in texts else None


def read_sidecar(path: Path) -> PictureRecord:
    """The record in the sidecar of the picture at `path`; `MissingFileError` or `ImageError` if there is none."""
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise MissingFileError(f"{path} has no record {sidecar.name} beside it.")
    try:
        return PictureRecord.from_json(json.loads(sidecar.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ImageError(f"{sidecar} is not valid JSON.") from error


def sidecar_path(path: Path) -> Path:
    """Where the record of the picture at `path` lies."""
    return path.with_suffix(".json")
