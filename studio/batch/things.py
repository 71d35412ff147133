"""Things of the library, which a batch may name by their ids in the place of files: no path is needed, and none is told."""

from __future__ import annotations

import re
from pathlib import Path

from studio.library.item import Item, Kind
from studio.library.library import Library
from studio.pipelines.errors import MissingFileError
from studio.storage.home import find_home

_ID = re.compile(r"([0-9a-f]{64})(?:\.safetensors)?")


class Things:
    """The library of one home, opened when the first id is met.

    Args:
        home: its folder; by default `STUDIO_HOME`, or where this system keeps a person's data.
    """

    def __init__(self, home: Path | None = None) -> None:
        self._home = home
        self._library: Library | None = None

    def find(self, name: str, kind: Kind) -> Item | None:
        """The thing whose id is `name`, with the path where it lies now; None if `name` is no id.

        Raises:
            MissingFileError: the library has no such thing of that kind, or its file is gone.
        """
        match = _ID.fullmatch(name)
        if match is None:
            return None
        if self._library is None:
            self._library = Library(find_home(self._home))
        path, item_id = self._library.resolve(match[1], kind)
        item = None if item_id is None else self._library.catalogue.find(item_id)
        if item is None or not path.exists():
            raise MissingFileError(f"there is no {kind} {match[1][:10]}… in the library.")
        return item

    def path(self, name: str, kind: Kind) -> Path | None:
        """Where the thing whose id is `name` lies; None if `name` is no id; errors as in `find`."""
        item = self.find(name, kind)
        return None if item is None else item.path
