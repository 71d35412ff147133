"""Boxes and their features: closed forms."""

import pytest
import torch

from studio.pipelines.scoring.regions import box_iou, boxes_from_distances, heat_peaks, sample_regions, suppress


def test_iou_broadcasts():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 3.0, 1.0], [5.0, 5.0, 6.0, 6.0]])
    table = box_iou(boxes[:, None], boxes[None])
    assert torch.allclose(table.diagonal(), torch.ones(3))
    assert table[0, 1] == pytest.approx(1 / 3)
    assert table[0, 2] == 0


def test_sampling_reads_the_box_it_is_given():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) / 16 + 0.5 / 16  # value = x in fractions, at the cells' centres
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0]])
    sampled = sample_regions(ramp, torch.tensor([0, 0]), boxes, 4)
    assert sampled.shape == (2, 1, 4, 4)
    assert torch.allclose(sampled[0, 0, 0], torch.tensor([0.3125, 0.4375, 0.5625, 0.6875]), atol=1e-6)
    assert torch.allclose(sampled[1, 0, 2], torch.tensor([0.125, 0.375, 0.625, 0.875]), atol=1e-6)


def test_boxes_of_mixed_pictures_come_back_in_their_order():
    features = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    picture = torch.tensor([2, 0, 2, 1, 2])
    sampled = sample_regions(features, picture, torch.tensor([[0.1, 0.1, 0.9, 0.9]]).expand(5, 4), 2)
    assert torch.equal(sampled.mean(dim=(1, 2, 3)), picture.float())
    none = sample_regions(features, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), 2)
    assert none.shape == (0, 1, 2, 2)


def test_sampling_has_gradients():
    features = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.1, 0.5, 0.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sample_regions(x, torch.tensor([1, 0]), boxes, 3), (features,))


def test_distances_describe_boxes():
    distances = torch.full((1, 4, 2, 2), 0.25)
    boxes = boxes_from_distances(distances)
    assert torch.allclose(boxes[0, 0, 1], torch.tensor([0.5, 0.0, 1.0, 0.5]))


def test_peaks_and_suppression():
    heat = torch.zeros(1, 2, 5, 5)
    heat[0, 0, 1, 1], heat[0, 1, 1, 2], heat[0, 1, 4, 4] = 0.9, 0.5, 0.4
    peaks = heat_peaks(heat)
    assert peaks[0, 0, 1, 1] == heat[0, 0, 1, 1]
    assert peaks[0, 1, 1, 2] == 0  # beside a stronger one of another class
    assert peaks[0, 1, 4, 4] == heat[0, 1, 4, 4]
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3]])
    assert suppress(torch.tensor([0.2, 0.9, 0.5]), boxes, 0.5) == [1, 2]
