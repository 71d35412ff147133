"""Bringing things in: files that were sent, never addresses to fetch, checked before anything is kept.

A file's own name is only ever a title: on the disk it gets a name of ours, in a folder of the studio's that is removed
when it has been read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from studio.api.asks import PlanAsk
from studio.api.desk import Desk, LibraryDesk
from studio.api.once import Answer, Key, once
from studio.api.problems import Problem, status_of
from studio.api.routes.library import Tag, Words
from studio.api.settings import Limits
from studio.api.views import Uploaded, item_view
from studio.pipelines.errors import UserError
from studio.pipelines.files import output_errors
from studio.service import Home, Imported
from studio.training.data.images import READABLE_SUFFIXES

router = APIRouter(tags=["upload"])

Title = Annotated[Words, Field(min_length=1, max_length=300)] | None
Tags = Annotated[list[Tag], Field(max_length=64)]
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_BLOCK = 1 << 20


class _Parcel:
    """Files of one upload in a folder of ours, under names of ours."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        self.limits, self.folder = limits, folder
        self._titles: dict[Path, str] = {}

    def save(self, file: UploadFile, stem: str, allowed: Sequence[str]) -> Path:
        """Save a file. Raises Problem 415 for another ending than those allowed, 422 for a name that was there before."""
        path = self.folder / f"{stem}{_suffix(file, allowed)}"
        if path in self._titles:
            raise Problem(422, f"Two files are called {_title(file)!r}; give them different names.")
        self._titles[path] = _title(file)
        file.file.seek(0)
        with output_errors(path), path.open("xb") as target:
            shutil.copyfileobj(file.file, target, _BLOCK)
        return path

    def check_pixels(self, file: UploadFile, path: Path) -> None:
        """Problem 413 for a picture with too many pixels, as its header says: it is not decoded."""
        from PIL import Image

        most = self.limits.pixels
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large pictures; we have our own limit
                with Image.open(path) as opened:
                    width, height = opened.size
        except Image.DecompressionBombError:
            raise Problem(413, f"{_title(file)!r} has far too many pixels; {most / 1e6:g} megapixels are the most.") from None
        except Exception:  # a parser of hostile files can raise anything; what is wrong is told when it is read
            return
        if width * height > most:
            told = f"{width} × {height} pixels are {width * height / 1e6:.0f} megapixels"
            raise Problem(413, f"{_title(file)!r}: {told}, and {most / 1e6:g} are the most.")

    def as_sent(self, sentence: str) -> str:
        """A sentence about our files, with the names under which they were sent."""
        for path, title in self._titles.items():
            sentence = sentence.replace(str(path), repr(title))
        return sentence.replace(f"{self.folder}/", "").replace(str(self.folder), "the upload")


class PlanUpload(BaseModel):
    """A plan to keep."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    plan: PlanAsk
    name: Title = None
    tags: Tags = Field(default_factory=list)


@router.post("/upload/adapter", status_code=201, response_model=Uploaded)
def upload_adapter(
    desk: LibraryDesk,
    request: Request,
    file: Annotated[UploadFile, File(description="A .safetensors file of any dialect.")],
    name: Annotated[Title, Form()] = None,
    tags: Annotated[Tags, Form()] = [],  # noqa: B006 - FastAPI copies it
    key: Key = None,
) -> Response:
    """Bring in an adapter. Pickles, whatever they are called, are refused."""

    def bring(parcel: _Parcel) -> Imported:
        path = parcel.save(file, "adapter", (".safetensors",))
        return desk.studio.import_adapter(path, name=name or _title(file), tags=tags)

    return _bring_in(desk, request, [file], {"name": name, "tags": tags}, bring, key)


@router.post("/upload/picture", status_code=201, response_model=Uploaded)
def upload_picture(
    desk: LibraryDesk,
    request: Request,
    file: Annotated[UploadFile, File(description="A PNG, JPEG or WebP file.")],
    name: Annotated[Title, Form()] = None,
    tags: Annotated[Tags, Form()] = [],  # noqa: B006
    key: Key = None,
) -> Response:
    """Bring in a picture, with what it says about how it was made."""

    def bring(parcel: _Parcel) -> Imported:
        path = parcel.save(file, "picture", _PICTURES)
        parcel.check_pixels(file, path)
        return desk.studio.import_picture(path, name=name or _title(file), tags=tags)

    return _bring_in(desk, request, [file], {"name": name, "tags": tags}, bring, key)


@router.post("/upload/concept", status_code=201, response_model=Uploaded)
def upload_concept(
    desk: LibraryDesk,
    request: Request,
    files: Annotated[list[UploadFile], File(description="Photos; a .txt of the same name is a photo's caption.")],
    name: Annotated[Title, Form()] = None,
    class_noun: Annotated[Title, Form()] = None,
    trigger: Annotated[Title, Form()] = None,
    tags: Annotated[Tags, Form()] = [],  # noqa: B006
    key: Key = None,
) -> Response:
    """Bring in the photos of one concept."""
    most = desk.counter.settings.limits.photos
    if len(files) > 2 * most:
        raise Problem(413, f"{len(files)} files are too many for one concept; {most} photos with captions are the most.")

    def bring(parcel: _Parcel) -> Imported:
        stems: dict[str, str] = {}
        for file in files:
            stem = stems.setdefault(_title(file).casefold(), f"photo-{len(stems) + 1:04}")
            path = parcel.save(file, stem, (*READABLE_SUFFIXES, ".txt"))
            if path.suffix != ".txt":
                parcel.check_pixels(file, path)
        if len(stems) > most:
            raise Problem(413, f"{len(stems)} photos are too many for one concept; {most} are the most.")
        title = name or class_noun or "photos"
        return desk.studio.import_concept(parcel.folder, name=title, class_noun=class_noun, trigger=trigger, tags=tags)

    values = {"name": name, "class_noun": class_noun, "trigger": trigger, "tags": tags}
    return _bring_in(desk, request, files, values, bring, key)


@router.post("/upload/plan", status_code=201, response_model=Uploaded)
def upload_plan(desk: LibraryDesk, request: Request, upload: PlanUpload, key: Key = None) -> Response:
    """Keep a plan of a composition."""

    def bring(parcel: _Parcel) -> Imported:
        plan = upload.plan.to_plan(desk)
        values = plan.model_dump(mode="json", exclude_defaults=True)
        path = parcel.folder / "plan.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        return desk.studio.import_plan(path, name=upload.name or "plan", tags=upload.tags)

    return _bring_in(desk, request, [], upload.model_dump(mode="json"), bring, key)


def _bring_in(
    desk: Desk,
    request: Request,
    files: Sequence[UploadFile],
    values: Mapping[str, object],
    bring: Callable[[_Parcel], Imported],
    key: str | None,
) -> Response:
    def make() -> Answer:
        desk.counter.throttle.upload(desk.caller.owner, sum(file.size or 0 for file in files))
        with _own_folder(desk) as folder:
            parcel = _Parcel(desk.counter.settings.limits, folder)
            try:
                done = bring(parcel)
            except UserError as error:
                raise Problem(status_of(error), desk.told(parcel.as_sent(str(error)))) from error
        item = done.item
        assert item is not None
        if desk.owners is not None and item.owner not in desk.owners:
            raise Problem(409, "Somebody else has brought in this very file; ask whoever runs this studio to share it.")
        return Answer(201, Uploaded(item=item_view(desk, item), new=done.new))

    asked = [request.url.path, values, [[_title(file), _digest(file)] for file in files] if key is not None else []]
    return once(desk.counter.access, desk.caller.owner, key, asked, make)


def remove_leftovers(home: Home, older_than_seconds: float = 86_400.0) -> None:
    """Remove what processes that were killed in the middle of an upload left behind."""
    until = time.time() - older_than_seconds
    for folder in (home.root / "uploads").glob("*"):
        if folder.stat().st_mtime < until:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_folder(desk: Desk) -> Iterator[Path]:
    place = desk.studio.home.root / "uploads"
    with output_errors(place):
        place.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _suffix(file: UploadFile, allowed: Sequence[str]) -> str:
    suffix = PurePosixPath(PureWindowsPath(file.filename or "").name).suffix.lower()
    if suffix not in allowed:
        raise Problem(415, f"{_title(file)!r} is not taken: files should end with {', '.join(allowed)}.")
    return suffix


def _title(file: UploadFile) -> str:
    """The file's name without folders and ending, as a title."""
    name = PurePosixPath(PureWindowsPath(file.filename or "").name).stem
    shown = "".join(letter for letter in name if letter.isprintable()).strip()
    return shown.encode("utf-8", "replace").decode()[:200] or "file"


def _digest(file: UploadFile) -> str:
    file.file.seek(0)
    digest = hashlib.sha256()
    while block := file.file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
