"""Pictures of a job: where they go, whether one is there already, and their place in the library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image

from studio.jobs.folder import HandedIn
from studio.library.library import Library
from studio.pipelines.pictures import PictureRecord, picture_name, save_picture, sidecar_path


class PictureShelf:
    """The output folder of one job, and the library that its pictures are entered into."""

    def __init__(self, handed_in: HandedIn, library: Library, *, metadata: bool) -> None:
        self.folder = handed_in.output_dir
        self.library = library
        self.metadata = metadata
        self._owner = handed_in.submit.owner
        self._facts = {"job": handed_in.id}

    def path_of(self, index: int, record: PictureRecord) -> Path:
        """Where picture number `index` goes."""
        return self.folder / picture_name(index, record.seed, record.prompt, record.content_hash())

    def has(self, index: int, record: PictureRecord) -> bool:
        """Whether the picture is there whole: its sidecar is the last thing that is written, and knows the file's hash."""
        path = self.path_of(index, record)
        if not self.metadata:
            return path.is_file()
        try:
            values = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
            return bool(values["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def put(self, index: int, image: Image.Image, record: PictureRecord) -> tuple[Path, str | None]:
        """Write a picture and enter it; its path, and its id in the library."""
        path = self.path_of(index, record)
        save_picture(path, image, record if self.metadata else None)
        return path, self.enter(path)

    def enter(self, path: Path) -> str | None:
        """Enter a picture that is there into the library; its id."""
        done = self.library.add_picture(path, owner=self._owner, in_place=True, facts=dict(self._facts))
        return None if done.item is None else done.item.id
