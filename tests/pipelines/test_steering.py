"""Pictures besides words: one to start from, what of it is drawn anew, one to follow; and guesses on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from torch import Tensor

from studio.pipelines.base_model import BaseModel, encode_images
from studio.pipelines.errors import BaseModelError, MissingFileError, UserError
from studio.pipelines.generation import GenerationRequest, draw_latents, resolve_request
from studio.pipelines.mixed_batch import MixedRow, SharedShape, draw_mixed
from studio.pipelines.steering import Steering, first_step, load_control_net, pixels_of
from tests.support.tiny_bases import tiny_base

REQUEST = GenerationRequest(prompts=("a cat", "a dog"), seeds=(1, 2), steps=4, width=64, height=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("embedded", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.radial_gradient("L").resize((96, 64)).convert("RGB")


def latents(base: BaseModel, steering: Steering | None = None, **values: object) -> Tensor:
    with torch.no_grad():
        return draw_latents(base, resolve_request(base, REQUEST), steering=steering, **values)  # type: ignore[arg-type]


def encoded(base: BaseModel, photo: Image.Image) -> Tensor:
    return encode_images(base, pixels_of(photo, (64, 64))[None] * 2 - 1).float()


def test_the_less_change_the_nearer_it_stays_to_the_picture(base: BaseModel, photo: Image.Image):
    goal = encoded(base, photo)
    distances = [float((latents(base, Steering(picture=photo, change=change)) - goal).norm()) for change in (0.25, 0.5, 1.0)]
    assert distances[0] < distances[1] < distances[2]
    assert not torch.equal(latents(base, Steering(picture=photo, change=0.25)), latents(base))


def test_what_the_mask_leaves_black_stays_as_it_was(base: BaseModel, photo: Image.Image):
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, photo.width // 2, photo.height))
    drawn = latents(base, Steering(picture=photo, change=0.75, redraw=mask))
    half = drawn.shape[-1] // 2
    torch.testing.assert_close(drawn[..., half:], encoded(base, photo)[..., half:].expand(2, -1, -1, -1), atol=1e-5, rtol=1e-5)
    assert (drawn[..., :half] - encoded(base, photo)[..., :half]).abs().max() > 1e-2
    with pytest.raises(UserError, match="A mask needs the picture"):
        Steering(redraw=mask)


@pytest.mark.parametrize("change", [0.0, -1.0, 1.5])
def test_a_change_that_is_none_is_refused(change: float):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        first_step(10, change)


def test_a_control_net_steers_and_one_of_zeros_does_not(base: BaseModel, photo: Image.Image, tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        net.save_pretrained(tmp_path / "zero")
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, 0.0, 0.1)
        net.save_pretrained(tmp_path / "net")
    plain = latents(base)
    zero, steered = (
        latents(base, Steering(control_net=load_control_net(tmp_path / name, base), control=photo)) for name in ("zero", "net")
    )
    torch.testing.assert_close(zero, plain, atol=1e-5, rtol=1e-5)
    assert (steered - plain).abs().max() > 1e-3


def test_what_is_no_control_net_is_refused_with_a_sentence(base: BaseModel, tmp_path: Path):
    with pytest.raises(MissingFileError, match="There is no ControlNet in"):
        load_control_net(tmp_path / "nothing", base)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="cannot be read as a ControlNet"):
        load_control_net(tmp_path, base)


def test_guesses_change_nothing_and_end_at_the_picture(base: BaseModel):
    seen: list[tuple[int, int, Tensor | None]] = []
    drawn = latents(base, on_guess=lambda done, steps, guess: seen.append((done, steps, guess)))
    assert torch.equal(drawn, latents(base))
    assert [(done, steps) for done, steps, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    last = seen[-1][2]
    assert last is not None and torch.equal(last, drawn)


def test_guesses_of_a_mixed_batch_have_a_row_for_each_picture(base: BaseModel):
    rows, shape = [MixedRow(prompt="a cat", seed=1), MixedRow(prompt="a dog", seed=2)], SharedShape(steps=2, height=64, width=64)
    seen: list[Tensor | None] = []
    drawn = draw_mixed(base, rows, shape, on_guess=lambda done, steps, guess: seen.append(guess)).images
    assert len(seen) == 2 and seen[-1] is not None and len(seen[-1]) == 2
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in draw_mixed(base, rows, shape).images]
