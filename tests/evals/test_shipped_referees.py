"""The referees that are shipped: small, frozen, different, and right on renders; loose bars, the table has the exact figures."""

import numpy as np
import pytest

from studio.assets import world
from studio.evals.referees import draw, draw_individuals, identity_records, reading_records, summarize
from studio.pipelines.base_model import embedded_base_dir
from studio.pipelines.scoring import embedded_referee, load_scorer
from studio.pipelines.scoring.referee_files import embedded_referees_dir
from studio.training.referees.renders import load_round_trip

BARS = {
    "class": 0.95,
    "colour": 0.92,
    "pattern": 0.85,
    "style": 0.93,
    "background": 0.95,
    "mAP@0.5": 0.88,
    "identity among 50": 0.75,
}


@pytest.fixture(scope="module")
def round_trip():
    return load_round_trip(embedded_base_dir() / "vae")


@pytest.fixture(scope="module")
def held_out(round_trip):
    scenes = [world.random_scene(np.random.default_rng([80_001, index])) for index in range(100)]
    return scenes, draw(scenes, round_trip), draw_individuals("robot", round_trip, 1)


def test_they_are_small_and_differ():
    sizes = [path.stat().st_size for path in embedded_referees_dir().glob("*.safetensors")]
    assert len(sizes) == 2
    assert sum(sizes) <= 4 * 2**20
    guide, judge = embedded_referee("guide"), embedded_referee("judge")
    assert guide.content_hash != judge.content_hash
    assert guide.config.backbone != judge.config.backbone
    assert guide.config.classes == judge.config.classes == world.CLASSES


@pytest.mark.parametrize("name", ["guide", "judge"])
def test_they_are_right_on_held_out_renders(held_out, name):
    scenes, pictures, gallery = held_out
    scorer = embedded_referee(name)
    records = [*reading_records(scenes, scorer.read(pictures)), *identity_records(scorer, gallery)]
    column = summarize(records)
    figures = {key: value if isinstance(value, float) else value.estimate for key, value in column.items()}
    assert {key: figures[key] for key, bar in BARS.items() if figures[key] < bar} == {}


@pytest.mark.parametrize("name", ["guide", "judge"])
def test_scores_order_pictures_as_a_person_would(round_trip, name):
    scorer = load_scorer(name)
    rng = np.random.default_rng(5)
    mine, other = world.random_individual("cat", 31), world.random_individual("cat", 32)
    photos = [world.render(world.place(mine, background=place, style="flat", rng=rng)) for place in world.BACKGROUNDS[:5]]
    same, another = (world.render(world.place(who, background="sea", style="flat", rng=rng)) for who in (mine, other))
    near, far = scorer.identity([same, another], photos, "cat").tolist()
    assert near > 0.7
    assert near > far + 0.2
    scene = world.scene_from_words("cat", "red", "striped", "snow", "pixel")
    picture = world.render(scene)
    said = ["a red striped cat in the snow, pixel art", "a blue plain dog in the sea, pencil sketch"]
    right, wrong = scorer.prompt_fidelity([picture, picture], said).tolist()
    assert right >= 0.8
    assert wrong <= 0.2
    flat, pixel = (world.render(world.scene_from_words("mug", "green", style=style)) for style in ("flat", "pixel"))
    agreement = scorer.style_agreement([picture, flat], [pixel])
    assert agreement[0] > 0.8
    assert agreement[1] < agreement[0] - 0.4
