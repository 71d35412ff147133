"""Tables say the same in three forms; logs of raw records resume."""

import csv
import io
import json

import pytest

from studio.evals.records import open_log, read_log
from studio.evals.statistics import wilson_interval
from studio.evals.tables import Table, write_table

TABLE = Table("Title", ("what", "share", "bar"), (("class", wilson_interval(9, 10), 0.95), ("style", None, None)), ("A note.",))


def test_one_table_three_forms(tmp_path):
    write_table(TABLE, tmp_path, "figures")
    text = (tmp_path / "figures.txt").read_text()
    assert text.startswith("Title\n")
    assert "0.900 [0.596, 0.982]" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "figures.csv").read_text())))
    assert rows[0]["share_num"] == "10"
    assert rows[1]["share"] == ""
    data = json.loads((tmp_path / "figures.json").read_text())
    assert data["rows"][0]["share"]["estimate"] == 0.9
    assert data["rows"][0]["bar"] == 0.95


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Table("t", ("one",), ((1, 2),))


def test_log_goes_on_after_a_torn_line(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    log = open_log(path, {"judge": "abc"})
    log.append([{"id": "a", "value": 1}, {"id": "b", "value": 2}])
    with path.open("a") as file:
        file.write('{"id": "c", "val')
    again = open_log(path, {"judge": "abc"})
    assert [record["id"] for record in again.all()] == ["a", "b"]
    assert "b" in again
    assert "c" not in again
    again.append([{"id": "c", "value": 3}])
    assert read_log(path) == ({"judge": "abc"}, again.all())
    with pytest.raises(ValueError, match="already"):
        again.append([{"id": "a"}])


def test_another_header_begins_afresh_and_keeps_the_old(tmp_path):
    path = tmp_path / "records.jsonl"
    open_log(path, {"judge": "abc"}).append([{"id": "a"}])
    assert len(open_log(path, {"judge": "def"})) == 0
    assert len(read_log(path.with_name("records.jsonl.old"))[1]) == 1
