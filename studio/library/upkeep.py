"""Keeping the library true to the disk: files that were moved, trash with a way back, half-written leftovers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from studio.library.files import inside, move
from studio.library.item import Item, Kind
from studio.library.thumbnails import thumbnail_path
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from studio.library.library import Library

_IN_ONE_FILE = (Kind.ADAPTER, Kind.PICTURE)


@dataclass(frozen=True)
class Rescan:
    """What a look at the disk found: items whose file lies elsewhere now, and items whose file is gone."""

    moved: tuple[Item, ...]
    missing: tuple[Item, ...]


def rescan(library: Library, folders: Iterable[Path] = ()) -> Rescan:
    """Look for every item's file; one that is not where it was is searched by its size and then its hash.

    Args:
        folders: where else to search, besides the studio's home.
    """
    moved, missing = [], []
    for item in library.catalogue.all():
        if item.path.exists():
            if item.missing:
                library.catalogue.put(replace(item, missing=False))
            continue
        try:
            moved.append(find_moved(library, item, folders))
        except MissingFileError:
            missing.append(library.catalogue.put(replace(item, missing=True)))
    return Rescan(tuple(moved), tuple(missing))


def find_moved(library: Library, item: Item, folders: Iterable[Path] = ()) -> Item:
    """Search an item's file by size and hash, and note where it is now.

    Raises:
        MissingFileError: it is nowhere; says where it was.
    """
    if item.kind in _IN_ONE_FILE:
        suffix = item.path.suffix
        places = dict.fromkeys([item.path.parent, library.folder, library.home.root, *folders])
        for place in places:
            for path in _files_of_size(place, suffix, item.num_bytes):
                if file_sha256(path) == item.id:
                    return library.catalogue.put(replace(item, path=path.absolute(), missing=False))
    raise MissingFileError(
        f"The file of {item.name!r} is no longer at {item.path}, and nowhere under {library.home.root}. Put it back, or "
        "`studio library rescan FOLDER` where it may be."
    )


def trash(library: Library, item_id: str) -> Item:
    """Put an item into the trash. Files under the studio's home go there too; those elsewhere stay where they are."""
    item = library.catalogue.get(item_id)
    facts = dict(item.facts)
    path = item.path
    if path.exists() and inside(path, library.home.root):
        place = library.folder / "trash" / item.id
        sidecar = path.with_suffix(".json")
        if item.kind == Kind.PICTURE and sidecar.is_file():
            move(sidecar, place / sidecar.name)
        move(path, place / path.name)
        facts["trashed_from"] = str(path)
        path = place / path.name
    return library.catalogue.put(replace(item, trashed=time.time(), path=path, facts=facts))


def restore(library: Library, item_id: str) -> Item:
    """Take an item out of the trash, to where it was.

    Raises:
        MissingFileError: it is not in the trash. UserError: there is another file now.
    """
    item = library.catalogue.find(item_id) or _by_beginning(library, item_id)
    if item is None or item.trashed is None:
        raise MissingFileError(f"There is no {item_id[:20]!r} in the trash; `studio library trash` shows what is.")
    facts = dict(item.facts)
    path = item.path
    came_from = facts.pop("trashed_from", None)
    if came_from is not None and path.exists():
        target = Path(came_from)
        if target.exists():
            raise UserError(f"{target} is another file now; move it away before {item.name!r} is put back there.")
        sidecar = path.with_suffix(".json")
        if item.kind == Kind.PICTURE and sidecar.is_file():
            move(sidecar, target.with_suffix(".json"))
        move(path, target)
        path = target
        shutil.rmtree(library.folder / "trash" / item.id, ignore_errors=True)
    return library.catalogue.put(replace(item, trashed=None, path=path, facts=facts))


def empty_trash(library: Library, older_than_seconds: float = 0.0) -> int:
    """Remove for good what has been in the trash for so long, and return how many things that were."""
    until = time.time() - older_than_seconds
    gone = [item for item in library.catalogue.all() if item.trashed is not None and item.trashed <= until]
    for item in gone:
        shutil.rmtree(library.folder / "trash" / item.id, ignore_errors=True)
        thumbnail_path(library.folder, item.id).unlink(missing_ok=True)
        library.catalogue.forget(item.id)
    return len(gone)


def remove_leftovers(library: Library, older_than_seconds: float = 3600.0) -> int:
    """Remove what killed processes left half-written, and return how many files that were."""
    until = time.time() - older_than_seconds
    left = [path for path in library.folder.rglob(".*.part") if path.is_file() and path.stat().st_mtime < until]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _files_of_size(folder: Path, suffix: str, num_bytes: int) -> Iterable[Path]:
    if not folder.is_dir():
        return
    for path in folder.rglob(f"*{suffix}"):
        try:
            if path.is_file() and path.stat().st_size == num_bytes:
                yield path
        except OSError:
            continue


def _by_beginning(library: Library, text: str) -> Item | None:
    found = [
        item for item in library.catalogue.all() if item.trashed is not None and (item.id.startswith(text) or item.name == text)
    ]
    return found[0] if len(found) == 1 else None
