"""Reading the state again, on loading and every few seconds, so that a reload or a second tab shows the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

CSS_HIDDEN = "hidden"


def refresh(
    look: Callable[..., Any], outputs: Sequence[gr.components.Component], *, inputs: Sequence[Any] = (), every: float = 2.0
) -> gr.Timer:
    """Call `look` when the page opens and every `every` seconds; `look` returns `gr.skip()` for what did not change."""
    blocks = gr.context.Context.root_block
    assert blocks is not None
    timer = gr.Timer(every)
    quiet = {"show_progress": CSS_HIDDEN, "queue": False, "api_visibility": "private"}
    blocks.load(look, list(inputs), list(outputs), **quiet)
    timer.tick(look, list(inputs), list(outputs), trigger_mode="once", **quiet)
    return timer


def first_time(fill: Callable[..., Any], outputs: Sequence[Any], *, inputs: Sequence[Any] = ()) -> None:
    """Call `fill` when the page opens."""
    blocks = gr.context.Context.root_block
    assert blocks is not None
    blocks.load(fill, list(inputs), list(outputs), show_progress=CSS_HIDDEN, queue=False, api_visibility="private")
