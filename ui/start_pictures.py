"""Pictures that drawings start from or follow, and masks: kept under the home by the hash of their file.

::

    starts/SHA256.png     upright, RGB (a mask is grey), whatever the file was that somebody handed in
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from studio.pipelines.errors import MissingFileError, UserError
from studio.pipelines.files import atomic_write_bytes, output_errors
from studio.service import ControlPicture, StartPicture, Studio
from studio.training.data.images import ImageLimits, open_image

_ID = re.compile(r"[0-9a-f]{64}")
_LIMITS = ImageLimits(min_side=16, max_aspect=16.0)
WHOLE = [0.0, 0.0, 1.0, 1.0]
CHANGE = 0.6

Value = Mapping[str, Any]
"""Of the canvas: see `canvas.js`; and `picture`, `mask`: ids here. {} for no picture."""

NOTHING: dict[str, Any] = {"boxes": [], "active": 0, "background": None, "aspect": 1}


class StartPictures:
    """All of them at one home. An id is 64 hex digits; it is never a path."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.root = studio.home.root / "starts"

    def keep(self, file: Path) -> str:
        """Take in a picture; its id. Raises ImageError for what is none, or too large to be opened."""
        return self._write(open_image(file, _LIMITS))

    def path(self, picture_id: str) -> Path:
        """Its file: here, or in the library. Raises MissingFileError when there is none."""
        if not _ID.fullmatch(picture_id):
            raise MissingFileError("A picture to start from is named by its id.")
        path = self.root / f"{picture_id}.png"
        if path.is_file():
            return path
        item = self.studio.library.catalogue.find(picture_id)
        if item is None or item.kind != "picture" or not item.path.is_file():
            raise MissingFileError("The picture to start from is not there any more; drop it again.")
        return item.path

    def shown(self, picture_id: str | None, *, mask: str | None = None, title: str = "") -> dict[str, Any]:
        """The canvas with a picture, and a box around what is drawn anew (all of it) if it has a `title`."""
        if picture_id is None or not self._is_here(picture_id):
            return NOTHING
        with Image.open(self.path(picture_id)) as image:
            aspect = image.width / image.height
        boxes = [{"name": title, "box": None if mask else WHOLE}] if title else []
        return {
            "boxes": boxes, "active": 0, "plain": True, "background": f"/media/starts/{picture_id}", "aspect": aspect,
            "picture": picture_id, "mask": mask,
        }  # fmt: skip

    def start_of(self, value: Value | None, change: float) -> StartPicture | None:
        """What a drawing starts from, as the canvas has it; None for no picture. Raises MissingFileError, UserError."""
        if not value or not value.get("picture"):
            return None
        picture = self.path(str(value["picture"]))
        mask = self.path(str(value["mask"])) if value.get("mask") else self._box_mask(picture, value)
        return StartPicture(picture=str(picture), change=float(change), mask=None if mask is None else str(mask))

    def control_of(self, value: Value | None, model: str, scale: float) -> ControlPicture | None:
        """What a drawing follows; None for no picture. Raises MissingFileError, UserError when there is no ControlNet."""
        if not value or not value.get("picture"):
            return None
        if not model.strip():
            raise UserError("A picture to follow needs a ControlNet: name its folder, or take the picture away.")
        return ControlPicture(picture=str(self.path(str(value["picture"]))), model=model.strip(), scale=float(scale))

    def _is_here(self, picture_id: str) -> bool:
        try:
            return self.path(picture_id).is_file()
        except MissingFileError:
            return False

    def _box_mask(self, picture: Path, value: Value) -> Path | None:
        """A mask of the canvas's box; None where it is everything."""
        boxes = value.get("boxes") or []
        box = boxes[0].get("box") if boxes else None
        if not box or [round(float(side), 3) for side in box] == WHOLE:
            return None
        with Image.open(picture) as image:
            size = image.size
        mask = Image.new("L", size)
        left, top, right, bottom = (round(float(side) * length) for side, length in zip(box, (*size, *size), strict=True))
        mask.paste(255, (left, top, right, bottom))
        return self.path(self._write(mask))

    def _write(self, image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        picture_id = hashlib.sha256(buffer.getvalue()).hexdigest()
        with output_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self.root / f"{picture_id}.png", buffer.getvalue())
        return picture_id
