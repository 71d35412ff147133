"""The concept evaluation: prompts, photos, records and the verdict."""

from __future__ import annotations

import numpy as np
import pytest

from studio.assets.world import CLASSES, random_individual, words
from studio.evals.concept import NUM_SEEDS, Concept, verdict
from studio.evals.concept_prompts import PHOTO_BACKGROUNDS, concept_prompts, photo_scenes
from studio.evals.sample_concepts import SAMPLES, load_sample, sample_concepts
from studio.pipelines.errors import UserError


@pytest.mark.parametrize("class_name", CLASSES)
def test_prompts_ask_for_places_the_photos_do_not_show(class_name: str) -> None:
    prompts = concept_prompts(class_name)
    assert len(prompts) == 8
    assert sum(prompt.style != "flat" for prompt in prompts) == 2
    assert sum(prompt.other is not None for prompt in prompts) == 1
    assert all(prompt.other is None or prompt.other[0] != class_name for prompt in prompts)
    single = [prompt for prompt in prompts if prompt.other is None]
    assert not {prompt.background for prompt in single} & set(PHOTO_BACKGROUNDS)
    for prompt in prompts:
        text = prompt.filled(class_name, None)
        assert set(text.replace(",", "").split()) <= set(words())
        assert prompt.filled(class_name, "ohwx") == text.replace(class_name, f"ohwx {class_name}", 1)


def test_the_truth_shows_the_same_individual_everywhere() -> None:
    individual = random_individual("robot", 5)
    for prompt in concept_prompts("robot"):
        scene = prompt.scene(individual, 3)
        assert scene.objects[0].look == individual.look
        assert scene.objects[0].extras == individual.extras
        assert (scene.background, scene.style) == (prompt.background, prompt.style)
        assert scene == prompt.scene(individual, 3)
        assert scene != prompt.scene(individual, 4)
        if prompt.other is not None:
            assert scene.relation == "left of"


def test_photos_are_five_plain_places() -> None:
    scenes = photo_scenes(random_individual("cat", 9), 9)
    assert [scene.background for scene in scenes] == list(PHOTO_BACKGROUNDS)
    assert {scene.style for scene in scenes} == {"flat"}


def test_sample_concepts_are_the_individuals_of_their_seeds() -> None:
    assert sample_concepts() == tuple(sorted(name for name, _ in SAMPLES))
    for name, seed in SAMPLES:
        concept, folder = load_sample(name)
        assert concept.individual == random_individual(name, seed)
        assert len(concept.photos) == len(list(folder.glob("*.png"))) == 5
        made_again = Concept.of_seed(name, seed)
        for shipped, rendered in zip(concept.photos, made_again.photos, strict=True):
            difference = np.asarray(shipped, dtype=np.int16) - np.asarray(rendered, dtype=np.int16)
            assert np.abs(difference).mean() < 1


def test_an_unknown_sample_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="no sample concept 'unicorn'.*robot"):
        load_sample("unicorn")


def record(arm: str, prompt: int, seed: int, identity: float, *, right: bool, fidelity: float) -> dict[str, object]:
    return {
        "id": f"{arm}/{prompt}/{seed}",
        "concept": "c",
        "arm": arm,
        "prompt": str(prompt),
        "seed": seed,
        "identity": identity,
        "right": right,
        "fidelity": fidelity,
    }


def records_with(ours: float, *, ours_right: bool = True, ours_fidelity: float = 0.9) -> list[dict[str, object]]:
    found = []
    for prompt in range(8):
        for seed in range(NUM_SEEDS):
            found += [
                record("base", prompt, seed, 0.2, right=False, fidelity=0.9),
                record("ours", prompt, seed, ours, right=ours_right, fidelity=ours_fidelity),
                record("truth", prompt, seed, 0.7, right=True, fidelity=1.0),
            ]
    return found


def test_the_verdict_is_the_share_of_the_way_from_floor_to_ceiling() -> None:
    found = verdict(records_with(0.55))
    assert found.identity_gain.estimate == pytest.approx(0.7)
    assert found.identity_gain.low == pytest.approx(0.7)  # no spread, no interval
    assert found.right["base"].estimate == 0.0 and found.right["ours"].estimate == 1.0
    assert found.learned


@pytest.mark.parametrize(
    "records",
    [records_with(0.45), records_with(0.6, ours_right=False), records_with(0.6, ours_fidelity=0.8)],
    ids=["identity below .6", "the wrong one nearest", "prompts forgotten"],
)
def test_each_of_the_three_conditions_counts(records: list[dict[str, object]]) -> None:
    assert not verdict(records).learned
