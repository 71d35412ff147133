"""Masks, windows and boxes out of attention maps, and the noise that is rearranged by them."""

from __future__ import annotations

import pytest
import torch

from studio.composition.map_masks import (
    best_window,
    box_of,
    cleaned,
    largest_patch,
    region_on_grid,
    threshold_mask,
    with_background,
)
from studio.composition.reinitialise import reinitialised


def grid(*rows: str) -> torch.Tensor:
    return torch.tensor([[float(cell == "#") for cell in row] for row in rows])


def test_a_mask_is_where_any_word_is_read_more_than_the_share_of_its_most():
    maps = torch.tensor([[[[0.1, 0.3, 1.0]], [[0.02, 0.0, 0.01]]]])
    assert threshold_mask(maps, 0.4)[0].tolist() == [[1.0, 0.0, 1.0]]
    assert threshold_mask(maps, 0.2)[0].tolist() == [[1.0, 1.0, 1.0]]


def test_the_background_is_where_nobody_is():
    masks = torch.stack([grid("##..")[None], grid(".##.")[None]])
    assert with_background(masks)[0, 0].tolist() == [[0.0, 0.0, 0.0, 1.0]]
    assert bool((with_background(masks).sum(dim=0) >= 1).all())


def test_morphology():
    specks = grid(".#.....", ".......", "...###.", "...#.#.", "...###.", ".......")[None]
    assert torch.equal(cleaned(specks, "none"), specks)
    assert cleaned(specks, "closing")[0, 3, 4] == 1
    assert not cleaned(specks, "opening").any()  # the ring is one cell thin
    assert torch.equal(cleaned(specks, "closing")[0, 0, 1], torch.tensor(1.0))
    assert cleaned(specks, "dilate").sum() > specks.sum() > cleaned(specks, "erode").sum()
    solid = grid(".....", ".###.", ".###.", ".###.", ".....")[None]
    for how in ("opening", "closing", "both"):
        assert torch.equal(cleaned(solid, how), solid)  # type: ignore[arg-type]


def test_a_small_region_still_has_a_cell():
    mask = torch.zeros(64, 64)
    mask[20:23, 40:44] = 1
    assert region_on_grid(mask, 8, 8).nonzero().tolist() == [[2, 5]]
    halves = torch.zeros(64, 64)
    halves[:, :32] = 1
    assert torch.equal(region_on_grid(halves, 4, 4), grid(*["##.."] * 4))


def test_the_largest_patch_and_its_box():
    mask = grid("##....", "......", "...#..", "..###.", "...#..")
    assert box_of(largest_patch(mask)) == (2 / 6, 2 / 5, 5 / 6, 1.0)
    assert largest_patch(mask).sum() == 5
    assert not largest_patch(torch.zeros(3, 3)).any()


def test_the_best_window():
    maps = torch.zeros(2, 5, 6)
    maps[0, 3:5, 1:3] = 1
    maps[1, 0:2, 4:6] = 1
    assert best_window(maps, 2, 2).tolist() == [[3, 1], [0, 4]]


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (9, 5)])
def test_rearranged_noise_has_the_patch_that_was_looked_at_and_the_statistics_it_had(size: tuple[int, int]):
    height, width = size
    latents = torch.randn(3, 4, height, width, generator=torch.Generator().manual_seed(0)) * 7 + 1
    attention = torch.zeros(3, height, width)
    attention[:, height - 2 :, width - 2 :] = 1
    mask = torch.zeros(height, width)
    mask[:2, :2] = 1
    made = reinitialised(latents, [attention], [mask])
    assert made.shape == latents.shape and not torch.equal(made, latents)
    torch.testing.assert_close(made.mean(dim=(1, 2, 3)), latents.mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.std(dim=(1, 2, 3)), latents.std(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4)
    for picture in range(3):
        patch, source = made[picture, :, :2, :2].flatten(), latents[picture, :, -2:, -2:].flatten()
        assert torch.corrcoef(torch.stack([patch, source]))[0, 1] > 0.9999
    assert torch.equal(reinitialised(latents, [None], [mask]).argsort(), latents.argsort())


def test_what_is_in_front_covers_what_is_behind():
    latents = torch.arange(64.0).view(1, 1, 8, 8)
    masks = [torch.zeros(8, 8), torch.zeros(8, 8)]
    masks[0][0:4, 0:4], masks[1][0:2, 0:2] = 1, 1
    looks = [torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)]
    looks[0][:, 4:, 4:], looks[1][:, 6:, 0:2] = 1, 1
    made = reinitialised(latents, looks, masks)[0, 0]
    assert made[0, 0] > made[0, 3] and made[3, 3] > made[0, 0]  # 48 of the front one, then 39 and 63 of the one behind
