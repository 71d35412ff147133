"""Small pictures of things, made when they are written and never later."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING

from studio.pipelines.errors import ImageError
from studio.pipelines.files import atomic_write_bytes

if TYPE_CHECKING:
    from PIL import Image

SIDE = 256
MAX_DATA_URL = 8_000_000


def thumbnail_path(library_dir: Path, item_id: str) -> Path:
    """Where an item's thumbnail is."""
    return library_dir / "thumbnails" / f"{item_id}.webp"


def write_thumbnail(library_dir: Path, item_id: str, image: Image.Image) -> None:
    """Write `image` at no more than 256 pixels a side; what is small stays as it is."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    atomic_write_bytes(thumbnail_path(library_dir, item_id), buffer.getvalue())


def sheet_of_four(images: list[Image.Image]) -> Image.Image:
    """Up to four pictures as one square."""
    from PIL import Image, ImageOps

    if len(images) < 4:
        return images[0]
    half = SIDE // 2
    sheet = Image.new("RGB", (SIDE, SIDE))
    for number, image in enumerate(images[:4]):
        sheet.paste(ImageOps.fit(image.convert("RGB"), (half, half)), (number % 2 * half, number // 2 * half))
    return sheet


def picture_of_data_url(url: str) -> Image.Image | None:
    """The picture in a data URL, as adapter files carry one; None where it is none, or too large to be a thumbnail."""
    from studio.training.data.images import ImageLimits, read_photo

    header, _, data = url.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64") or len(data) > MAX_DATA_URL:
        return None
    import tempfile

    try:
        content = base64.b64decode(data, validate=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "thumbnail.img"
            path.write_bytes(content)
            return read_photo(path, ImageLimits(max_pixels=4_000_000, min_side=1, max_aspect=50.0)).image
    except (binascii.Error, ValueError, ImageError):
        return None
