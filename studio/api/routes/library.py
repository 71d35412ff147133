"""The library: what there is, what is written about it, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, Response

from studio.api.asks import plain
from studio.api.cursors import cursor_of, place_of
from studio.api.desk import LibraryDesk, ReadDesk
from studio.api.problems import Problem
from studio.api.routes.jobs import PICTURES, Cursor
from studio.api.views import ItemList, ItemView, item_view
from studio.pipelines.errors import UserError
from studio.service import Item, ItemFilter, Kind

router = APIRouter(tags=["library"])

AnItem = Annotated[str, InPath(pattern="^[0-9a-f]{64}$", description="The thing's id.")]
Words = Annotated[str, AfterValidator(plain)]
Tag = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(plain)]

_SENT = {".safetensors": "application/octet-stream", ".json": "application/json", **PICTURES}
_NO_SCRIPTS = "default-src 'none'; frame-ancestors 'none'; sandbox"


class Edit(BaseModel):
    """What is written about a thing; what is left out stays."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[Words, Field(min_length=1, max_length=300)] | None = None
    notes: Annotated[Words, Field(max_length=20_000)] | None = None
    trigger: Annotated[Words, Field(max_length=300)] | None = None
    class_noun: Annotated[Words, Field(max_length=300)] | None = None
    favourite: bool | None = None
    add_tags: Annotated[list[Tag], Field(max_length=64)] = Field(default_factory=list)
    remove_tags: Annotated[list[Tag], Field(max_length=64)] = Field(default_factory=list)


@router.get("/library")
def list_items(
    desk: ReadDesk,
    kind: Kind | None = None,
    words: Annotated[str, Query(max_length=300, description="Words, or beginnings of words, that it must have.")] = "",
    tag: Annotated[list[str], Query(max_length=16)] = [],  # noqa: B006 - FastAPI copies it
    family: Annotated[str | None, Query(max_length=100)] = None,
    type: Annotated[str | None, Query(max_length=100)] = None,  # noqa: A002 - the library's own word
    favourite: bool | None = None,
    in_trash: bool = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Cursor = None,
) -> ItemList:
    """Things, the latest first."""
    wanted = ItemFilter(
        kind=kind, words=words, tags=tag, family=family, type=type, favourite=favourite, in_trash=in_trash, owners=desk.owners
    )
    page = desk.studio.items(wanted, limit=limit, cursor=None if cursor is None else place_of(cursor))
    return ItemList(
        items=[item_view(desk, item) for item in page.items], next=None if page.next is None else cursor_of(page.next)
    )


@router.get("/library/{item_id}")
def show_item(desk: ReadDesk, item_id: AnItem) -> ItemView:
    """All that is known of a thing."""
    return item_view(desk, desk.item(item_id))


@router.patch("/library/{item_id}")
def edit_item(desk: LibraryDesk, item_id: AnItem, edit: Edit) -> ItemView:
    """Change what is written about a thing."""
    _present(desk.item(item_id, change=True))
    library = desk.studio.library
    item = library.edit(
        item_id,
        name=edit.name,
        notes=edit.notes,
        trigger=edit.trigger,
        class_noun=edit.class_noun,
        favourite=edit.favourite,
        add_tags=edit.add_tags,
        remove_tags=edit.remove_tags,
    )
    return item_view(desk, item)


@router.delete("/library/{item_id}")
def trash_item(desk: LibraryDesk, item_id: AnItem) -> ItemView:
    """Put a thing into the trash; there is a way back."""
    _present(desk.item(item_id, change=True))
    return item_view(desk, desk.studio.trash(item_id))


@router.post("/library/{item_id}/restore")
def restore_item(desk: LibraryDesk, item_id: AnItem) -> ItemView:
    """Take a thing out of the trash again."""
    item = desk.item(item_id, change=True)
    if item.trashed is None:
        raise Problem(409, f"{item.name!r} is not in the trash.")
    try:
        return item_view(desk, desk.studio.restore(item_id))
    except UserError as error:
        raise Problem(409, desk.told(str(error))) from error


@router.get("/library/{item_id}/thumbnail", response_class=FileResponse, responses={200: {"content": {"image/webp": {}}}})
def item_thumbnail(desk: ReadDesk, item_id: AnItem) -> Response:
    """A small picture of a thing."""
    item = desk.item(item_id)
    path = desk.studio.library.thumbnail(item.id)
    if path is None:
        raise Problem(404, f"There is no small picture of {item.name!r}.")
    return FileResponse(path, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/library/{item_id}/file", response_class=FileResponse, responses={200: {"content": {"application/octet-stream": {}}}}
)
def item_file(desk: ReadDesk, item_id: AnItem) -> Response:
    """An adapter, a picture or a plan, as it lies on the disk."""
    item = desk.item(item_id)
    suffix = item.path.suffix.lower()
    if item.kind not in (Kind.ADAPTER, Kind.PICTURE, Kind.PLAN) or suffix not in _SENT or not item.path.is_file():
        raise Problem(404, f"{item.name!r} is not one file that can be sent.")
    headers = {"Content-Security-Policy": _NO_SCRIPTS, "Cache-Control": "private, no-cache"}
    return FileResponse(item.path, media_type=_SENT[suffix], filename=_file_name(item.path), headers=headers)


def _file_name(path: Path) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in path.name)


def _present(item: Item) -> None:
    if item.trashed is not None:
        raise Problem(409, f"{item.name!r} is in the trash; take it out first.")
