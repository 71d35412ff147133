"""The losses of a referee's heads, each a pure function."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.pipelines.scoring.regions import box_iou
from studio.training.referees.targets import UNKNOWN


def focal_heat_loss(logits: Tensor, heat: Tensor, num_objects: int) -> Tensor:
    """Penalty-reduced focal loss of a heat map (CornerNet, Law and Deng 2018, eq. 1; alpha 2, beta 4), `[N, K, G, G]`."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = log_p.exp()
    at_centre = heat >= 1
    positive = (1 - p) ** 2 * log_p
    negative = (1 - heat) ** 4 * p**2 * log_q
    return -torch.where(at_centre, positive, negative).sum() / max(num_objects, 1)


def box_loss(predicted: Tensor, boxes: Tensor, inside: Tensor) -> Tensor:
    """1 - IoU plus the mean distance of the sides (in box sizes), over cells `inside` of boxes; `[N, G, G, 4]` each."""
    ours, truth = predicted[inside], boxes[inside]
    size = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    sides = ((ours - truth).abs() / size).mean(dim=1)
    return (1 - box_iou(ours, truth) + sides).mean()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over rows whose label is known; zero when none is."""
    known = labels != UNKNOWN
    if not bool(known.any()):
        return logits.sum() * 0
    return F.cross_entropy(logits[known], labels[known], label_smoothing=0.03)


def supervised_contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Views of one individual attract, all others repel (Khosla et al. 2020, eq. 2). `vectors` `[R, D]`, unit length."""
    similarity = vectors @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool)
    same = (labels[:, None] == labels[None, :]) & ~itself
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    return -(log_share * same).sum(dim=1).div(same.sum(dim=1).clamp(min=1)).mean()


def rival_loss(vectors: Tensor, labels: Tensor, memory: Tensor, num_classes: int, scale: float = 20.0) -> Tensor:
    """Softmax of each view's cosine to its other views, against what is remembered of its rivals (after Wang et al. 2020).

    Rivals are all other individuals of the same class; individual i belongs to class `i % num_classes`.

    Args:
        vectors: `[R, D]`, unit length, of individuals `labels` `[R]`, each at least twice.
        memory: `[individuals, D]`, the last seen mean view of each, zero where not seen yet.
    """
    own = (labels[:, None] == labels[None, :]) & ~torch.eye(len(labels), dtype=torch.bool)
    partner = F.normalize(own.float() @ vectors.detach(), dim=1)
    memory = memory.clone()  # `remember` changes it before the backward pass
    numbers = torch.arange(len(memory))
    rival = ((numbers[None, :] - labels[:, None]) % num_classes == 0) & (numbers[None, :] != labels[:, None])
    rival &= memory.abs().sum(dim=1) > 0
    against = (scale * vectors @ memory.T).masked_fill(~rival, -1e4)
    logits = torch.cat([scale * (vectors * partner).sum(dim=1, keepdim=True), against], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def remember(memory: Tensor, vectors: Tensor, labels: Tensor) -> None:
    """Put the mean view of each individual into the memory `[individuals, D]`, in place."""
    for label in labels.unique().tolist():
        memory[label] = F.normalize(vectors[labels == label].detach().mean(dim=0), dim=0)


def joint_loss(pictures: Tensor, texts: Tensor, log_temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE of pictures and their captions, unit vectors `[N, D]` (CLIP, Radford et al. 2021)."""
    logits = pictures @ texts.T * log_temperature.clamp(max=4.0).exp()
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
