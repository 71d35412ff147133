"""Turn the plan's rows into tensors: latents, noise, captions and SDXL's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.training.data.batches import BatchPlan, Sample, StepSamples
from studio.training.data.buckets import Crop, Size
from studio.training.data.dataset import ConceptDataset, Picture
from studio.training.data.latents import LatentCache, crop_corner


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """One forward pass of one process; the first `num_instance` rows are photos, the others keep the class.

    Attributes:
        latents: clean, `[B, C, h, w]`, float32, on the CPU. noise: of the same shape, standard normal.
        timestep_uniforms: `[B, 2]`, float64, in [0, 1). captions: B of them.
        original_sizes, crop_corners: a row each. size: of the pictures.
    """

    latents: Tensor
    noise: Tensor
    timestep_uniforms: Tensor
    captions: tuple[str, ...]
    num_instance: int
    original_sizes: tuple[Size, ...]
    crop_corners: tuple[Crop, ...]
    size: Size

    def time_ids(self) -> Tensor:
        """SDXL's size conditioning `[B, 6]`, float32: original height and width, crop's top and left, height and width."""
        rows = [(*original, *corner, *self.size) for original, corner in zip(self.original_sizes, self.crop_corners, strict=True)]
        return torch.tensor(rows, dtype=torch.float32)


class BatchLoader:
    """Batches by number, for one process.

    Args:
        class_pictures: what the base model drew for "class-images"; empty otherwise.
        noise_offset: size of the extra noise on each channel's mean.
    """

    def __init__(
        self,
        plan: BatchPlan,
        dataset: ConceptDataset,
        latents: LatentCache,
        class_pictures: Sequence[Picture] = (),
        *,
        noise_offset: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        expected = 0 if plan.prior is None else plan.prior.num_class_images
        assert len(class_pictures) == expected, (len(class_pictures), expected)
        self.plan = plan
        self._photos = tuple(item.picture for item in dataset.train_items)
        self._class_pictures = tuple(class_pictures)
        self._latents = latents
        self._noise_offset = noise_offset
        self._rank, self._world_size = rank, world_size

    def load(self, micro_step: int) -> Batch:
        """The batch of forward pass `micro_step`, which counts from 0 over the whole run."""
        samples = self.plan.micro_batch(micro_step, self._rank, self._world_size)
        rows = [*self._rows(samples.instance, self._photos), *self._rows(samples.prior, self._prior_pictures())]
        return self._batch(samples, rows)

    def _prior_pictures(self) -> tuple[Picture, ...]:
        return self._class_pictures if self._class_pictures else self._photos

    def _rows(self, samples: Sequence[Sample], pictures: Sequence[Picture]) -> list[tuple[Sample, Picture]]:
        return [(sample, pictures[sample.index]) for sample in samples]

    def _batch(self, samples: StepSamples, rows: Sequence[tuple[Sample, Picture]]) -> Batch:
        latents = torch.stack([self._latents.latents(picture, s.size, s.crop_position, s.flip) for s, picture in rows])
        shape = tuple(latents.shape[1:])
        return Batch(
            latents=latents,
            noise=torch.stack([sample_noise(s.noise_seed, shape, self._noise_offset) for s, _ in rows]),
            timestep_uniforms=torch.tensor([s.timestep_uniforms for s, _ in rows], dtype=torch.float64),
            captions=tuple(s.caption for s, _ in rows),
            num_instance=len(samples.instance),
            original_sizes=tuple(picture.original_size for _, picture in rows),
            crop_corners=tuple(crop_corner(picture, s.size, s.crop_position, s.flip) for s, picture in rows),
            size=samples.size,
        )


def sample_noise(seed: int, shape: Sequence[int], offset: float = 0.0) -> Tensor:
    """Standard normal noise `[C, h, w]` of one row, from a CPU generator of its own.

    `offset` adds that much noise to each channel's mean (Guttenberg 2023, "Diffusion with offset noise").
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator)
    if offset == 0.0:
        return noise
    return noise + offset * torch.randn(shape[0], 1, 1, generator=generator)
