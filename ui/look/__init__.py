"""How the pages look: colours, type and one style sheet, light and dark."""

from __future__ import annotations

from functools import cache
from importlib import resources

import gradio as gr

_SYSTEM = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"]


def _text(name: str) -> str:
    return resources.files("studio.ui.look").joinpath(name).read_text(encoding="utf-8")


STYLE = _text("style.css")


def head() -> str:
    """What goes into every page's head."""
    return '<meta name="color-scheme" content="light dark"><meta name="referrer" content="same-origin">'


@cache
def script(name: str) -> str:
    """A small program for a widget, by its file's name."""
    return _text(f"{name}.js")


def theme() -> gr.themes.Base:
    """Gradio's own components in our colours; fonts are the system's, so that none is fetched."""
    accent = gr.themes.Color(
        c50="#f1f4ff", c100="#e3e9ff", c200="#c9d4ff", c300="#a8b8ff", c400="#8ea2ff", c500="#4f6df5", c600="#3f5be0",
        c700="#3349bd", c800="#2b3d97", c900="#263574", c950="#182045", name="studio",
    )  # fmt: skip
    grey = gr.themes.Color(
        c50="#f7f8fb", c100="#eef0f5", c200="#e0e4ec", c300="#c9d0dc", c400="#98a2b3", c500="#667085", c600="#4d566a",
        c700="#363d4d", c800="#232936", c900="#1b202b", c950="#12151c", name="studio-grey",
    )  # fmt: skip
    base = gr.themes.Base(
        primary_hue=accent, secondary_hue=accent, neutral_hue=grey, radius_size="lg", spacing_size="md", text_size="md",
        font=_SYSTEM, font_mono=_MONO,
    )  # fmt: skip
    return base.set(
        body_background_fill="#f5f6fa", body_background_fill_dark="#12151c",
        body_text_color="#1d2433", body_text_color_dark="#e8ebf2",
        body_text_color_subdued="#5a6479", body_text_color_subdued_dark="#a3adbd",
        block_background_fill="#ffffff", block_background_fill_dark="#1b202b",
        block_border_width="1px", block_border_color="#e3e7ef", block_border_color_dark="#2c3342",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_label_border_width="0px", block_label_text_color="#4d566a", block_label_text_color_dark="#b4bdcb",
        block_title_text_color="#323a4b", block_title_text_color_dark="#d3d9e4", block_title_text_weight="600",
        block_info_text_color="#5a6479", block_info_text_color_dark="#a3adbd",
        input_background_fill="#ffffff", input_background_fill_dark="#151922",
        input_border_color="#cfd6e2", input_border_color_dark="#3a4355", input_border_width="1px",
        input_placeholder_color="#727c91", input_placeholder_color_dark="#8b95a7",
        button_primary_background_fill="#3f5be0", button_primary_background_fill_hover="#3349bd",
        button_primary_background_fill_dark="#3f5be0", button_primary_background_fill_hover_dark="#3349bd",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_dark="#232936",
        button_secondary_border_color="#cfd6e2", button_secondary_border_color_dark="#3a4355",
        button_border_width="1px", panel_border_width="0px", shadow_drop="none", shadow_drop_lg="none",
        block_shadow="none",
        checkbox_border_color="#8b95a7", checkbox_border_color_dark="#7a8598",
        checkbox_background_color_dark="#151922",
    )  # fmt: skip
