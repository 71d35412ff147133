"""Everything that is made from the records of `studio eval trainers`: tables, claims, plot, grids and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from PIL import Image

from studio.evals.records import Record
from studio.evals.tables import Table, write_table
from studio.evals.trainers_claims import HELD, LEARNED_GAIN, MOST_FIDELITY_LOST, Claim, claims, claims_table
from studio.evals.trainers_plan import DEFAULT, Budget
from studio.evals.trainers_plot import Point, trade_off
from studio.evals.trainers_subjects import Subject
from studio.evals.trainers_tables import cost_table, fidelity_change, grid_table, judged, quality_table, trainings_of
from studio.pipelines.files import atomic_write_text
from studio.pipelines.pictures import contact_sheet
from studio.training.report.chart import standalone
from studio.training.report.style import PAGE_STYLE

EXTRA_STYLE = """
.figures{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}.figures th,.figures td{
padding:6px 14px 6px 0;text-align:left;border-top:1px solid var(--line);white-space:nowrap}.figures th{color:var(--muted);
font-weight:500}.sheet{width:100%;border-radius:9px;display:block}td.held{color:#19a979;font-weight:600}td.failed{color:#e8743b;
font-weight:600}
"""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The records of a finished evaluation, and what is made of them."""

    budget: Budget
    header: Mapping[str, object]
    records: Sequence[Record]
    methods: tuple[str, ...]
    subjects: tuple[Subject, ...]

    @cached_property
    def claims(self) -> list[Claim]:
        """What the papers say, and what came out."""
        return claims(self.records, self.methods)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables by file name."""
        found = {"individuals": quality_table(self.records, self.methods, "individual")}
        if self.budget.styles:
            found["styles"] = quality_table(self.records, self.methods, "style")
        found["cost"] = cost_table(self.records, self.methods)
        grid = grid_table(self.records, self.methods)
        if grid is not None:
            found["grid"] = grid
        found["claims"] = claims_table(self.claims)
        return found

    @property
    def training_cpu_minutes(self) -> float:
        """CPU time of all the trainings that the tables stand on."""
        return sum(float(r["cpu_seconds"]) for r in self.records if r["kind"] == "training") / 60


def write_report(findings: Findings, output: Path) -> None:
    """Write the tables (.txt, .csv, .json), plot.svg, a grid per subject and index.html."""
    for name, table in findings.tables.items():
        write_table(table, output, name)
    plot = _plot(findings)
    atomic_write_text(output / "plot.svg", standalone(plot))
    grids = [_write_grid(findings, subject, output) for subject in findings.subjects]
    atomic_write_text(output / "index.html", _page(findings, plot, grids))


def _plot(findings: Findings) -> str:
    points = []
    for method in findings.methods:
        found = judged(findings.records, method, "individual")
        if found is not None:
            points.append(Point(method, fidelity_change(findings.records, method, "individual"), found.identity_gain))
    return trade_off(
        points,
        x_label="prompt fidelity against the base's",
        y_label="identity gain, 0 = base, 1 = truth",
        x_bar=-MOST_FIDELITY_LOST,
        y_bar=LEARNED_GAIN,
    )


def _write_grid(findings: Findings, subject: Subject, output: Path) -> str:
    """One picture of every prompt (columns) by the base, every method and the truth (rows); returns the file's name."""
    seed = findings.budget.seeds[0]
    rows = {"base": "base", **{method: f"{method}/seed-{seed}" for method in findings.methods}, "truth": "truth"}
    labels, images = [], []
    for label, where in rows.items():
        folder = output / "pictures" / subject.name / where
        paths = [folder / f"{i}-0.png" for i in range(len(subject.prompts()))]
        if all(path.is_file() for path in paths):
            labels.append(label)
            images += [Image.open(path).convert("RGB") for path in paths]
    name = f"grid-{subject.name}.png"
    contact_sheet(images, column_labels=subject.prompts(), row_labels=labels).save(output / name)
    return name


def _page(findings: Findings, plot: str, grids: Sequence[str]) -> str:
    trainings = [r for r in findings.records if r["kind"] == "training" and r["variant"] == DEFAULT]
    pictures = sum(r["kind"] != "training" for r in findings.records)
    strip = (
        ("budget", findings.budget.name),
        ("subjects", str(len(findings.subjects))),
        ("trainings", str(len(trainings))),
        ("pictures", str(pictures)),
        ("training, CPU minutes", f"{findings.training_cpu_minutes:.1f}"),
        ("base", str(findings.header["base"])[:10]),
        ("judge", str(findings.header["judge"])[:10]),
    )
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in strip)
    head = "<h1>Training methods, side by side</h1><p class='subtitle'>The same concepts, the same judge, the same steps.</p>"
    cards = [
        _card(
            "Learned against kept, with 95 % intervals",
            f"{plot}<p class='note'>Above and right of the dashed lines is what counts as learned.</p>",
        ),
        *(_table_card(table) for table in findings.tables.values()),
        *(
            _card(subject.name, f"<img class='sheet' src='{escape(name)}' alt=''>")
            for subject, name in zip(findings.subjects, grids, strict=True)
        ),
        _runs_card(findings),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Training methods</title><style>{PAGE_STYLE}{EXTRA_STYLE}</style></head><body><main>"
        f"<header>{head}<dl class='strip'>{facts}</dl></header>{''.join(cards)}</main></body></html>\n"
    )


def _table_card(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.printed_rows())
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in table.notes)
    return _card(table.title, f"<div class='scroll'><table class='figures'><tr>{head}</tr>{rows}</table></div>{notes}")


def _card(title: str, body: str) -> str:
    return f"<section class='card'><h2>{escape(title)}</h2>{body}</section>"


def _cell(text: str) -> str:
    kind = " class='held'" if text in (HELD, "yes") else " class='failed'" if text in ("did not hold", "no") else ""
    return f"<td{kind}>{escape(text)}</td>"


def _runs_card(findings: Findings) -> str:
    return _card("Every run", f"<ul>{''.join(_run_links(findings))}</ul>")


def _run_links(findings: Findings) -> Iterator[str]:
    for method in findings.methods:
        for run in trainings_of(findings.records, method):
            yield f"<li><a href='{escape(str(run['run']))}/index.html'>{escape(str(run['item']))}</a></li>"
