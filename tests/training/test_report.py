"""Charts and the page: well-formed, honest with odd numbers, safe with odd words."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from studio.training.report.chart import Series, line_chart, nice_ticks, smoothed, standalone, thinned
from studio.training.report.page import ReportFacts, SampleRow, loss_chart, report_page
from studio.training.selection import CheckpointScore


def _facts(**changes: object) -> ReportFacts:
    score = CheckpointScore(step=10, prompt_fidelity=0.3, identity_training=0.5, identity_held_out=0.4)
    values = {
        "title": "<b>ohwx & dog</b>",
        "subtitle": "DreamBooth-LoRA",
        "status": "finished",
        "facts": (("steps", "10"),),
        "photos": ("photos/00.png",),
        "held_out": "photos/held-out.png",
        "loss": [{"step": step, "loss": 1 / step, "instance_loss": 1 / step, "prior_loss": 0.1} for step in range(1, 11)],
        "prompts": ("a ohwx dog",),
        "samples": (SampleRow(step=0, images=("a.png",)), SampleRow(step=10, images=("b.png",))),
        "base_score": CheckpointScore(step=0, prompt_fidelity=0.3, identity_training=0.1, identity_held_out=0.1),
        "scores": (score,),
        "scorer": "guide",
        "chosen_step": 10,
        "reason": "because",
        "warnings": ("beware",),
        "notes": (),
        "files": (("adapter.safetensors", "for the studio"),),
        "commands": ("studio generate",),
        "settings": {"run.seed": 0, "run.name": None},
        **changes,
    }
    return ReportFacts(**values)  # type: ignore[arg-type]


def test_the_chart_is_well_formed_and_leaves_out_what_is_no_number():
    points = [(1.0, 0.5), (2.0, float("nan")), (3.0, float("inf")), (4.0, 0.25)]
    chart = line_chart([Series(name="<loss>", points=points, dots=True)], x_label="step", title="a & b", mark_x=4.0)
    root = ET.fromstring(chart)
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2
    assert "nan" not in chart
    assert "inf" not in chart
    file = standalone(chart)
    ET.fromstring(file)
    assert "var(" not in file


def test_charts_of_nothing_of_one_point_and_of_a_flat_line():
    for points in ([], [(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)]):
        ET.fromstring(standalone(line_chart([Series(name="x", points=points)], x_label="step", title="t")))


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 1.0), (0.0, 0.37), (-3.0, 12.0), (1e-6, 3e-6), (0, 1500)):
        ticks = nice_ticks(low, high)
        assert 2 <= len(ticks) <= 11
        assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)


def test_smoothing_starts_at_the_first_value_and_long_runs_are_thinned():
    points = [(float(step), 1.0) for step in range(10_000)]
    assert all(abs(y - 1.0) < 1e-9 for _, y in smoothed(points, 0.97))
    few = thinned(points)
    assert len(few) <= 602
    assert few[-1] == points[-1]


def test_the_page_escapes_what_people_typed():
    page = report_page(_facts())
    assert "<b>ohwx" not in page
    assert "&lt;b&gt;ohwx &amp; dog" in page
    assert "run.name" not in page
    assert page.count('<img loading="lazy" src="b.png"') == 2


def test_the_page_of_a_run_that_has_only_begun():
    page = report_page(
        _facts(status="running", loss=[], samples=(), scores=(), base_score=None, scorer=None, chosen_step=None, files=())
    )
    assert "no data" in page
    assert "So far" in page


def test_the_loss_chart_shows_the_class_only_where_there_is_one():
    both = [{"step": 1, "instance_loss": 1.0, "prior_loss": 0.5}, {"step": 2, "instance_loss": 0.9, "prior_loss": 0.4}]
    alone = [{**record, "prior_loss": 0.0} for record in both]
    assert loss_chart(both).count("<polyline") == 3
    assert loss_chart(alone).count("<polyline") == 2
