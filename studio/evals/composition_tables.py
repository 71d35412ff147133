"""The tables of the composition evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studio.evals.composition_outcomes import Outcomes, share
from studio.evals.composition_plan import DIFFERENT, FOUR, INDIVIDUALS, PAIRS, SAME, STYLE, STYLES, SWEEP, THREE, Budget
from studio.evals.composition_ways import ALONE, merge_way
from studio.evals.records import Record
from studio.evals.statistics import bootstrap_interval, paired_difference
from studio.evals.tables import Cell, Table
from studio.evals.trainers_training import Training
from studio.pipelines.adapters import Adapter

COUNTS: Mapping[str, int] = {THREE: 3, FOUR: 4}

NOTES = (
    "all right: every thing is in place and nearest, of 20 individuals of its class (chance 5 %), to the one that was taught;",
    "with a style, the judge names that style too. in place: in the prompt's order from the left, or in its box. leaked: of the",
    "things that are there, those that look most like their neighbour. clear: the judge's confidence in the things, minus the",
    "same of each alone. passes: of the denoiser, guidance's included. CPU s, prepared s: of a picture, without what is prepared",
    "for its prompt, and that alone, shared by the prompt's pictures. 95 % intervals: bootstrap over prompts",
)


def composition_table(
    outcomes: Outcomes, ways: Sequence[str], title: str, groups: Sequence[str] = PAIRS, count: int = 2
) -> Table:
    """A row per way that drew anything of `groups`."""
    split = [group for group in groups if len(groups) > 1]
    rows: list[tuple[Cell, ...]] = []
    for way in ways:
        pictures = outcomes.of(way, groups)
        if not pictures:
            continue
        rows.append(
            (
                way,
                len(pictures),
                share(pictures, "present"),
                share(pictures, "classes_in_place"),
                share(pictures, "right"),
                *(share(found, "right") if (found := outcomes.of(way, [group])) else None for group in split),
                share(pictures, "things_right"),
                _leaked(pictures),
                _clearness(outcomes, way, groups),
                *_costs(outcomes, way, pictures, count),
            )
        )
    names = {DIFFERENT: "different classes", SAME: "same class", STYLE: "thing + style"}
    columns = (
        "way",
        "n",
        "all present",
        "classes in place",
        "all right",
        *(names[group] for group in split),
        "things right",
        "leaked",
        "clear",
        "passes",
        "GFLOP",
        "CPU s",
        "prepared s",
    )
    return Table(title=title, columns=columns, rows=tuple(rows), notes=(*NOTES, *_refusals(outcomes, ways)))


def sweep_table(outcomes: Outcomes, budget: Budget, chosen: float) -> Table:
    """The plain merge at its strengths, on prompts and seeds of their own."""
    rows = []
    for strength in budget.strengths:
        pictures = outcomes.of(merge_way(strength).name, [SWEEP])
        rows.append(
            (
                f"{strength:g}" + (" (taken)" if strength == chosen else ""),
                len(pictures),
                share(pictures, "present"),
                share(pictures, "right"),
                share(pictures, "things_right"),
                _leaked(pictures),
            )
        )
    return Table(
        title="The plain merge at its strengths, on prompts that no other figure comes from",
        columns=("strength", "n", "all present", "all right", "things right", "leaked"),
        rows=tuple(rows),
        notes=("taken: most pictures all right; among equals, most things right",),
    )


def adapters_table(trainings: Mapping[str, Training], adapters: Mapping[str, Adapter], outcomes: Outcomes) -> Table:
    """What was trained: kind, size, time, and how often the judge knows it in pictures of it alone."""
    kinds = {thing.name: (thing.kind, thing.words) for thing in INDIVIDUALS}
    kinds |= {style.name: ("sparse", style.words) for style in STYLES}
    alone: dict[str, list[bool]] = {}
    for record in outcomes.records:
        if record["kind"] == "alone":
            for part in record["parts"]:
                alone.setdefault(str(part["name"]), []).append(bool(part["right"]))
    rows: list[tuple[Cell, ...]] = []
    for name, training in trainings.items():
        measured, right = training.measured, alone.get(name, [])
        rows.append(
            (
                name,
                kinds[name][1],
                kinds[name][0],
                adapters[name].info.type,
                int(measured["num_parameters"]),
                round(int(measured["file_bytes"]) / 1024),
                float(measured["cpu_seconds"]) / 60,
                int(measured["chosen_step"]),
                sum(right) / len(right) if right else None,
                len(right),
            )
        )
    return Table(
        title="The adapters",
        columns=("adapter", "words", "kind", "type", "parameters", "file KiB", "CPU min", "chosen step", "right alone", "n"),
        rows=tuple(rows),
        notes=("right alone: in single-concept pictures, at the places and seeds of the prompts",),
    )


def parts_table(outcomes: Outcomes, full: str, parts: Sequence[str]) -> Table:
    """LoRA-Composer with each of its parts switched off in turn."""
    rows: list[tuple[Cell, ...]] = []
    for name in (full, *parts):
        pictures = outcomes.of(name)
        if pictures:
            rows.append(
                (
                    name,
                    len(pictures),
                    share(pictures, "classes_in_place"),
                    share(pictures, "right"),
                    share(pictures, "things_right"),
                    _leaked(pictures),
                    None if name == full else outcomes.difference(name, full),
                    None if name == full else outcomes.difference(name, full, "things_right"),
                )
            )
    return Table(
        title="LoRA-Composer, part by part",
        columns=(
            "way",
            "n",
            "classes in place",
            "all right",
            "things right",
            "leaked",
            "all right, against whole",
            "things right, against whole",
        ),
        rows=tuple(rows),
        notes=("against whole: paired difference, 95 % interval over prompts",),
    )


def sampling_minutes(records: Sequence[Record]) -> float:
    """CPU time of all pictures that the records stand for, preparations included."""
    drawn = [r for r in records if r["kind"] in ("picture", "alone")]
    return sum(float(r.get("cpu_seconds", 0.0)) * len(r.get("parts", [None])) for r in drawn) / 60


def _leaked(pictures: Sequence[Record]) -> Cell:
    values = [(float(leak), r["prompt"]) for r in pictures for leak in r["leaked"]]
    return bootstrap_interval([value for value, _ in values], [prompt for _, prompt in values]) if values else None


def _clearness(outcomes: Outcomes, way: str, groups: Sequence[str]) -> Cell:
    alone = outcomes.values(ALONE, "clear", groups)
    if way == ALONE or not alone:
        return None
    own = outcomes.values(way, "clear", groups)
    both = [cell for cell in own if cell in alone]
    return paired_difference([own[c] for c in both], [alone[c] for c in both], [c[0] for c in both])


def _costs(outcomes: Outcomes, way: str, pictures: Sequence[Record], count: int) -> tuple[Cell, Cell, Cell, Cell]:
    drawn = [r for r in pictures if r.get("passes") is not None]
    if not drawn:
        return None, None, None, None
    flops = outcomes.flops(way, count)
    passes, seconds, prepared = (
        sum(float(r[key]) for r in drawn) / len(drawn) for key in ("passes", "cpu_seconds", "preparing_seconds")
    )
    giga = None if flops is None else round(flops / 1e9, 1)
    return round(passes), giga, round(seconds - prepared, 2), round(prepared, 2)


def _refusals(outcomes: Outcomes, ways: Sequence[str]) -> list[str]:
    return [f"{way} refuses some prompts: {reason}" for way in ways for reason in outcomes.reasons(way)[:1]]
