"""What a batch leaves for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studio.batch.folder import BatchFolder
    from studio.batch.runner import Planned


def write_reports(planned: Planned, folder: BatchFolder, axes: Sequence[str], scorer: str | None) -> None:
    """Nothing yet."""
