"""CLIP and DINOv2 of the real classes, tiny and random, from local folders."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from studio.pipelines.errors import MissingFileError
from studio.pipelines.scoring import load_scorer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text = {**small, "vocab_size": len(vocabulary), "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8))
    clip.save_pretrained(folder / "clip")
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12).save_pretrained(folder / "clip")
    Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).save_pretrained(folder / "dinov2")
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(3)]


def test_both_together(models, images):
    scorer = load_scorer(models)
    assert scorer.name == "clip+dinov2"
    assert len(scorer.content_hash) == 64
    assert scorer.identity(images[:1], images[:1]).item() == pytest.approx(1, abs=1e-5)
    assert scorer.style_agreement(images, images[:2]).shape == (3,)
    long = "a very long prompt indeed with many words in it"
    fidelity = scorer.prompt_fidelity(images, ["a cat", "a dog", long])
    assert fidelity.shape == (3,)
    assert (fidelity.abs() <= 1).all()


def test_clip_alone_reads_identity_too(models, images):
    scorer = load_scorer(models / "clip")
    assert scorer.name == "clip"
    assert scorer.content_hash != load_scorer(models).content_hash
    assert scorer.identity(images, images[:1])[0].item() == pytest.approx(1, abs=1e-5)


def test_text_features_match_the_models_own(models, images):
    scorer = load_scorer(models / "clip")
    tokens = scorer.tokenizer(["a cat"], return_tensors="pt")
    pixels = torch.zeros(1, 3, 16, 16)
    black = Image.new("RGB", (16, 16))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels -= (mean / std).view(1, 3, 1, 1)
    output = scorer.clip(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    expected = (output.image_embeds * output.text_embeds).sum().item()
    assert scorer.prompt_fidelity([black], ["a cat"]).item() == pytest.approx(expected, abs=1e-5)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(MissingFileError):
        load_scorer(tmp_path)
