"""Reading a safetensors header with suspicion, before anything else looks at the file.

Layout: eight bytes with the length n of the header, n bytes of JSON (tensor name -> type, shape, offsets; plus strings
under `__metadata__`), then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.pipelines.errors import AdapterFileError, MissingFileError

MAX_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""

_TYPES_OF_BYTES = {
    1: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
    2: ("I16", "U16", "F16", "BF16"),
    4: ("I32", "U32", "F32"),
    8: ("I64", "U64", "F64", "C64"),
}
_TYPE_BYTES = {dtype: size for size, dtypes in _TYPES_OF_BYTES.items() for dtype in dtypes}


_OTHER_KINDS = (
    (b"gguf", "it is a GGUF file. Adapters are .safetensors files."),
    (b"version https://", "it is a Git LFS pointer, not the file it stands for. Fetch it with `git lfs pull`."),
    (b"<!doctype", "it is a web page, as a failed download leaves it. Download the file again."),
    (b"<html", "it is a web page, as a failed download leaves it. Download the file again."),
)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `dtype` in safetensors' spelling, its shape, and its bytes `[start, end)` after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself: its tensors in the order of their bytes, its metadata, and its size in bytes."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    file_bytes: int


def read_header(path: Path | str) -> Header:
    """The header of the safetensors file at `path`, checked in full against the file's size; no tensor is read.

    Raises:
        MissingFileError: there is no file.
        AdapterFileError: it is not a whole and consistent safetensors file; the sentence says why.
    """
    path = Path(path)
    with _about(path):
        _refuse_other_kinds(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = _header_bytes(file.read(8), size)
            text = file.read(raw)
        content = _parse(text)
        metadata = _metadata(content.pop("__metadata__", {}))
        tensors = {name: _entry(name, value) for name, value in content.items()}
        ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
        _check_layout(ordered, size - 8 - raw)
    return Header(ordered, metadata, size)


class _Wrong(Exception):  # noqa: N818 - never leaves this file
    """What is wrong, without saying with which file."""


@contextmanager
def _about(path: Path) -> Iterator[None]:
    try:
        yield
    except _Wrong as wrong:
        raise AdapterFileError(f"{path} cannot be read: {wrong}") from None
    except PermissionError as error:
        raise AdapterFileError(f"{path} cannot be read: there is no permission.") from error


def _refuse_other_kinds(path: Path) -> None:
    if not path.exists():
        raise MissingFileError(f"There is no file {path}.")
    if not path.is_file():
        raise _Wrong("it is not a file; name the .safetensors file itself.")
    with path.open("rb") as file:
        start = file.read(16)
    # A length of the same two first bytes as a pickle is possible; its upper bytes are zero then.
    is_pickle = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[3:8] != bytes(5)
    if is_pickle or start[:4] == b"PK\x03\x04":
        raise _Wrong("it is a pickle (.pt, .ckpt, .bin), which can run any code when loaded. Ask for a .safetensors file.")
    for beginning, what in _OTHER_KINDS:
        if start.lower().startswith(beginning):
            raise _Wrong(what)


def _header_bytes(length: bytes, size: int) -> int:
    if len(length) < 8:
        raise _Wrong(f"it has only {size} bytes and is no safetensors file.")
    (count,) = struct.unpack("<Q", length)
    if count > MAX_HEADER_BYTES:
        raise _Wrong("it does not begin like a safetensors file (its header would be larger than 100 MB).")
    if 8 + count > size:
        raise _Wrong(f"it is cut off: its header has {count} bytes and the whole file {size}. Download or copy it again.")
    return int(count)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise _Wrong("its header is not JSON, so it is damaged or no safetensors file.") from None
    if not isinstance(content, dict):
        raise _Wrong("its header is not a JSON object.")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _Wrong("its header names something twice.")
    return content


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _Wrong("its metadata is not a JSON object.")
    for key, text in value.items():
        if not isinstance(text, str):
            raise _Wrong(f"its metadata entry {key!r} is not a string.")
    return value


def _entry(name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"its header does not describe the tensor {name!r} as safetensors does.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPE_BYTES:
        raise _Wrong(f"the tensor {name!r} is of the unknown type {dtype!r}.")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _Wrong(f"shape or offsets of the tensor {name!r} are not whole numbers from zero up.")
    start, end = offsets
    if end - start != math.prod(shape) * _TYPE_BYTES[dtype]:
        raise _Wrong(f"the tensor {name!r} of shape {shape} and type {dtype} cannot have {end - start} bytes.")
    return TensorEntry(dtype, tuple(shape), start, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_layout(tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    position = 0
    for name, entry in tensors.items():
        if entry.start != position:
            what = "overlaps another one" if entry.start < position else "is preceded by bytes that belong to none"
            raise _Wrong(f"the tensor {name!r} {what}.")
        position = entry.end
    if position > data_bytes:
        raise _Wrong(f"it is cut off: {position - data_bytes} bytes are missing at its end. Download or copy it again.")
    if position < data_bytes:
        raise _Wrong(f"{data_bytes - position} bytes at its end belong to no tensor.")
