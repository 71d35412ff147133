"""The toy world: deterministic pictures, honest boxes, captions from known words."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from studio.assets import world


def scenes(count: int, seed: int = 0, **given: object) -> list[world.Scene]:
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng, **given) for _ in range(count)]  # type: ignore[arg-type]


def test_same_seed_same_bytes() -> None:
    for a, b in zip(scenes(12, 3), scenes(12, 3), strict=True):
        assert a == b
        assert world.render(a).tobytes() == world.render(b).tobytes()
    assert scenes(12, 3) != scenes(12, 4)


@pytest.mark.parametrize("style", world.STYLES)
@pytest.mark.parametrize("size", [64, 96, 128])
def test_render_shape(style: str, size: int) -> None:
    scene = world.scene_from_words("cat", "red", "striped", "grass", style)
    picture = world.render(scene, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


def test_every_class_is_drawn_in_its_box() -> None:
    for name in world.CLASSES:
        scene = world.scene_from_words(name, "purple", "plain", "white", "flat")
        ink = (world.render(scene) < 200).any(-1)
        ys, xs = np.nonzero(ink)
        x0, y0, x1, y1 = (96 * v for v in scene.objects[0].box)
        assert ink.sum() > 300
        assert xs.min() >= x0 - 2, name
        assert xs.max() <= x1 + 2, name
        assert ys.min() >= y0 - 2, name
        assert ys.max() <= y1 + 2, name
        assert xs.max() - xs.min() > 0.85 * (x1 - x0), name


def test_patterns_styles_and_backgrounds_differ() -> None:
    def distinct(pictures: list[np.ndarray]) -> None:
        for i, a in enumerate(pictures):
            for b in pictures[:i]:
                assert np.abs(a.astype(int) - b).mean() > 1.0

    make = world.scene_from_words
    distinct([world.render(make("mug", "red", p)) for p in world.PATTERNS])
    distinct([world.render(make("mug", "red", background=b)) for b in world.BACKGROUNDS])
    distinct([world.render(make("mug", "red", "plain", "grass", s)) for s in world.STYLES])
    distinct([world.render(make("mug", c)) for c in world.COLOURS])


def test_boxes() -> None:
    smallest = {1: 30, 2: 28, 3: 24, 4: 24}
    for scene in scenes(1500):
        boxes = [o.box for o in scene.objects]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert (x1 - x0) * 96 >= smallest[len(boxes)]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                w = min(a[2], b[2]) - max(a[0], b[0])
                h = min(a[3], b[3]) - max(a[1], b[1])
                area = sum((q[2] - q[0]) * (q[3] - q[1]) for q in (a, b))
                over = max(w, 0) * max(h, 0)
                assert over / (area - over) < 0.05


def test_shares() -> None:
    drawn = scenes(3000, 1)
    counts = Counter(len(s.objects) for s in drawn)
    for n, share in ((1, 0.35), (2, 0.50), (3, 0.10), (4, 0.05)):
        assert abs(counts[n] / len(drawn) - share) < 0.04
    pairs = [s for s in drawn if len(s.objects) == 2]
    same = sum(s.objects[0].class_name == s.objects[1].class_name for s in pairs)
    assert same / len(pairs) > 0.15
    objects = [o for s in drawn for o in s.objects]
    assert 0.09 < sum(o.look is not None for o in objects) / len(objects) < 0.15
    assert 0.09 < sum(bool(o.extras) for o in objects) / len(objects) < 0.15
    assert {o.class_name for o in objects} == set(world.CLASSES)


def test_captions_use_known_words() -> None:
    known = set(world.words())
    assert all(w == w.lower() for w in known)
    assert {*world.CLASSES, *world.COLOURS, *world.RARE_TOKENS, "watercolor", "photo"} <= known
    rng = np.random.default_rng(2)
    seen: set[str] = set()
    for scene in scenes(4000, 2):
        for text in (world.caption(scene, rng), world.full_caption(scene)):
            found = set(re.findall(r"[a-z0-9]+", text))
            assert re.fullmatch(r"[a-z0-9, ]+", text)
            assert "  " not in text
            assert found <= known, text
            seen |= found
    assert len(seen) > 0.97 * len(known)


def test_captions_tell_the_truth() -> None:
    rng = np.random.default_rng(5)
    make = world.scene_from_words
    scene = make("cat", "red", other=("dog", "blue"), relation="left of")
    texts = [world.caption(scene, rng) for _ in range(300)]
    assert len(set(texts)) > 60
    for text in texts:
        cat_first = text.index("cat") < text.index("dog")
        if "left of" in text or " and " in text or "on the left" in text:
            assert cat_first, text
        if "right of" in text:
            assert not cat_first, text
        assert not re.search(r"blue( \w+)? cat|red( \w+)? dog|above|under", text), text


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_relations_hold(relation: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        names = [world.CLASSES[seed % 14], world.CLASSES[(seed * 5 + 3) % 14]]
        scene = world.scene_from_words(names[0], other=(names[1], "blue"), relation=relation,
                                       rng=rng)
        assert scene.relation == relation
        assert [o.class_name for o in scene.objects] == names


def test_json_round_trip() -> None:
    for scene in scenes(60, 9):
        again = world.Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
        assert again == scene


def test_individual_is_the_same_everywhere() -> None:
    one = world.random_individual("robot", 4)
    assert one == world.random_individual("robot", 4)
    assert one != world.random_individual("robot", 5)
    rng = np.random.default_rng(0)
    cat = world.scene_from_words("cat", "red").objects[0]
    for background in world.BACKGROUNDS:
        for relation in world.RELATIONS:
            scene = world.place(one, background=background, style="flat", rng=rng, other=cat,
                                relation=relation)
            first, second = scene.objects
            assert (first.look, first.extras, first.class_name) == (one.look, one.extras, "robot")
            assert (second.class_name, second.colour, scene.relation) == ("cat", "red", relation)
            x0, y0, x1, y1 = (round(v * 96) for v in first.box)
            crop = world.render(scene)[y0:y1, x0:x1].reshape(-1, 3).astype(int)
            near = np.abs(crop - one.look.body).max(1) < 12
            assert near.sum() > 20


def test_extras_are_drawn() -> None:
    for name in world.CLASSES:
        plain = world.Individual(name, world.Look((40, 160, 150), (40, 160, 150)))
        for kind in world.extra_kinds(name):
            worn = world.Individual(name, plain.look, (world.Extra(kind, (240, 20, 240)),))
            pictures = [
                world.render(world.place(i, background="white", style="flat",
                                         rng=np.random.default_rng(1))).astype(int)
                for i in (plain, worn)
            ]
            assert (np.abs(pictures[0] - pictures[1]).max(-1) > 40).sum() > 15, (name, kind)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown class 'dragon'"):
        world.scene_from_words("dragon")
    with pytest.raises(ValueError, match="unknown background"):
        world.scene_from_words("cat", background="moon")
    with pytest.raises(ValueError, match="one to four"):
        world.random_scene(np.random.default_rng(0), num_objects=5)
