"""Pictures for the pages, by our own routes: small ones as WebP, whole ones as they lie on the disk."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response

from studio.pipelines.errors import ImageError, StudioError
from studio.pipelines.files import atomic_write_bytes
from studio.service import Studio
from studio.training.data.images import ImageLimits, open_image
from studio.ui.drafts import Drafts
from studio.ui.samples import SAMPLES, sample_photos
from studio.ui.start_pictures import StartPictures

SMALL_SIDE = 256
_SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".svg")
_LIMITS = ImageLimits(min_side=1, max_aspect=100.0)
_REPORTED = (*_SHOWN, ".html", ".csv", ".json", ".txt", ".safetensors", ".toml")
_NO_SCRIPTS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'none'",
}
_PRIVATE = {"Cache-Control": "private, max-age=3600"}

Hex = Annotated[str, PathParameter(pattern="^[0-9a-zA-Z-]{6,80}$")]
FileName = Annotated[str, PathParameter(pattern=r"^[\w.-]{1,120}$")]
Number = Annotated[int, PathParameter(ge=0, le=100_000)]


def media_router(studio: Studio) -> APIRouter:
    """Routes under /media: `items`, `jobs`, `previews`, `runs`, `outputs`, `reports`; `samples`, `starts`, `drafts`. `small` are
    the thumbnails."""
    router = APIRouter(prefix="/media", include_in_schema=False)
    shelf = SmallPictures(studio.home.root / "cache" / "small")
    _add_handed_in(router, studio, shelf)

    @router.get("/items/{item_id}/small")
    def item_small(item_id: Hex) -> Response:
        with _missing_as_404():
            found = studio.thumbnail(item_id)
            return FileResponse(found, headers=_PRIVATE) if found is not None else shelf.of(_picture(studio, item_id))

    @router.get("/items/{item_id}/whole")
    def item_whole(item_id: Hex) -> Response:
        with _missing_as_404():
            return _file(_picture(studio, item_id))

    @router.get("/jobs/{job_id}/{index}/{size}")
    def job_picture(job_id: Hex, index: Number, size: str) -> Response:
        with _missing_as_404():
            pictures = studio.result(job_id).pictures
            if index >= len(pictures):
                raise HTTPException(404)
            return shelf.of(pictures[index]) if size == "small" else _file(pictures[index])

    @router.get("/runs/{job_id}/{folder}/{name}")
    def run_picture(job_id: Hex, folder: FileName, name: FileName) -> Response:
        with _missing_as_404():
            root = studio.request(job_id).output_dir
            parent = {"photos": root / "photos", "masks": root / "masks"}.get(folder, root / "samples" / folder)
            return shelf.of(inside(parent / name, root))

    @router.get("/outputs/{job_id}/{path:path}")
    def output(job_id: Hex, path: str) -> Response:
        with _missing_as_404():
            root = studio.request(job_id).output_dir
            found = inside(root / path, root)
            if found.suffix.lower() not in _SHOWN[:-1]:
                raise HTTPException(404)
            return shelf.of(found)

    @router.get("/reports/{job_id}/{path:path}")
    def report(job_id: Hex, path: str) -> Response:
        with _missing_as_404():
            root = studio.request(job_id).output_dir
            found = inside(root / path, root)
            if found.suffix.lower() not in _REPORTED:
                raise HTTPException(404)
            return FileResponse(found, headers=_NO_SCRIPTS)

    @router.get("/previews/{job_id}")
    def preview(job_id: Hex) -> Response:
        with _missing_as_404():
            path = studio.store.folder(studio.job(job_id).id).preview
            return FileResponse(inside(path, path.parent), media_type="image/webp", headers=_PRIVATE)

    return router


def _add_handed_in(router: APIRouter, studio: Studio, shelf: SmallPictures) -> None:
    """Routes to what people handed in, and to what comes with the studio."""
    drafts, starts = Drafts(studio.home.root / "drafts"), StartPictures(studio)

    @router.get("/samples/{name}/{number}")
    def sample(name: FileName, number: Number) -> Response:
        photos = sample_photos(name) if name in SAMPLES else []
        if number >= len(photos):
            raise HTTPException(404)
        return FileResponse(photos[number], headers=_PRIVATE)

    @router.get("/starts/{picture_id}")
    def start_picture(picture_id: Hex) -> Response:
        with _missing_as_404():
            return shelf.of(starts.path(picture_id), 640)

    @router.get("/drafts/{draft_id}/{name}/{size}")
    def draft_photo(draft_id: Hex, name: FileName, size: str) -> Response:
        with _missing_as_404():
            root = drafts.folder(draft_id)
            return shelf.of(inside(root / ("originals" if size == "original" else "photos") / name, root), 640)


class SmallPictures:
    """Thumbnails of any pictures, kept in a folder by path and time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, path: Path, side: int = SMALL_SIDE) -> Response:
        """A WebP picture of at most `side` pixels; headers are checked before anything is decoded."""
        stat = path.stat()
        key = hashlib.sha256(f"{path} {stat.st_mtime_ns} {stat.st_size} {side}".encode()).hexdigest()[:40]
        kept = self.folder / f"{key}.webp"
        if not kept.is_file():
            image = open_image(path, _LIMITS)
            image.thumbnail((side, side))
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", quality=85)
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(kept, buffer.getvalue())
        return FileResponse(kept, media_type="image/webp", headers=_PRIVATE)


def inside(path: Path, root: Path) -> Path:
    """`path`, which is a file under `root` after every link was followed; 404 for anything else."""
    real = path.resolve()
    if not real.is_relative_to(root.resolve()) or not real.is_file():
        raise HTTPException(404)
    return real


def _picture(studio: Studio, item_id: str) -> Path:
    item = studio.item(item_id)
    if item.kind != "picture" or item.path.suffix.lower() not in _SHOWN:
        raise HTTPException(404)
    return item.path


def _file(path: Path) -> Response:
    if path.suffix.lower() not in _SHOWN or not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, headers=_PRIVATE)


class _missing_as_404:  # noqa: N801 - reads as what it does
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImageError):
            raise HTTPException(415, "The picture cannot be shown.") from error
        if isinstance(error, StudioError | OSError):
            raise HTTPException(404) from error
