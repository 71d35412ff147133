"""Losses on attention maps, against loops that say what the papers say."""

from __future__ import annotations

import math

import pytest
import torch

from studio.composition.attention_losses import (
    box_gaussian,
    contrastive_loss,
    enhancement_loss,
    fill_loss,
    region_loss,
    scaled_to_one,
    smoothed,
)


def maps_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def box(height: int, width: int, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[top:bottom, left:right] = 1
    return mask


def test_the_contrastive_loss_is_the_papers_sum_over_pairs():
    maps, labels, tau = maps_of(2, 5, 3, 4), torch.tensor([0, 1, 0, 1, 1]), 0.7
    for picture in range(2):
        rows = [(row - row.min()) / (row.max() - row.min()) for row in maps[picture].flatten(1)]
        similarity = [[float(a @ b / a.norm() / b.norm()) / tau for b in rows] for a in rows]
        terms = []
        for a in range(5):
            for b in range(5):
                if a != b and labels[a] == labels[b]:
                    negatives = sum(math.exp(similarity[a][k]) for k in range(5) if labels[k] != labels[a])
                    terms.append(-math.log(math.exp(similarity[a][b]) / (math.exp(similarity[a][b]) + negatives)))
        assert contrastive_loss(maps, labels, tau)[picture].item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_maps_that_agree_and_differ_as_they_should_have_the_least_contrastive_loss():
    left, right = box(4, 4, 0, 4, 0, 2), box(4, 4, 0, 4, 2, 4)
    labels = torch.tensor([0, 1, 0, 1])
    apart = contrastive_loss(torch.stack([left, right, left, right])[None], labels)
    mixed = contrastive_loss(torch.stack([left, right, right, left])[None], labels)
    assert apart < contrastive_loss(torch.ones(1, 4, 4, 4, dtype=torch.float64), labels) < mixed


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]], ids=["one concept", "nobody twice"])
def test_nothing_to_tell_apart_is_no_loss(labels: list[int]):
    maps = maps_of(2, 3, 4, 4).requires_grad_()
    loss = contrastive_loss(maps, torch.tensor(labels))
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert torch.equal(loss, torch.zeros_like(loss)) and not gradient.any()


def test_the_enhancement_loss_takes_the_largest_fifth_of_the_region_under_the_bell():
    mask, maps = box(10, 10, 2, 7, 4, 8), maps_of(1, 3, 10, 10)
    bell = box_gaussian(mask)
    assert bell.max() == 1 and bell[2, 4] < 0.5 and not bell[mask == 0].any()
    expected = 0.0
    for word in range(3):
        inside = sorted((float(maps[0, word, y, x] * bell[y, x]) for y in range(2, 7) for x in range(4, 8)), reverse=True)
        expected += max(0.0, 1.0 - sum(inside[:4]) / 4)  # a fifth of twenty cells
    assert enhancement_loss(maps, mask).item() == pytest.approx(expected, rel=1e-9)


def test_the_fill_loss_asks_for_every_row_and_column():
    mask = box(6, 6, 1, 4, 2, 6)
    assert fill_loss(mask[None, None].clone(), mask).item() == 0.0
    diagonal = torch.zeros_like(mask)
    diagonal[1, 2] = diagonal[2, 3] = diagonal[3, 4] = 1
    assert fill_loss(diagonal[None, None], mask).item() == pytest.approx(1 / 6)  # one column of six is not reached
    assert fill_loss(torch.zeros(1, 1, 6, 6, dtype=torch.float64), mask).item() == pytest.approx(4 / 6 + 3 / 6)


def test_the_region_loss_is_about_what_leaves_the_region():
    mask = box(3, 3, 0, 3, 0, 1)
    inside, outside = [0, 3, 6], [1, 2, 4, 5, 7, 8]
    places = maps_of(1, 9, 9)
    leaving = sorted((float(places[0, q, k]) for q in inside for k in outside), reverse=True)
    assert region_loss(places, mask).item() == pytest.approx(leaving[0])  # a fifth of three cells is one
    closed = places.clone()
    for row in inside:
        closed[0, row, outside] = 0
    assert region_loss(closed, mask).item() == 0.0
    assert region_loss(places, torch.ones_like(mask)).item() == 0.0


def test_gradients_are_those_of_finite_differences():
    mask = box(4, 5, 1, 3, 1, 4)
    labels = torch.tensor([0, 1, 0, 1])
    maps, places = maps_of(2, 4, 4, 5).requires_grad_(), maps_of(2, 20, 20, seed=1).requires_grad_()
    for loss in (
        lambda m: contrastive_loss(m, labels),
        lambda m: enhancement_loss(smoothed(m), mask),
        lambda m: fill_loss(m, mask),
    ):
        assert torch.autograd.gradcheck(loss, (maps,))
    assert torch.autograd.gradcheck(lambda p: region_loss(p, mask), (places,))


def test_blur_and_scaling_keep_what_they_should():
    flat = torch.full((1, 2, 5, 4), 0.3, dtype=torch.float64)
    torch.testing.assert_close(smoothed(flat), flat)
    torch.testing.assert_close(smoothed(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 1, 1))
    scaled = scaled_to_one(maps_of(2, 3, 4, 4))
    assert torch.equal(scaled.amin(dim=(2, 3)), torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(scaled.amax(dim=(2, 3)), torch.ones(2, 3, dtype=torch.float64))
    assert not scaled_to_one(flat).any()
