"""The scorers' mechanics with tiny random networks: shapes, ranges, strange pictures, unknown words, hashes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from studio.assets import world
from studio.pipelines.errors import MissingFileError
from studio.pipelines.scoring import EmbeddedScorer, load_scorer
from studio.pipelines.scoring.network import RefereeConfig, RefereeNetwork
from studio.pipelines.scoring.referee_files import RefereeFileError, load_referee, save_referee


def tiny_network(backbone="residual", seed=0):
    torch.manual_seed(seed)
    config = RefereeConfig(
        backbone=backbone,
        widths=(8, 8, 8),
        region_width=8,
        classes=world.CLASSES,
        colours=world.COLOURS,
        patterns=world.PATTERNS,
        backgrounds=world.BACKGROUNDS,
        styles=world.STYLES,
        words=world.words(),
        identity_dim=8,
        joint_dim=8,
    )
    return RefereeNetwork(config).eval()


@pytest.fixture(params=["residual", "aggregation"])
def scorer(request):
    return EmbeddedScorer(tiny_network(request.param), "tiny", "0" * 64)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(world.render(world.random_scene(rng))) for _ in range(3)]


def test_scores_are_one_a_picture_and_in_range(scorer, images):
    identity = scorer.identity(images, images[:2], "cat")
    style = scorer.style_agreement(images, images[:2])
    fidelity = scorer.prompt_fidelity(images, ["a red cat", "a dog left of a mug", "ohwx backpack"])
    for scores in (identity, style, fidelity):
        assert scores.shape == (3,)
        assert scores.isfinite().all()
    assert (identity.abs() <= 1 + 1e-6).all()
    assert ((style >= 0) & (style <= 1 + 1e-6)).all()
    assert scorer.identity([], images).shape == (0,)


def test_a_picture_is_itself(scorer, images):
    assert scorer.identity(images[:1], images[:1], "robot").item() == pytest.approx(1, abs=1e-5)
    assert scorer.style_agreement(images[:1], images[:1]).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("noun", ["backpack", None, "", "Cat food"])
def test_unknown_nouns_mean_the_whole_picture(scorer, images, noun):
    assert [len(group) for group in scorer.embed_things(images, noun)] == [1, 1, 1]
    whole = scorer.embed_regions(images, [(0.0, 0.0, 1.0, 1.0)] * 3)
    assert torch.allclose(torch.cat(scorer.embed_things(images, noun)), whole, atol=1e-6)


@pytest.mark.parametrize(
    "image", [Image.new("L", (7, 3), 9), Image.new("RGBA", (640, 33)), Image.new("P", (1, 1)), Image.new("CMYK", (300, 200))]
)
def test_any_size_and_mode_is_read(scorer, image):
    reading = scorer.read([image])[0]
    assert reading.style in world.STYLES
    assert len(reading.detections) >= 1
    for found in reading.detections:
        assert 0 <= found.box[0] <= found.box[2] <= 1


def test_a_prompt_without_statements_is_scored_by_the_joint_embedding(scorer, images):
    checked, unchecked = scorer.prompt_scores(images[:2], ["a red cat", "a photo of ohwx backpack"])
    assert checked.checklist is not None
    assert checked.score == checked.checklist
    assert unchecked.checklist is None
    assert unchecked.score == unchecked.cosine
    assert scorer.prompt_scores(images[:1], [""])[0].items == ()


def test_batches_do_not_change_scores(scorer, images):
    many = images * 30
    assert torch.allclose(scorer.features(many)[:3], scorer.features(images), atol=1e-5)
    assert [r.style for r in scorer.read(many)][-3:] == [r.style for r in scorer.read(images)]


def test_files_are_frozen_by_their_hash(tmp_path):
    network = tiny_network()
    digest = save_referee(network, "guide", tmp_path, {"seed": 1})
    scorer = load_referee("guide", tmp_path)
    assert scorer.content_hash == digest
    assert scorer.config == network.config
    for name, value in scorer.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, network.state_dict()[name].half().float())
    assert load_scorer(tmp_path / "guide.safetensors").content_hash == digest
    data = bytearray((tmp_path / "guide.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "guide.safetensors").write_bytes(bytes(data))
    with pytest.raises(RefereeFileError, match="SHA-256"):
        load_referee("guide", tmp_path)


def test_missing_scorers_are_said_to_be_missing(tmp_path):
    with pytest.raises(MissingFileError, match="judge"):
        load_referee("judge", tmp_path)
    with pytest.raises(MissingFileError, match="no scorer"):
        load_scorer(tmp_path / "nothing")
    save_referee(tiny_network(), "judge", tmp_path, {})
    (tmp_path / "judge.safetensors").unlink()
    with pytest.raises(MissingFileError, match="weights"):
        load_referee("judge", tmp_path)


def test_both_referees_share_one_index(tmp_path):
    save_referee(tiny_network(), "judge", tmp_path, {})
    save_referee(tiny_network("aggregation"), "guide", tmp_path, {})
    index = json.loads((tmp_path / "referees.json").read_text())
    assert sorted(index) == ["guide", "judge"]
    assert load_referee("judge", tmp_path).config.backbone == "residual"
