"""The shipped base model: a plain diffusers pipeline loads it, and it draws what is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel

from studio.pipelines.base_model import embedded_base_dir, load_base
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.scoring import embedded_referee

MIB = 2**20


def test_plain_diffusers_draws_a_red_cat() -> None:
    torch.manual_seed(0)
    folder = embedded_base_dir()
    image = StableDiffusionPipeline.from_pretrained(folder)("a red cat").images[0]
    assert image.size == (96, 96)
    pixels = np.asarray(image, dtype=np.float32)
    assert pixels.std() > 15  # a picture, not a plane
    reading = embedded_referee("guide").read([image])[0]
    assert "cat" in [found.class_name for found in reading.detections]
    cat = next(found for found in reading.detections if found.class_name == "cat")
    assert cat.colour == "red"


def test_weights_fit_the_limits() -> None:
    files = list(embedded_base_dir().rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 24 * MIB
    assert max(file.stat().st_size for file in files) <= 14 * MIB


def test_structure_is_stable_diffusions() -> None:
    base = load_base(None)
    assert isinstance(base.unet, UNet2DConditionModel) and isinstance(base.vae, AutoencoderTiny)
    cross = [name for name, _ in base.unet.named_modules() if name.endswith("attn2")]
    blocks = {"".join(name.split(".")[:2]) for name in cross}
    assert blocks >= {"down_blocks0", "down_blocks1", "up_blocks1", "up_blocks2"}
    assert base.scheduler.config.prediction_type == "v_prediction"
    assert base.family.name == "embedded" and base.size == 96


@pytest.mark.parametrize(
    ("prompt", "colour", "class_name"),
    [
        ("a blue car on the grass", "blue", "car"),
        ("a purple mushroom in the snow", "purple", "mushroom"),
        ("a red striped mug in a room", "red", "mug"),
        ("a yellow star at night", "yellow", "star"),
        ("a brown dog on the beach", "brown", "dog"),
        ("an orange fish in the sea", "orange", "fish"),
        ("a white house in the snow, pencil sketch", "white", "house"),
    ],
)
def test_prompts_are_followed(prompt: str, colour: str, class_name: str) -> None:
    images = generate(load_base(None), GenerationRequest(prompts=(prompt,) * 3, seeds=(1, 2, 3), steps=20))
    found = [
        any(thing.class_name == class_name and thing.colour == colour for thing in reading.detections)
        for reading in embedded_referee("guide").read(images)
    ]
    assert sum(found) >= 2


def test_two_things_stand_where_they_should() -> None:
    prompts = ("a red cat to the left of a blue car", "a green tree to the right of a yellow house on the grass")
    classes = (("cat", "car"), ("house", "tree"))
    images = generate(load_base(None), GenerationRequest(prompts=prompts * 2, seeds=(1, 1, 2, 2), steps=20))
    right = 0
    for reading, (left, other) in zip(embedded_referee("guide").read(images), classes * 2, strict=True):
        middles = {thing.class_name: (thing.box[0] + thing.box[2]) / 2 for thing in reversed(reading.detections)}
        right += left in middles and other in middles and middles[left] < middles[other]
    assert right >= 3


def test_recipe_and_logs_travel_with_the_weights() -> None:
    folder = embedded_base_dir()
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["size"] == 96 and recipe["latent_channels"] == 16
    lines = (folder / "training-log.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["loss"] < first["loss"]
    assert "pictures seen" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "loss.png").is_file()
