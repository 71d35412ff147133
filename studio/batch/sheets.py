"""Contact sheets of a batch: pictures where they stand on the axes, with the values at the edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from studio.pipelines.errors import ConfigError
from studio.pipelines.pictures import contact_sheet

BLANK = (236, 238, 243)
_MAX_CELL = 512


class Placed(Protocol):
    """A picture with a place on the axes."""

    @property
    def file(self) -> Path:
        """Where it lies."""
        ...

    @property
    def title(self) -> str:
        """Its prompt."""
        ...

    @property
    def seed(self) -> int:
        """Its seed."""
        ...

    @property
    def axes(self) -> Mapping[str, str]:
        """Key -> its value, in words."""
        ...


def grid_sheets(pictures: Sequence[Placed], axes: Sequence[str], grid: Mapping[str, str], title: str) -> list[Image.Image]:
    """A sheet for each combination of values that is neither a column nor a row.

    Args:
        axes: keys that vary, the slowest first: the last one becomes the columns, the one before it the rows.
        grid: which key is x (columns), y (rows) and z (sheets) instead.

    Raises:
        ConfigError: `grid` names a key that does not vary.
    """
    known = dict.fromkeys(key for picture in pictures for key in picture.axes)
    for key in grid.values():
        if key not in known:
            raise ConfigError(f"grid: {key!r} does not vary; there are: {', '.join(known) or 'no axes'}.")
    order = [key for key in axes if key in known] + [key for key in known if key not in axes]
    alike: dict[tuple[str, ...], list[Placed]] = {}
    for picture in pictures:
        alike.setdefault(tuple(key for key in order if key in picture.axes), []).append(picture)
    return [sheet for keys, members in alike.items() for sheet in _sheets(members, keys, grid, title)]


def _sheets(pictures: Sequence[Placed], keys: Sequence[str], grid: Mapping[str, str], title: str) -> list[Image.Image]:
    """The sheets of pictures that vary in the same keys."""
    if not keys:
        captions = [f"{picture.seed}: {picture.title}" for picture in pictures]
        return [contact_sheet([_opened(picture.file) for picture in pictures], captions, title=title)]
    wanted = {place: key for place, key in grid.items() if key in keys}
    free = [key for key in keys if key not in wanted.values()]
    column_key = wanted.get("x") or (free.pop() if free else keys[-1])
    row_key = wanted.get("y") or (free.pop() if free else None)
    page_keys = ([wanted["z"]] if "z" in wanted else []) + free
    pages: dict[tuple[str, ...], list[Placed]] = {}
    for picture in pictures:
        pages.setdefault(tuple(picture.axes.get(key, "") for key in page_keys), []).append(picture)
    sheets = []
    for values, members in pages.items():
        told = ", ".join(f"{key} {value}" for key, value in zip(page_keys, values, strict=True) if value)
        prompts = {picture.title for picture in members}
        told = told or (next(iter(prompts)) if len(prompts) == 1 else "")
        sheets.append(_sheet(members, column_key, row_key, f"{title}: {told}" if told else title))
    return sheets


def _sheet(pictures: Sequence[Placed], column_key: str, row_key: str | None, title: str) -> Image.Image:
    columns = list(dict.fromkeys(picture.axes.get(column_key, "") for picture in pictures))
    # Pictures that differ in nothing that is an axis stand in rows of their own.
    cells: dict[tuple[str, int], dict[str, Placed]] = {}
    for picture in pictures:
        row = "" if row_key is None else picture.axes.get(row_key, "")
        copy = 0
        while picture.axes.get(column_key, "") in cells.setdefault((row, copy), {}):
            copy += 1
        cells[row, copy][picture.axes.get(column_key, "")] = picture
    opened = {id(picture): _opened(picture.file) for picture in pictures}
    size = next(iter(opened.values())).size
    images = []
    for members in cells.values():
        for column in columns:
            here = members.get(column)
            images.append(Image.new("RGB", size, BLANK) if here is None else opened[id(here)])
    return contact_sheet(
        images,
        columns=len(columns),
        column_labels=[f"{column_key} {column}" for column in columns],
        row_labels=[f"{row_key} {row}" if row_key else "" for row, _ in cells] if row_key or len(cells) > 1 else None,
        title=title,
    )


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((_MAX_CELL, _MAX_CELL))
    return picture
