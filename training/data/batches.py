"""The batch plan: which photos, crops, captions, noise and timesteps each step trains on, as a pure function of its number.

Nothing is drawn as the run goes along, so the position in the data is the number of the step: a resumed run needs no more
than that, and several processes need not talk about it. The plan makes the batch of a whole optimizer step, all of one
size; gradient accumulation and processes take slices of it. So four forward passes of one photo train on exactly what one
pass of four does, and two processes of two on what one process of four does.

**Balance.** A bucket gives whole steps only, so a bucket with one photo must not get as many steps as one with ten. In a
cycle of N/g steps, with N photos, E photos a step and g = gcd(E, photos in each bucket), a bucket of n photos gets n/g
steps, evenly spread, and every photo is trained on exactly E/g times. No photo is ever dropped, none is favoured; a bucket
with fewer photos than a step has shows them several times in it, each with noise and caption of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from studio.pipelines.errors import ConfigError
from studio.training.data.buckets import CENTER, CROP_POSITIONS, Size
from studio.training.data.captions import Captions
from studio.training.data.draws import bits, permutation, uniform


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of a batch.

    Attributes:
        number: counts the rows of its half (photos, or prior pictures) from the start of the run.
        index: of the photo among the training items, or of the class picture. size: of the picture in the batch.
        crop_position: where the crop lies, for `crop_at`. flip: mirrored left to right.
        noise_seed: seed of the row's noise. timestep_uniforms: two numbers in [0, 1) that decide the timestep.
    """

    number: int
    index: int
    size: Size
    crop_position: int
    flip: bool
    caption: str
    noise_seed: int
    timestep_uniforms: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class StepSamples:
    """The rows of a step or of a slice of it: the photos, and the prior pictures that keep the class as it was."""

    instance: tuple[Sample, ...]
    prior: tuple[Sample, ...]

    @property
    def size(self) -> Size:
        """Of every picture in it."""
        return self.instance[0].size


@dataclass(frozen=True, kw_only=True)
class PlanItem:
    """What the plan knows of a training photo."""

    size: Size
    captions: Captions


@dataclass(frozen=True, kw_only=True)
class PriorPlan:
    """The half of the batch that keeps the class.

    Attributes:
        batch_size: prior pictures per forward pass, all processes together. prompts: drawn at random.
        num_class_images: how many class pictures there are; 0 for base-output preservation, which uses the photos.
    """

    batch_size: int
    prompts: tuple[str, ...]
    num_class_images: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The whole run's data, by step number.

    Attributes:
        items: the training photos. batch_size: photos per forward pass, all processes together.
        accumulation: forward passes per step. prior: None without prior preservation.
        bare_share, dropout: shares of bare and of empty captions. random_crop, flip: whether each row draws its own.
    """

    seed: int
    items: tuple[PlanItem, ...]
    batch_size: int
    accumulation: int = 1
    prior: PriorPlan | None = None
    bare_share: float = 0.0
    dropout: float = 0.0
    random_crop: bool = False
    flip: bool = False

    @property
    def step_size(self) -> int:
        """Photos per optimizer step."""
        return self.batch_size * self.accumulation

    @cached_property
    def buckets(self) -> tuple[tuple[int, ...], ...]:
        """The photos of each bucket, by index; buckets in the order of their first photo."""
        by_size: dict[Size, list[int]] = {}
        for index, item in enumerate(self.items):
            by_size.setdefault(item.size, []).append(index)
        return tuple(tuple(indices) for indices in by_size.values())

    @cached_property
    def steps_per_cycle(self) -> int:
        """Steps after which every photo has been trained on equally often."""
        return len(self.items) // self._divisor

    @property
    def _divisor(self) -> int:
        return math.gcd(self.step_size, *map(len, self.buckets))

    def epochs(self, step: int) -> float:
        """How often each photo was trained on in the first `step` steps, on average."""
        return step * self.step_size / len(self.items)

    def step(self, step: int) -> StepSamples:
        """All rows of optimizer step `step`, which counts from 0."""
        indices = self._photos(step)
        instance = tuple(
            self._sample("photo", step, row, index, self._caption(step * self.step_size + row, index), self.step_size)
            for row, index in enumerate(indices)
        )
        return StepSamples(instance=instance, prior=self._prior(step, instance[0].size))

    def micro_batch(self, micro_step: int, rank: int = 0, world_size: int = 1) -> StepSamples:
        """The rows of one forward pass of one process.

        Args:
            micro_step: counts forward passes from 0; pass m belongs to step m // accumulation.
            rank, world_size: the process, and how many there are.

        Raises:
            ConfigError: a batch cannot be shared out evenly.
        """
        step, part = divmod(micro_step, self.accumulation)
        samples = self.step(step)
        prior_size = 0 if self.prior is None else self.prior.batch_size
        return StepSamples(
            instance=_slice(samples.instance, "data.batch_size", self.batch_size, part, rank, world_size),
            prior=_slice(samples.prior, "loss.prior_batch_size", prior_size, part, rank, world_size),
        )

    def captions(self) -> tuple[str, ...]:
        """Every caption that can occur, for encoding them once."""
        found = [caption for item in self.items for caption in item.captions.all()]
        return tuple(dict.fromkeys([*found, *(() if self.prior is None else self.prior.prompts)]))

    def _photos(self, step: int) -> list[int]:
        cycle, position = divmod(step, self.steps_per_cycle)
        order = _cycle_order(self.seed, tuple(map(len, self.buckets)), self._divisor, cycle)
        bucket, turn = order[position]
        photos = self.buckets[bucket]
        chosen = []
        for place in range(turn * self.step_size, (turn + 1) * self.step_size):
            turn_through, offset = divmod(place, len(photos))
            chosen.append(photos[permutation(len(photos), self.seed, "photos", cycle, bucket, turn_through)[offset]])
        return chosen

    def _prior(self, step: int, size: Size) -> tuple[Sample, ...]:
        if self.prior is None:
            return ()
        rows = self.prior.batch_size * self.accumulation
        # Base-output preservation uses photos of the step's own size, so that the halves make one batch.
        pool = list(range(self.prior.num_class_images))
        if not pool:
            pool = [index for index, item in enumerate(self.items) if item.size == size]
        samples = []
        for row in range(rows):
            number = step * rows + row
            turn_through, offset = divmod(number, len(pool))
            index = pool[permutation(len(pool), self.seed, "class", turn_through)[offset]]
            prompt = self.prior.prompts[int(uniform(self.seed, "class prompt", number) * len(self.prior.prompts))]
            samples.append(self._sample("class", step, row, index, prompt, rows, size))
        return tuple(samples)

    def _caption(self, number: int, index: int) -> str:
        return self.items[index].captions.choose(
            uniform(self.seed, "caption kind", number),
            uniform(self.seed, "caption", number),
            bare_share=self.bare_share,
            dropout=self.dropout,
        )

    def _sample(self, half: str, step: int, row: int, index: int, caption: str, rows: int, size: Size | None = None) -> Sample:
        number = step * rows + row
        crop = int(uniform(self.seed, f"{half} crop", number) * CROP_POSITIONS) if self.random_crop else CENTER
        # Each row of a step draws from a part of its own of [0, 1), so that a small batch sees early and late timesteps.
        part = permutation(rows, self.seed, f"{half} timestep parts", step)[row]
        return Sample(
            number=number,
            index=index,
            size=self.items[index].size if size is None else size,
            crop_position=crop,
            flip=self.flip and uniform(self.seed, f"{half} flip", number) < 0.5,
            caption=caption,
            noise_seed=bits(self.seed, f"{half} noise", number) >> 1,
            timestep_uniforms=(
                (part + uniform(self.seed, f"{half} timestep", number)) / rows,
                uniform(self.seed, f"{half} timestep kind", number),
            ),
        )


@lru_cache(maxsize=4)
def _cycle_order(seed: int, counts: tuple[int, ...], divisor: int, cycle: int) -> tuple[tuple[int, int], ...]:
    """(bucket, which of its steps) for each step of a cycle: every bucket's steps evenly spread from a random start."""
    turns = [
        ((turn + uniform(seed, "bucket phase", cycle, bucket)) / (count // divisor), bucket, turn)
        for bucket, count in enumerate(counts)
        for turn in range(count // divisor)
    ]
    return tuple((bucket, turn) for _, bucket, turn in sorted(turns))


def _slice(samples: Sequence[Sample], key: str, batch_size: int, part: int, rank: int, world_size: int) -> tuple[Sample, ...]:
    assert 0 <= rank < world_size, (rank, world_size)
    if batch_size % world_size:
        above = math.ceil(batch_size / world_size) * world_size
        raise ConfigError(f"{key} = {batch_size} cannot be shared evenly by {world_size} processes; use {above}")
    share = batch_size // world_size
    start = part * batch_size + rank * share
    return tuple(samples[start : start + share])
