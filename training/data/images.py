"""Open one photo that somebody gives us: checked from its header before it is decoded, upright, and in plain RGB."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from studio.pipelines.errors import ImageError
from studio.training.data.colours import to_rgb

READABLE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
"""File names that hold pictures Pillow reads."""

FOREIGN_SUFFIXES = {
    ".heic": "HEIC", ".heif": "HEIF", ".svg": "SVG", ".pdf": "PDF", ".psd": "Photoshop", ".jxl": "JPEG XL",
    ".dng": "camera raw", ".cr2": "camera raw", ".cr3": "camera raw", ".nef": "camera raw", ".arw": "camera raw",
}  # fmt: skip
"""Pictures that we know of and cannot read."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What a photo may be.

    Attributes:
        max_pixels: width × height that is still decoded. min_side: shortest side, in pixels.
        max_aspect: longest side divided by the shortest.
    """

    max_pixels: int = 64_000_000
    min_side: int = 16
    max_aspect: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo as read.

    Attributes:
        path: its file. image: upright RGB picture of the original size.
        notes: what was changed on the way, a short phrase each. content_hash: SHA-256 of size and pixels, 64 hex digits.
    """

    path: Path
    image: Image.Image
    notes: tuple[str, ...]
    content_hash: str


def open_image(path: Path | str, limits: ImageLimits | None = None) -> Image.Image:
    """The picture in a file: upright, RGB, first frame.

    Raises:
        ImageError: it cannot be used; says the file, why, and what to do.
    """
    return read_photo(path, limits).image


def read_photo(path: Path | str, limits: ImageLimits | None = None) -> Photo:
    """The picture in a file, with notes on what was changed.

    The size is checked from the header, so that a small file that unpacks to gigabytes is refused before it does.

    Raises:
        ImageError: it cannot be used; says the file, why, and what to do.
    """
    path = Path(path)
    limits = ImageLimits() if limits is None else limits
    _check_file(path)
    # Pillow warns of large pictures (we have our own limit) and of odd metadata (it doesn't matter here).
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open_header(path) as opened:
            _check_size(path, opened.size, limits)
            notes: list[str] = []
            image = _first_frame(path, opened, notes)
            image = _upright(image, notes)
            try:
                image = to_rgb(image, notes)
            except (OSError, ValueError) as error:
                raise ImageError(f"{path}: colours of mode {image.mode} cannot be read; save it as an RGB PNG or JPEG") from error
    return Photo(path=path, image=image, notes=tuple(notes), content_hash=pixel_hash(image))


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 (64 hex digits) of an RGB picture's size and pixels."""
    digest = hashlib.sha256(f"RGB {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _check_file(path: Path) -> None:
    kind = FOREIGN_SUFFIXES.get(path.suffix.lower())
    if kind is not None:
        raise ImageError(_foreign(path, kind))
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder; name the picture itself")
        size = path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}); check its name and permissions") from error
    if size == 0:
        raise ImageError(f"{path}: is empty (0 bytes); copy the photo again")


def _foreign(path: Path, kind: str) -> str:
    return f"{path}: {kind} pictures cannot be read; save it as JPEG or PNG"


def _open_header(path: Path) -> Image.Image:
    """The lazily opened picture: format and size are known, nothing is decoded."""
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(_unknown_content(path)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels; make it smaller"
        ) from error
    except PermissionError as error:
        raise ImageError(f"{path}: may not be read; change its permissions") from error
    except Exception as error:  # a parser of hostile files can raise anything
        raise ImageError(f"{path}: its header is damaged ({error}); save the photo again as JPEG or PNG") from error


def _unknown_content(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return _foreign(path, "HEIC")
    if b"<svg" in head:
        return _foreign(path, "SVG")
    if head.startswith(b"%PDF"):
        return _foreign(path, "PDF")
    return (
        f"{path}: is no picture that can be read (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF), or its start is damaged; save it again"
    )


def _check_size(path: Path, size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{path}: {width} × {height} pixels are {width * height / 1e6:.0f} megapixels, and more than "
            f"{limits.max_pixels / 1e6:g} are refused; make it smaller (2048 pixels a side are plenty)"
        )
    if max(size) > limits.max_aspect * min(size):
        raise ImageError(
            f"{path}: {width} × {height} pixels are too long a shape (at most {limits.max_aspect:g}:1); crop it to the subject"
        )
    if min(size) < limits.min_side:
        raise ImageError(f"{path}: {width} × {height} pixels are too few (at least {limits.min_side} a side); use a larger photo")


def _first_frame(path: Path, opened: Image.Image, notes: list[str]) -> Image.Image:
    try:
        if getattr(opened, "is_animated", False) and opened.format != "MPO":  # MPO: a photo with its preview or depth
            opened.seek(0)
            notes.append(f"only the first of {getattr(opened, 'n_frames', 2)} frames is used")
        opened.load()
    except Exception as error:  # a decoder of hostile files can raise anything
        raise ImageError(f"{path}: is truncated or damaged ({error}); copy the photo again") from error
    return opened


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF written by anything; the picture itself is fine
        notes.append("its EXIF data is damaged, so it may not stand upright")
        return image
