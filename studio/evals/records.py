"""Raw records beside every table: one JSON object a line, appended as they are made, so that an eval can resume."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]


class RecordLog:
    """An append-only JSONL file whose records are found again by their `id`.

    A line that a killed process left unfinished is dropped when the log is opened. The first line is a header that
    names what was measured (settings, model hashes); a log with another header is refused by `open_log`.
    """

    def __init__(self, path: Path, header: Record, records: dict[str, Record]) -> None:
        self.path = path
        self.header = header
        self._records = records

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._records

    def __len__(self) -> int:
        return len(self._records)

    def all(self) -> list[Record]:
        """Every record, in the order it was written."""
        return list(self._records.values())

    def append(self, records: Iterable[Record]) -> None:
        """Write records to the end of the file; each needs an `id` that is not there yet."""
        new = list(records)
        for record in new:
            if record["id"] in self._records:
                raise ValueError(f"record {record['id']!r} is already in {self.path}")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in new)
        self._records.update({record["id"]: record for record in new})


def open_log(path: Path, header: Record) -> RecordLog:
    """Open a log for going on, or begin it. One with another header is begun afresh: its figures are another thing's.

    The old file is kept beside the new one under the name `<name>.old`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain_header = json.loads(json.dumps(header))
    if path.exists():
        lines = _complete_lines(path)
        if lines and lines[0] == {"header": plain_header}:
            records = {line["id"]: line for line in lines[1:]}
            _rewrite(path, lines)
            return RecordLog(path, plain_header, records)
        path.replace(path.with_name(path.name + ".old"))
    _rewrite(path, [{"header": plain_header}])
    return RecordLog(path, plain_header, {})


def read_log(path: Path) -> tuple[Record, list[Record]]:
    """Header and records of a finished log."""
    lines = _complete_lines(path)
    return lines[0]["header"], list(lines[1:])


def _complete_lines(path: Path) -> list[Record]:
    lines: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _rewrite(path: Path, lines: Iterable[Record]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines), encoding="utf-8")
