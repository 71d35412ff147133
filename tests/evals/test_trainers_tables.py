"""Tables and claims of `studio eval trainers`, on records whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from studio.evals.records import Record
from studio.evals.statistics import Interval
from studio.evals.trainers_claims import FAILED, HELD, OPEN, above, claims
from studio.evals.trainers_plan import FULL, QUICK, Variant, grid_of, items_of
from studio.evals.trainers_plot import Point, trade_off
from studio.evals.trainers_progress import Board
from studio.evals.trainers_tables import cost_table, difference, fidelity_change, grid_table, judged, quality_table
from studio.pipelines.families.embedded import EMBEDDED
from studio.training.config import load_config, resolve_defaults
from studio.training.methods import method_named

METHODS = ("dreambooth-lora", "diffusekrona", "sara", "b-lora")
INDIVIDUALS = ("dog-1", "car-2", "mug-3")


def pictures(
    method: str, identity: float, *, fidelity: float = 0.9, right: bool = True, variant: str = "default"
) -> list[Record]:
    """Eight prompts of three individuals; every second prompt a little above, every other a little below."""
    arm = method if method in ("base", "truth") else "ours"
    return [
        {
            "id": f"{concept}/{method}/{variant}/{prompt}",
            "item": f"{concept}/{method}/seed-0",
            "concept": concept,
            "kind": "individual",
            "method": method,
            "arm": arm,
            "training_seed": None if arm != "ours" else 0,
            "variant": variant,
            "prompt": str(prompt),
            "seed": 0,
            "identity": identity + (0.01 if prompt % 2 else -0.01),
            "right": right,
            "fidelity": fidelity,
            "content": True,
            "diversity": 0.25,
        }
        for concept in INDIVIDUALS
        for prompt in range(8)
    ]


def trainings(method: str, num_parameters: int) -> list[Record]:
    return [
        {
            "id": f"{concept}/{method}/training",
            "item": f"{concept}/{method}/seed-0",
            "concept": concept,
            "kind": "training",
            "method": method,
            "variant": "default",
            "training_seed": 0,
            "num_parameters": num_parameters,
            "step_cpu_seconds": 0.2,
            "file_bytes": 4 * num_parameters,
            "peak_bytes": 512 * 2**20,
            "chosen_step": 100,
            "seconds_to_chosen": 20.0,
            "cpu_seconds": 60.0,
        }
        for concept in INDIVIDUALS
    ]


def references() -> list[Record]:
    return pictures("base", 0.2, right=False) + pictures("truth", 0.8, fidelity=1.0)


def verdicts(records: Sequence[Record]) -> dict[str, str]:
    return {f"{claim.method}: {claim.text.split(' (')[0].split(':')[0]}": claim.verdict for claim in claims(records, METHODS)}


def test_gain_and_fidelity_are_what_the_concept_evaluation_means():
    records = [*references(), *pictures("dreambooth-lora", 0.65, fidelity=0.88)]
    found = judged(records, "dreambooth-lora", "individual")
    assert found is not None and found.learned
    assert found.identity_gain.estimate == pytest.approx(0.75)
    change = fidelity_change(records, "dreambooth-lora", "individual")
    assert (change.estimate, change.low) == (pytest.approx(-0.02), pytest.approx(-0.02))


def test_a_style_whose_floor_is_its_ceiling_has_no_gain():
    records = [*pictures("base", 0.79), *pictures("truth", 0.8), *pictures("dreambooth-lora", 0.8)]
    assert judged(records, "dreambooth-lora", "individual") is None


def test_methods_are_compared_on_what_both_drew():
    lora, krona = pictures("dreambooth-lora", 0.5), pictures("diffusekrona", 0.6)
    found = difference([*lora, *krona[:8]], "diffusekrona", "dreambooth-lora", "individual", "identity")
    assert found.num == 8
    assert found.estimate == pytest.approx(0.1)


def test_claims_follow_the_records():
    records = [
        *references(),
        *pictures("dreambooth-lora", 0.65, fidelity=0.88),
        *trainings("dreambooth-lora", 1000),
        *pictures("diffusekrona", 0.5, fidelity=0.9),
        *trainings("diffusekrona", 300),
        *pictures("sara", 0.4, fidelity=0.95),
        *trainings("sara", 900),
    ]
    found = verdicts(records)
    assert found["dreambooth-lora: identity gain is at least .6"] == HELD
    assert found["diffusekrona: identity gain is at least .6"] == FAILED
    assert found["diffusekrona: fewer parameters than LoRA"] == HELD
    assert found["diffusekrona: identity above LoRA's"] == FAILED
    assert found["diffusekrona: prompt fidelity above LoRA's"] == HELD
    assert found["sara: prompt fidelity above LoRA's"] == HELD
    assert found["sara: identity below LoRA's"] == HELD
    assert not any(key.startswith("b-lora") for key in found)


@pytest.mark.parametrize(("base_draws_it", "verdict"), [(True, FAILED), (False, OPEN)])
def test_content_is_asked_for_where_the_base_has_it(base_draws_it: bool, verdict: str):
    ours = [{**record, "content": False} for record in pictures("b-lora", 0.4)]
    floor = [{**record, "content": base_draws_it} for record in pictures("base", 0.2)]
    found = verdicts([*floor, *pictures("truth", 0.8), *ours, *trainings("b-lora", 100)])
    assert found["b-lora: content"] == verdict


def test_an_interval_around_the_bar_leaves_the_claim_open():
    assert above(Interval(0.1, -0.1, 0.3, 8)) == OPEN
    assert above(Interval(0.1, 0.05, 0.3, 8)) == HELD
    assert above(Interval(-0.1, -0.3, -0.05, 8)) == FAILED
    assert above(Interval(0.0, 0.0, 0.0, 0)) == OPEN


def test_tables_have_a_row_for_every_method_that_was_trained():
    records = [*references(), *pictures("dreambooth-lora", 0.65), *trainings("dreambooth-lora", 1000)]
    table = quality_table(records, METHODS, "individual")
    assert [row[0] for row in table.rows] == ["base", "dreambooth-lora", "truth"]
    assert table.rows[1][1:3] == (3, 24)
    assert table.rows[1][-1] == "yes"
    cost = cost_table(records, METHODS)
    assert cost.rows[0][:3] == ("dreambooth-lora", 3, 1000)
    assert "512.000" in cost.text()
    assert grid_table(records, METHODS) is None


def test_the_grid_tells_the_spread():
    records = [*references(), *pictures("dreambooth-lora", 0.65)]
    records += pictures("dreambooth-lora", 0.35, variant="lr x4, default")
    table = grid_table(records, METHODS)
    assert table is not None
    assert [row[1] for row in table.rows] == ["default", "lr x4, default", "spread of 2"]
    assert table.rows[-1][2] == pytest.approx(0.25)


def test_budgets_hold_what_they_promise():
    quick = list(items_of(QUICK, METHODS, INDIVIDUALS, ["style-watercolour"]))
    assert len(quick) == 4 * 4
    assert {item.method for item in quick[:4]} == set(METHODS)  # the first subject already compares all
    assert (len(FULL.individuals), len(FULL.styles), len(FULL.seeds)) == (6, 4, 3)
    full = list(items_of(FULL, METHODS, [f"i-{i}" for i in range(6)], [f"s-{i}" for i in range(4)]))
    grid = [item for item in full if item.variant != Variant()]
    assert len(full) - len(grid) == 10 * 3 * 4
    assert len(grid) == 2 * sum(len(grid_of(method)) for method in METHODS)
    assert len({item.name for item in full}) == len(full)
    assert len(grid_of("dreambooth-lora")) == 3 * 3 - 1
    assert len(grid_of("a-method-of-tomorrow")) == 2


def test_every_grid_setting_is_one_of_its_method():
    for method in METHODS:
        for variant in (*grid_of(method), Variant(settings=QUICK.settings)):
            tables = {"concept.images": ".", "concept.class_noun": "dog", "adapter.method": method, **variant.settings}
            config = resolve_defaults(load_config(None, tables), EMBEDDED, 4)
            method_named(method).configure(config)


def test_the_plot_shows_every_method_with_finite_figures():
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    points = [Point("a<b", Interval(0, -0.1, 0.1, 8), Interval(0.5, 0.4, 0.6, 8)), Point("none", nothing, nothing)]
    svg = trade_off(points, x_label="x", y_label="y", x_bar=-0.05, y_bar=0.6)
    assert svg.count("<circle") == 1 and "a&lt;b" in svg and "nan" not in svg


def test_the_time_left_is_the_mean_of_this_session():
    now = [0.0]
    board = Board(4.0, now=lambda: now[0])
    assert board.seconds_left() is None
    board.begin("first", 1.0)
    now[0] = 30.0
    board.end()
    assert board.seconds_left() == pytest.approx(90.0)
    board.begin("second", 1.0)
    now[0] = 45.0
    assert board.seconds_left(0.5) == pytest.approx(75.0)
