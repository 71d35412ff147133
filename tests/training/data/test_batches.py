"""The batch plan: pure, balanced, and the same however the work is cut up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from studio.pipelines.errors import ConfigError
from studio.training.data.batches import BatchPlan, PlanItem, PriorPlan, Sample
from studio.training.data.buckets import CENTER, Size
from studio.training.data.captions import Captions
from studio.training.data.draws import permutation, uniform

SQUARE, WIDE, TALL = Size(96, 96), Size(64, 128), Size(128, 64)


def plan(counts: dict[Size, int], batch_size: int = 4, **settings: object) -> BatchPlan:
    """A plan of so many photos of each size."""
    captions = Captions(full=("p", "q", "r"), bare="b")
    items = tuple(PlanItem(size=size, captions=captions) for size, count in counts.items() for _ in range(count))
    return BatchPlan(**{"seed": 3, "items": items, "batch_size": batch_size, "bare_share": 0.4, "dropout": 0.1, **settings})


CASES = [
    {SQUARE: 1},
    {SQUARE: 5},
    {SQUARE: 8},
    {SQUARE: 3, WIDE: 1, TALL: 1},
    {WIDE: 2, SQUARE: 4},
    {SQUARE: 17, WIDE: 1, TALL: 7},
]


@pytest.mark.parametrize("counts", CASES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8])
def test_every_photo_is_trained_on_equally_often(counts: dict[Size, int], batch_size: int) -> None:
    made = plan(counts, batch_size)
    for cycle in range(3):
        steps = range(cycle * made.steps_per_cycle, (cycle + 1) * made.steps_per_cycle)
        seen = Counter(sample.index for step in steps for sample in made.step(step).instance)
        assert set(seen) == set(range(len(made.items))), "no photo is lost"
        assert len(set(seen.values())) == 1, "none is favoured"
    assert made.epochs(made.steps_per_cycle) == seen[0]


@pytest.mark.parametrize("counts", CASES, ids=str)
def test_a_step_has_one_size_and_the_right_number(counts: dict[Size, int]) -> None:
    made = plan(counts, 4, accumulation=2, prior=PriorPlan(batch_size=3, prompts=("a dog",)))
    for step in range(40):
        samples = made.step(step)
        assert len(samples.instance) == 8 and len(samples.prior) == 6
        assert {sample.size for sample in (*samples.instance, *samples.prior)} == {samples.size}
        for sample in (*samples.instance, *samples.prior):
            assert made.items[sample.index].size == sample.size


def test_buckets_are_spread_over_a_cycle() -> None:
    made = plan({SQUARE: 12, WIDE: 4}, 1)
    sizes = [made.step(step).size for step in range(made.steps_per_cycle)]
    wide = [step for step, size in enumerate(sizes) if size == WIDE]
    assert len(wide) == 4
    assert max(later - earlier for earlier, later in zip(wide, wide[1:], strict=False)) <= 6


def test_photos_of_a_batch_differ_where_they_can() -> None:
    made = plan({SQUARE: 8}, 4)
    for step in range(20):
        assert len({sample.index for sample in made.step(step).instance}) == 4


def rows(made: BatchPlan, micro_steps: int, world_size: int = 1) -> tuple[list[Sample], list[Sample]]:
    """All rows of the first forward passes of all processes, in order of their numbers."""
    parts = [made.micro_batch(m, rank, world_size) for m in range(micro_steps) for rank in range(world_size)]
    return [s for part in parts for s in part.instance], [s for part in parts for s in part.prior]


@pytest.mark.parametrize("counts", CASES, ids=str)
def test_accumulation_and_processes_only_cut_the_same_rows(counts: dict[Size, int]) -> None:
    settings = {"random_crop": True, "flip": True}
    whole = plan(counts, 4, prior=PriorPlan(batch_size=4, prompts=("a", "b")), **settings)
    pieces = plan(counts, 1, accumulation=4, prior=PriorPlan(batch_size=1, prompts=("a", "b")), **settings)
    expected = rows(whole, 12)
    assert rows(pieces, 48) == expected
    assert rows(whole, 12, world_size=2) == expected
    assert rows(whole, 12, world_size=4) == expected
    assert [sample.number for sample in expected[0]] == list(range(48))


def test_uneven_sharing_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.batch_size = 4 cannot be shared evenly by 3 processes; use 6"):
        plan({SQUARE: 4}).micro_batch(0, 0, 3)
    uneven = plan({SQUARE: 4}, prior=PriorPlan(batch_size=3, prompts=("a",)))
    with pytest.raises(ConfigError, match="loss.prior_batch_size = 3"):
        uneven.micro_batch(0, 0, 2)


def test_order_of_asking_does_not_matter() -> None:
    made = plan({SQUARE: 3, WIDE: 2}, prior=PriorPlan(batch_size=2, prompts=("a",), num_class_images=7))
    forwards = [made.step(step) for step in range(30)]
    again = plan({SQUARE: 3, WIDE: 2}, prior=PriorPlan(batch_size=2, prompts=("a",), num_class_images=7))
    assert [again.step(step) for step in reversed(range(30))] == forwards[::-1]


def test_seed_changes_everything_and_rows_differ() -> None:
    made = plan({SQUARE: 5})
    other = replace(made, seed=4)
    assert [made.step(s) for s in range(5)] != [other.step(s) for s in range(5)]
    seeds = [s.noise_seed for step in range(200) for s in made.step(step).instance]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_timesteps_are_uniform_and_spread_within_a_step() -> None:
    made = plan({SQUARE: 5})
    drawn = [[s.timestep_uniforms[0] for s in made.step(step).instance] for step in range(500)]
    for row in drawn:
        assert sorted(int(u * 4) for u in row) == [0, 1, 2, 3]
    for place in range(4):
        mean = sum(row[place] for row in drawn) / len(drawn)
        assert abs(mean - 0.5) < 0.05, "no row of the batch always gets the early timesteps"


def test_captions_have_their_shares_and_are_all_known() -> None:
    made = plan({SQUARE: 5}, prior=PriorPlan(batch_size=4, prompts=("a dog", "one dog")))
    steps = [made.step(step) for step in range(500)]
    drawn = Counter(sample.caption for step in steps for sample in step.instance)
    assert drawn[""] / 2000 == pytest.approx(0.1, abs=0.03)
    assert drawn["b"] / 2000 == pytest.approx(0.36, abs=0.04)
    prompts = Counter(sample.caption for step in steps for sample in step.prior)
    assert set(prompts) == {"a dog", "one dog"}
    assert set(drawn) | set(prompts) == set(made.captions())


def test_class_pictures_are_used_in_turn() -> None:
    made = plan({SQUARE: 5}, prior=PriorPlan(batch_size=4, prompts=("a",), num_class_images=10))
    used = Counter(sample.index for step in range(5) for sample in made.step(step).prior)
    assert used == Counter(dict.fromkeys(range(10), 2))


def test_crop_and_flip_are_off_unless_asked_for() -> None:
    assert all(not s.flip and s.crop_position == CENTER for step in range(20) for s in plan({SQUARE: 5}).step(step).instance)
    made = plan({SQUARE: 5}, random_crop=True, flip=True)
    samples = [s for step in range(100) for s in made.step(step).instance]
    assert {s.crop_position for s in samples} == set(range(5))
    assert 0.4 < sum(s.flip for s in samples) / len(samples) < 0.6


def test_draws_are_fixed_for_ever() -> None:
    """A change here would silently change what a resumed run trains on."""
    assert permutation(6, 0, "photos", 1, 2) == (4, 3, 2, 0, 5, 1)
    assert uniform(0, "x", 1) == 0.5976338311956005
    assert sorted(permutation(50, 1, "x")) == list(range(50))
