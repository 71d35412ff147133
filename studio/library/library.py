"""The library: bring things in, change what is written about them, throw them away and get them back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.library import reading
from studio.library.catalogue import Catalogue
from studio.library.files import copy_file, file_name, refuse_links_out
from studio.library.item import Item, Kind
from studio.library.reading import Found
from studio.library.thumbnails import thumbnail_path, write_thumbnail
from studio.pipelines.errors import ConfigError, MissingFileError, StudioError, UserError
from studio.storage.home import Home

MAX_NOTES = 20_000
MAX_TAGS = 64
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_PLANS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Imported:
    """What an import did with one file: the item, whether it is `new`, or the sentence that says why it was refused."""

    source: Path
    item: Item | None
    new: bool = False
    refused: str = ""


class Library:
    """All things of one home.

    Attributes:
        folder: where the library's own files lie. catalogue: what is known of them.
    """

    def __init__(self, home: Home) -> None:
        self.home = home.create()
        self.folder = home.library
        self.catalogue = Catalogue(home)

    def close(self) -> None:
        """Close the catalogue."""
        self.catalogue.close()

    # ------------------------------------------------------------------------------------------------------ bringing in

    def add_adapter(
        self,
        path: Path,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        owner: str = "",
        in_place: bool = False,
        score: float | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Imported:
        """Bring in an adapter file of any dialect; one that is there already is left as it is.

        Args:
            name: by default what the file says. in_place: refer to the file where it is instead of copying it.
            score, facts: what else is known of it, as from the training that made it.

        Raises:
            MissingFileError: there is no file. AdapterFileError: it is damaged, hostile or unknown; says why.
        """
        found = reading.read_adapter(path)
        found = replace(found, facts={**found.facts, **(facts or {})})
        return self._add(found, path, name, tags, owner, in_place=in_place, suffix=".safetensors", score=score)

    def add_concept(
        self,
        path: Path,
        *,
        name: str | None = None,
        class_noun: str | None = None,
        trigger: str | None = None,
        tags: Sequence[str] = (),
        owner: str = "",
    ) -> Imported:
        """Bring in a folder of photos, with their captions.

        Raises:
            DatasetError: there are no photos, or some cannot be used.
        """
        root = path if path.is_dir() else path.parent
        found = replace(reading.read_concept(path), class_noun=class_noun, trigger=trigger)
        for file in found.files:
            refuse_links_out(file, root)
        return self._add(found, path, name, tags, owner, in_place=False, suffix="")

    def add_base(self, path: Path, *, name: str | None = None, tags: Sequence[str] = (), owner: str = "") -> Imported:
        """Note a base model that lies in a folder or a checkpoint; it is not copied.

        Raises:
            MissingFileError, BaseModelError: there is none, or none that can be used.
        """
        return self._add(reading.read_base(path), path, name, tags, owner, in_place=True, suffix="")

    def add_plan(self, path: Path, *, name: str | None = None, tags: Sequence[str] = (), owner: str = "") -> Imported:
        """Bring in a plan of a composition. Raises ConfigError when it is none."""
        return self._add(reading.read_plan_file(path), path, name, tags, owner, in_place=False, suffix=".json")

    def add_picture(
        self,
        path: Path,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        owner: str = "",
        in_place: bool = False,
        score: float | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Imported:
        """Bring in a picture, with what it says about how it was made. Raises ImageError when it cannot be used."""
        found = reading.read_picture(path)
        found = replace(found, facts={**found.facts, **(facts or {})})
        return self._add(found, path, name, tags, owner, in_place=in_place, suffix=path.suffix.lower(), score=score)

    def add_anything(self, path: Path, *, tags: Sequence[str] = (), owner: str = "", in_place: bool = False) -> Imported:
        """Bring in one file as what its name says it is: an adapter, a plan or a picture."""
        suffix = path.suffix.lower()
        if suffix in _PICTURES:
            return self.add_picture(path, tags=tags, owner=owner, in_place=in_place)
        if suffix in _PLANS:
            return self.add_plan(path, tags=tags, owner=owner)
        return self.add_adapter(path, tags=tags, owner=owner, in_place=in_place)

    def add_folder(
        self,
        folder: Path,
        *,
        tags: Sequence[str] = (),
        owner: str = "",
        in_place: bool = False,
        on_file: Callable[[int, int], None] | None = None,
    ) -> list[Imported]:
        """Bring in every adapter file of a folder and of those in it; what is refused is in the result with the reason.

        Links that lead out of the folder are not followed.

        Raises:
            MissingFileError: there is no folder.
        """
        if not folder.is_dir():
            raise MissingFileError(f"There is no folder {folder}.")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".safetensors" and not path.is_dir())
        done = []
        for number, path in enumerate(files, start=1):
            try:
                refuse_links_out(path, folder)
                done.append(self.add_adapter(path, tags=tags, owner=owner, in_place=in_place))
            except StudioError as error:
                done.append(Imported(path, None, refused=str(error)))
            if on_file is not None:
                on_file(number, len(files))
        return done

    # ---------------------------------------------------------------------------------------------------------- changing

    def edit(
        self,
        item_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        trigger: str | None = None,
        class_noun: str | None = None,
        favourite: bool | None = None,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
    ) -> Item:
        """Change what is written about an item; None leaves it as it is.

        Raises:
            MissingFileError: there is no such item. ConfigError: a text is too long or empty.
        """
        item = self.catalogue.get(item_id)
        given = {"name": name, "notes": notes, "trigger": trigger, "class_noun": class_noun, "favourite": favourite}
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        _check_texts(values)
        gone = {tag.strip().casefold() for tag in remove_tags}
        tags = [tag for tag in item.tags if tag.casefold() not in gone]
        changed = replace(item, **values, tags=clean_tags([*tags, *add_tags]))
        return self.catalogue.put(changed)

    def resolve(self, text: str, kind: Kind = Kind.ADAPTER) -> tuple[Path, str | None]:
        """The file that `text` means, and its id: an item of the library, or else a path.

        Raises:
            MissingFileError: there is neither. UserError: it could be several items.
        """
        found = self.catalogue.matching(text, kind)
        if not found and Path(text).expanduser().exists():
            return Path(text).expanduser().absolute(), None
        item = self.catalogue.get(text, kind)
        if not item.path.exists():
            from studio.library.upkeep import find_moved

            item = find_moved(self, item)
        return item.path, item.id

    def thumbnail(self, item_id: str) -> Path | None:
        """The item's small picture, if there is one."""
        path = thumbnail_path(self.folder, item_id)
        return path if path.is_file() else None

    # -------------------------------------------------------------------------------------------------------- underneath

    def _add(
        self,
        found: Found,
        source: Path,
        name: str | None,
        tags: Sequence[str],
        owner: str,
        *,
        in_place: bool,
        suffix: str,
        score: float | None = None,
    ) -> Imported:
        known = self.catalogue.find(found.id)
        if known is not None and known.trashed is None and known.path.exists():
            return Imported(source, known)
        title = found.name if name is None else name
        _check_texts({"name": title})
        target = self._place(found, source, title, in_place=in_place, suffix=suffix)
        picture = found.picture
        if picture is not None:
            write_thumbnail(self.folder, found.id, picture)
        item = Item(
            id=found.id,
            kind=found.kind,
            name=title,
            path=target,
            num_bytes=found.num_bytes,
            added=time.time() if known is None else known.added,
            owner=owner,
            family=found.family,
            type=found.type,
            rank=found.rank,
            trigger=found.trigger,
            class_noun=found.class_noun,
            score=score,
            notes=found.notes if known is None else known.notes,
            tags=clean_tags([*found.tags, *tags, *(() if known is None else known.tags)]),
            favourite=known is not None and known.favourite,
            content=found.content,
            has_thumbnail=picture is not None,
            facts=dict(found.facts),
        )
        return Imported(source, self.catalogue.put(item), new=True)

    def _place(self, found: Found, source: Path, title: str, *, in_place: bool, suffix: str) -> Path:
        """Where the item's file will be; copied there unless it stays in place."""
        if in_place:
            return source.expanduser().absolute()
        target = self.folder / f"{found.kind}s" / file_name(title, found.id, suffix)
        if found.kind == Kind.CONCEPT:
            for file in found.files:
                copy_file(file, target / file.name)
        elif found.kind == Kind.PLAN:
            from studio.pipelines.files import atomic_write_json

            atomic_write_json(target, found.facts["plan"])
        elif copy_file(source, target) != found.id:
            target.unlink()
            raise UserError(f"{source} changed while it was being read; import it again when it is no longer written to.")
        return target


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without spaces around them and without repeats, whatever their case; `ConfigError` for too many or too long ones."""
    found: dict[str, str] = {}
    for tag in tags:
        text = " ".join(tag.split())
        if len(text) > 100:
            raise ConfigError(f"The tag {text[:40]!r}… is too long; 100 letters are the most.")
        if text:
            found.setdefault(text.casefold(), text)
    if len(found) > MAX_TAGS:
        raise ConfigError(f"{len(found)} tags are too many for one item; {MAX_TAGS} are the most.")
    return tuple(found.values())


def _check_texts(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, str):
            limit = MAX_NOTES if key == "notes" else 300
            if len(value) > limit:
                raise ConfigError(f"The {key.replace('_', ' ')} has {len(value)} letters; {limit} are the most.")
    if "name" in values and not values["name"].strip():
        raise ConfigError("A name should not be empty.")
