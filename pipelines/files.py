"""Writing files so that a reader finds the old content or the new, and never half of it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.pipelines.errors import OutputError

if TYPE_CHECKING:  # who writes JSON alone need not wait for torch
    from torch import Tensor

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EACCES: "there is no permission to write there; choose another folder",
    errno.EPERM: "there is no permission to write there; choose another folder",
    errno.EROFS: "it is on a read-only disk; choose another folder",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "its name is too long",
}


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step, also if the machine stops halfway.

    Missing folders are made. The data goes to a temporary file in the same folder, is flushed to the disk and renamed.

    Raises:
        OutputError: the disk is full, or the place cannot be written to; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.part"
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def atomic_write_text(path: Path | str, text: str) -> None:
    """`atomic_write_bytes` of `text` in UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """`atomic_write_text` of `value` as JSON; NaN and infinities are a `ValueError`, as JSON has none."""
    atomic_write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def atomic_save_safetensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """`atomic_write_bytes` of a safetensors file; the same content always gives the same bytes.

    Args:
        tensors: by name; made contiguous and copied to the CPU here.
        metadata: strings for the header.
    """
    from safetensors.torch import save as safetensors_bytes

    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    data = safetensors_bytes(ready)
    if metadata:
        data = _with_metadata(data, metadata)
    atomic_write_bytes(path, data)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file's bytes with metadata in the header, sorted: the library writes them in an order of chance."""
    (length,) = struct.unpack("<Q", data[:8])
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@contextmanager
def output_errors(path: Path | str) -> Iterator[None]:
    """Turn the operating system's errors inside the block into an `OutputError` that says why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{path} cannot be written: {cause}.") from error


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry for the new name; not every file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
