"""The fingerprint of a base model: one SHA-256 over its weight files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def content_hash(root_dir: Path, weight_files: Sequence[Path]) -> str:
    """64 hex digits that name the content of `weight_files`, wherever they lie.

    One file: the file's own SHA-256, which is the hash that other tools print for a checkpoint. Several: the SHA-256 of
    the lines "<hash of the file>  <its path under root_dir>", sorted by path. Files already hashed in this process are
    not read again while their size and time of change stay the same.
    """
    if len(weight_files) == 1:
        return file_sha256(weight_files[0])
    lines = sorted((path.relative_to(root_dir).as_posix(), file_sha256(path)) for path in weight_files)
    text = "".join(f"{digest}  {name}\n" for name, digest in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, remembered by path, size and time of change."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:
    del size_bytes, mtime_ns  # parts of the cache's key only
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
