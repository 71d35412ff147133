"""The library's own files: names that no user's text can misuse, copies in one step, and paths that stay inside."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from pathlib import Path

from studio.pipelines.errors import OutputError, UserError
from studio.pipelines.files import output_errors

_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}


def file_name(name: str, item_id: str, suffix: str) -> str:
    """`name` in letters, digits, - and _, then the first eight digits of the id: valid and unique on every system."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-_")[:60]
    if not stem or stem.lower() in _RESERVED:
        stem = "item"
    return f"{stem}-{item_id[:8]}{suffix}"


def copy_file(source: Path, target: Path) -> str:
    """Copy in one step, and return the SHA-256 of what was copied.

    Raises:
        OutputError: the disk is full, or the place cannot be written to.
    """
    temporary = target.parent / f".{target.name[:100]}.{secrets.token_hex(6)}.part"
    digest = hashlib.sha256()
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with source.open("rb") as reading, temporary.open("xb") as writing:
                while block := reading.read(1 << 20):
                    digest.update(block)
                    writing.write(block)
                writing.flush()
                os.fsync(writing.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return digest.hexdigest()


def move(source: Path, target: Path) -> None:
    """Move a file or folder, over file systems too. Raises OutputError when that cannot be."""
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.move(source, target)
        except shutil.Error as error:
            raise OutputError(f"{source} cannot be moved to {target}: {error}.") from error


def inside(path: Path, root: Path) -> bool:
    """Whether `path`, with every link followed, lies under `root`."""
    return path.resolve().is_relative_to(root.resolve())


def refuse_links_out(path: Path, root: Path) -> None:
    """`UserError` if `path` is a link that leads out of the folder `root` that is being imported."""
    if not inside(path, root):
        raise UserError(f"{path} is a link that leads out of {root}; it is not followed. Import what it points at by itself.")
