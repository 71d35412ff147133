"""metrics.jsonl: one JSON object a line, kept in memory and written now and then."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from studio.training.checkpoint import output_errors

FLUSH_SECONDS = 2.0


class MetricsLog:
    """Appends records; a record is on the disk after `flush`, or two seconds later at the next `add`."""

    def __init__(self, path: Path, *, keep_through: int) -> None:
        """Open `path`, dropping records of forward passes after `keep_through` (they are about to be done again)."""
        self._path = path
        self._waiting: list[str] = []
        self._flushed_at = time.monotonic()
        records = [record for record in read_metrics(path) if record.get("micro_step", 0) <= keep_through]
        with output_errors(path.parent):
            temporary = path.with_suffix(".jsonl.tmp")
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            os.replace(temporary, path)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one record (JSON-like; has a "micro_step")."""
        self._waiting.append(json.dumps(record))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OutputError when the disk is full."""
        if self._waiting:
            with output_errors(self._path.parent), open(self._path, "a", encoding="utf-8") as stream:
                stream.write("\n".join(self._waiting) + "\n")
            self._waiting.clear()
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records; a last line that was cut off is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
