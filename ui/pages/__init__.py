"""The pages, as an explicit list."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from studio.service import Studio
from studio.ui.pages import batch, compose, create, gallery, library, queue, start, stylize, system, train
from studio.ui.settings import UiSettings


class Page(NamedTuple):
    """One page: its name in the catalogue of strings, its address, and what builds it."""

    name: str
    path: str
    build: Callable[[Studio, UiSettings], None]


PAGES: tuple[Page, ...] = (
    Page("start", "", start.build),
    Page("train", "train", train.build),
    Page("create", "create", create.build),
    Page("compose", "compose", compose.build),
    Page("stylize", "stylize", stylize.build),
    Page("batch", "batch", batch.build),
    Page("library", "library", library.build),
    Page("gallery", "gallery", gallery.build),
    Page("queue", "queue", queue.build),
    Page("system", "system", system.build),
)
