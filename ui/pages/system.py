"""Placeholder."""

from studio.service import Studio
from studio.ui.settings import UiSettings


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
