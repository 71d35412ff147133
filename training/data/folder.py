"""Find and read the photos of a folder, and say all that is wrong with them at once."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from studio.pipelines.errors import DatasetError, ImageError
from studio.training.data.images import FOREIGN_SUFFIXES, READABLE_SUFFIXES, ImageLimits, Photo, read_photo

MOST_ERRORS_SHOWN = 10


def find_images(folder: Path | str) -> list[Path]:
    """The picture files of a folder (not of folders in it), in natural order: 2.jpg before 10.jpg.

    Hidden files and files of other kinds are passed over. Kinds of pictures that cannot be read (HEIC, SVG) are listed,
    so that reading them says so. A path to one picture gives that picture.

    Raises:
        DatasetError: no such folder, or no pictures in it; says what was found instead.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give the folder with the photos of the concept")
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({os.strerror(error.errno or 0)}); check its permissions") from error
    known = (*READABLE_SUFFIXES, *FOREIGN_SUFFIXES)
    found = [entry for entry in entries if entry.suffix.lower() in known and not entry.is_dir()]
    if not found:
        raise DatasetError(_nothing_found(folder, entries))
    return sorted(found, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that orders numbers in names by value, and is the same on every file system."""
    plain = unicodedata.normalize("NFC", name)
    parts = re.findall(r"[0-9]+|[^0-9]+", plain.casefold())
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], plain


def read_photos(
    paths: Sequence[Path], limits: ImageLimits | None = None, on_photo: Callable[[int, int], None] | None = None
) -> list[Photo]:
    """Read all photos; `on_photo(done, total)` is called after each.

    Raises:
        ImageError: some cannot be used; names every one of them with its reason.
    """
    photos, problems = [], []
    for number, path in enumerate(paths, start=1):
        try:
            photos.append(read_photo(path, limits))
        except ImageError as error:
            problems.append(str(error))
        if on_photo is not None:
            on_photo(number, len(paths))
    if len(problems) == 1:
        raise ImageError(problems[0])
    if problems:
        shown = problems[:MOST_ERRORS_SHOWN]
        more = len(problems) - len(shown)
        tail = [f"and {more} more"] if more else []
        raise ImageError("\n".join([f"{len(problems)} of {len(paths)} photos cannot be used:", *shown, *tail]))
    return photos


def duplicates(photos: Sequence[Photo]) -> list[tuple[Photo, Photo]]:
    """Pairs (first, copy) of photos with the same pixels."""
    first: dict[str, Photo] = {}
    pairs = []
    for photo in photos:
        original = first.setdefault(photo.content_hash, photo)
        if original is not photo:
            pairs.append((original, photo))
    return pairs


def _nothing_found(folder: Path, entries: Sequence[Path]) -> str:
    advice = (
        f"put three to ten photos there ({', '.join(s.lstrip('.') for s in READABLE_SUFFIXES if s not in ('.jfif', '.tif'))})"
    )
    if not entries:
        return f"{folder}: is empty; {advice}"
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    files = sorted(entry.name for entry in entries if not entry.is_dir())
    if folders and not files:
        return (
            f"{folder}: holds no photos, only the folder {folders[0]!r}{' and others' if len(folders) > 1 else ''}; name that one"
        )
    kinds = sorted({Path(name).suffix.lower() or "no suffix" for name in files})
    return f"{folder}: holds no photos, only {len(files)} other files ({', '.join(kinds[:5])}); {advice}"
