"""The referees' recipe in miniature: deterministic renders and batches, exact resume, targets and losses by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from studio.assets import world
from studio.assets.world import Scene, SceneObject
from studio.pipelines.scoring.network import RefereeNetwork
from studio.training.referees.augment import augment
from studio.training.referees.batches import batch_indices, individual_of, step_generator
from studio.training.referees.losses import (
    box_loss,
    focal_heat_loss,
    joint_loss,
    label_loss,
    remember,
    rival_loss,
    supervised_contrastive_loss,
)
from studio.training.referees.recipe import INDIVIDUAL_SEEDS_FROM, RenderPlan, make_recipe
from studio.training.referees.renders import draw_scene, open_renders, prepare_renders
from studio.training.referees.targets import UNKNOWN, box_targets, heat_target, jitter, make_targets
from studio.training.referees.trainer import learning_rate_share, train_referee

PLAN = RenderPlan(num_scenes=20, num_individuals=28, views=3)


def blurred(pixels, generator):
    return F.avg_pool2d(pixels, 3, 1, 1)


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("renders")
    prepare_renders(PLAN, folder, blurred)
    return folder


def tiny_recipe(which="guide"):
    recipe = make_recipe(which)
    network = replace(recipe.network, widths=(8, 8, 8), region_width=8, identity_dim=8, joint_dim=8)
    return replace(
        recipe,
        network=network,
        renders=PLAN,
        steps=4,
        second_cycle_at=3,
        scenes_per_batch=6,
        individuals_per_batch=2,
        warmup_steps=1,
        checkpoint_every=2,
    )


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_renders_are_the_plans_scenes(renders):
    clean, decoded = open_renders(PLAN, renders)
    assert clean.shape == decoded.shape == (PLAN.num_pictures, 96, 96, 3)
    for index in (0, PLAN.num_scenes, PLAN.num_pictures - 1):
        assert np.array_equal(clean[index], world.render(draw_scene(PLAN, index)))
    first, second = (draw_scene(PLAN, PLAN.num_scenes + view).objects[0] for view in (0, 1))
    other = draw_scene(PLAN, PLAN.num_scenes + PLAN.views).objects[0]
    assert (first.look, first.extras, first.class_name) == (second.look, second.extras, second.class_name)
    assert first.look != other.look


def test_torn_renders_are_made_whole(renders, tmp_path):
    prepare_renders(PLAN, tmp_path, blurred)
    (tmp_path / "clean.bin").write_bytes((renders / "clean.bin").read_bytes()[:-1000])
    prepare_renders(PLAN, tmp_path, blurred)
    for name in ("clean.bin", "decoded.bin"):
        assert (tmp_path / name).read_bytes() == (renders / name).read_bytes()


def test_a_new_plan_renders_anew(renders, tmp_path):
    prepare_renders(replace(PLAN, seed=5), tmp_path, blurred)
    prepare_renders(PLAN, tmp_path, blurred)
    assert (tmp_path / "clean.bin").read_bytes() == (renders / "clean.bin").read_bytes()


def test_referees_differ_in_seed_and_architecture():
    guide, judge = make_recipe("guide"), make_recipe("judge")
    assert guide.seed != judge.seed
    assert guide.network.backbone != judge.network.backbone
    sizes = [sum(p.numel() for p in RefereeNetwork(recipe.network).parameters()) for recipe in (guide, judge)]
    assert 2 * sum(sizes) < 4 * 2**20
    assert INDIVIDUAL_SEEDS_FROM > 500_000
    with pytest.raises(ValueError, match="no 'third'"):
        make_recipe("third")


def test_a_batch_is_scenes_and_pairs_of_views_of_one_class():
    recipe = make_recipe("guide")
    for step in (0, 1, 500):
        indices = batch_indices(recipe, step)
        assert np.array_equal(indices, batch_indices(recipe, step))
        individuals = np.array([individual_of(recipe, int(index)) for index in indices])
        assert (individuals[:32] == UNKNOWN).all()
        numbers, counts = np.unique(individuals[32:], return_counts=True)
        assert (counts == 2).all()
        assert len(set(indices.tolist())) == len(indices)
        assert set(numbers % len(world.CLASSES)) == {step % len(world.CLASSES)}
    seen = np.concatenate([batch_indices(recipe, step)[:32] for step in range(recipe.renders.num_scenes // 32)])
    assert len(set(seen.tolist())) == len(seen)  # no scene twice before all were shown once


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("which", ["guide", "judge"])
def test_resume_is_exact(renders, tmp_path, which):
    recipe = tiny_recipe(which)
    whole = train_referee(recipe, renders, tmp_path / "whole", bfloat16=False)
    train_referee(recipe, renders, tmp_path / "parts", bfloat16=False, until=2)
    parts = train_referee(recipe, renders, tmp_path / "parts", bfloat16=False)
    assert whole.step == parts.step == 4
    assert torch.equal(whole.memory, parts.memory)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[name]), name


def test_augmentation_is_deterministic_and_stays_in_range(renders):
    clean, decoded = open_renders(PLAN, renders)
    recipe = tiny_recipe()
    first, second = (augment(clean[:16], decoded[:16], step_generator(recipe, 3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (16, 3, 96, 96)
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, augment(clean[:16], decoded[:16], step_generator(recipe, 4)))


def test_targets_stand_where_the_objects_do():
    config = make_recipe("guide").network
    cat = SceneObject("cat", "red", "striped", (0.0, 0.0, 0.5, 0.5))
    dog = SceneObject("dog", "blue", "plain", (0.5, 0.5, 1.0, 1.0))
    targets = make_targets([Scene("snow", "flat", (cat, dog)), Scene("sea", "pixel", (dog,))], [UNKNOWN, 7], config)
    assert targets.picture.tolist() == [0, 0, 1]
    assert targets.individual.tolist() == [UNKNOWN, UNKNOWN, 7]
    heat = heat_target(targets, 2, len(config.classes), 12)
    assert heat[0, config.classes.index("cat"), 3, 3] == 1
    assert heat[1, config.classes.index("dog"), 9, 9] == 1
    assert heat[1, config.classes.index("cat")].sum() == 0
    boxes, inside = box_targets(targets, 2, 12)
    assert inside[0, 3, 3]
    assert not inside[0, 6, 0]
    assert boxes[0, 3, 3].tolist() == [0, 0, 0.5, 0.5]
    moved = jitter(targets.boxes, np.random.default_rng(0))
    assert 0 < (moved - targets.boxes).abs().max() < 0.05


def test_losses_vanish_for_the_right_answer():
    config = make_recipe("guide").network
    targets = make_targets([draw_scene(PLAN, index) for index in range(4)], [UNKNOWN] * 4, config)
    heat = heat_target(targets, 4, len(config.classes), 12)
    right = torch.where(heat >= 1, 20.0, -20.0)
    assert focal_heat_loss(right, heat, len(targets.picture)) < 1e-6
    assert focal_heat_loss(-right, heat, len(targets.picture)) > 10
    boxes, inside = box_targets(targets, 4, 12)
    assert box_loss(boxes, boxes, inside) < 1e-5
    assert label_loss(torch.randn(3, 5), torch.tensor([UNKNOWN] * 3)) == 0
    vectors = torch.eye(4).repeat_interleave(2, dim=0)
    labels = torch.tensor([0, 0, 14, 14, 28, 28, 42, 42])
    assert supervised_contrastive_loss(vectors, labels, 0.05) < 1e-6
    memory = torch.zeros(56, 4)
    assert rival_loss(vectors, labels, memory, 14) < 1e-6
    remember(memory, vectors, labels)
    assert torch.equal(memory[14], torch.eye(4)[1])
    assert rival_loss(vectors, labels, memory, 14) < 1e-6
    assert rival_loss(vectors.roll(2, 0), labels, memory, 14) > 0.5
    assert joint_loss(torch.eye(4), torch.eye(4), torch.tensor(3.0)) < 1e-6


def test_schedule_warms_up_and_falls_to_zero_twice():
    recipe = replace(make_recipe("guide"), steps=150, second_cycle_at=100, warmup_steps=10)
    shares = [learning_rate_share(recipe, step) for step in range(151)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert shares[99] == pytest.approx(0, abs=1e-3)
    assert shares[100] == max(shares[100:]) == recipe.second_cycle_rate
    assert shares[150] == pytest.approx(0)
