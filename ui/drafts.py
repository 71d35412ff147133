"""Photos that were handed to the page and are not yet a concept: on the disk at once, so that a reload loses nothing.

::

    drafts/ID/ originals/01.jpg …   as they came
               photos/01.jpg …      as they will be trained on: cropped if wanted; 01.txt beside them is the caption
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.pipelines.errors import ImageError, MissingFileError, UserError
from studio.pipelines.files import atomic_write_text, output_errors
from studio.training.data.folder import natural_key
from studio.training.data.images import READABLE_SUFFIXES, read_photo

MAX_PHOTOS = 500
MAX_CAPTION = 2_000
_ID = re.compile(r"[0-9a-f]{16}")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Draft:
    """One set of photos."""

    id: str
    folder: Path

    @property
    def photos_dir(self) -> Path:
        """The folder to train on."""
        return self.folder / "photos"

    def photos(self) -> list[Path]:
        """The photos, in order."""
        files = self.photos_dir.glob("*") if self.photos_dir.is_dir() else ()
        return sorted(
            (path for path in files if path.suffix.lower() in READABLE_SUFFIXES), key=lambda path: natural_key(path.name)
        )

    def photo(self, name: str) -> Path:
        """One photo. Raises MissingFileError when there is none of that name."""
        for path in self.photos():
            if path.name == name:
                return path
        raise MissingFileError(f"There is no photo {name!r} here any more.")

    def add(self, files: Sequence[Path]) -> list[str]:
        """Take in copies of `files`; returns a sentence for each that was refused, from its header or its content."""
        problems = []
        number = max((int(path.stem) for path in self.photos() if path.stem.isdigit()), default=0)
        for file in files:
            if len(self.photos()) >= MAX_PHOTOS:
                problems.append(f"{MAX_PHOTOS} photos are the most; the others were left out.")
                break
            try:
                read_photo(file)
            except ImageError as error:
                problems.append(str(error).replace(str(file.parent) + "/", ""))
                continue
            number += 1
            name = f"{number:02d}{file.suffix.lower()}"
            with output_errors(self.folder):
                for folder in (self.folder / "originals", self.photos_dir):
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, folder / name)
            caption = file.with_suffix(".txt")
            if caption.is_file():
                self.write_caption(name, caption.read_text(encoding="utf-8", errors="replace"))
        return problems

    def remove(self, name: str) -> None:
        """Take a photo out."""
        path = self.photo(name)
        path.with_suffix(".txt").unlink(missing_ok=True)
        path.unlink()

    def caption(self, name: str) -> str:
        """The photo's caption; "" if it has none."""
        path = self.photo(name).with_suffix(".txt")
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def write_caption(self, name: str, text: str) -> None:
        """Set a caption; an empty one removes it. Raises UserError for a very long one."""
        if len(text) > MAX_CAPTION:
            raise UserError(f"The caption has {len(text)} letters; {MAX_CAPTION} are the most.")
        path = self.photo(name).with_suffix(".txt")
        if text.strip():
            atomic_write_text(path, " ".join(text.split()))
        else:
            path.unlink(missing_ok=True)

    def crop(self, name: str, box: Box | None) -> None:
        """Keep only `box` (left, top, right, bottom as fractions of the upright photo), or the whole photo again."""
        path = self.photo(name)
        original = self.folder / "originals" / name
        if box is None:
            shutil.copyfile(original, path)
            return
        image = read_photo(original).image
        left, top, right, bottom = (min(1.0, max(0.0, value)) for value in box)
        pixels = (round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height))
        if min(pixels[2] - pixels[0], pixels[3] - pixels[1]) < 16:
            raise UserError("The crop is smaller than 16 pixels; draw a larger one.")
        temporary = path.with_name(f".{path.name}.part")
        cropped = image.crop(pixels)
        cropped.save(temporary, format="JPEG" if "jp" in path.suffix else "PNG", quality=95)
        temporary.replace(path)


class Drafts:
    """All drafts of a home."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, draft_id: str) -> Path:
        """Where a draft lies. Raises MissingFileError for an id that is none."""
        if not _ID.fullmatch(draft_id):
            raise MissingFileError("There is no such draft.")
        return self.root / draft_id

    def new(self) -> Draft:
        """An empty one."""
        draft_id = secrets.token_hex(8)
        return Draft(draft_id, self.folder(draft_id))

    def open(self, draft_id: str | None) -> Draft:
        """The draft with this id; an empty one where it is gone."""
        if draft_id is None or not _ID.fullmatch(draft_id) or not self.folder(draft_id).is_dir():
            return self.new()
        return Draft(draft_id, self.folder(draft_id))
