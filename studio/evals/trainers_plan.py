"""What `studio eval trainers` trains and draws: the two budgets, and what is particular to a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from studio.evals.concept_eval import SPLITS

DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a method is shown a concept, and what its grid varies.

    Attributes:
        num_photos: photos it learns from; None for all.
        neutral: it is taught and asked with its token alone: no caption and no prompt of an individual names the class, so that
            what is seen was learned.
        sizes: settings that make the adapter smaller or larger than by default, by a name for the table.
    """

    num_photos: int | None = None
    neutral: bool = False
    sizes: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))


RANKS: Mapping[str, Mapping[str, object]] = {"rank 4": {"adapter.rank": 4}, "rank 64": {"adapter.rank": 64}}
PROFILES: Mapping[str, Profile] = {
    "dreambooth-lora": Profile(sizes=RANKS),
    "b-lora": Profile(num_photos=1, neutral=True, sizes=RANKS),
    "diffusekrona": Profile(sizes={"factors 4x4": {"krona.factors": "4x4"}, "factors 16x16": {"krona.factors": "16x16"}}),
    "sara": Profile(sizes={"density .03": {"sara.density": 0.03}, "density .3": {"sara.density": 0.3}}),
}
"""By the method's name; one that is not here learns from all photos, and its grid varies the learning rate alone."""

RATE_FACTORS = (0.25, 1.0, 4.0)
"""The grid's learning rates, as factors of the method's own."""


def profile_of(method: str) -> Profile:
    """The profile of a method."""
    return PROFILES.get(method, Profile())


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A point of a method's grid: settings beside its defaults."""

    name: str = DEFAULT
    rate_factor: float = 1.0
    size: str = DEFAULT
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


def grid_of(method: str) -> tuple[Variant, ...]:
    """Learning rate × size of a method, its defaults left out: those are trained anyway."""
    sizes: dict[str, Mapping[str, object]] = {DEFAULT: {}, **profile_of(method).sizes}
    return tuple(
        Variant(name=f"lr x{factor:g}, {size}", rate_factor=factor, size=size, settings=settings)
        for factor in RATE_FACTORS
        for size, settings in sizes.items()
        if factor != 1.0 or size != DEFAULT
    )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained and drawn.

    Attributes:
        individuals: (class, seed) each. styles: of the toy world. seeds: one training each.
        settings: of every training; what is not here is the method's default.
        num_picture_seeds: pictures per prompt. picture_steps: denoising steps of the judged pictures.
        num_grid_individuals: how many individuals the grid is trained on; 0 for no grid.
    """

    name: str
    individuals: tuple[tuple[str, int], ...]
    styles: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, object]
    num_picture_seeds: int
    picture_steps: int
    num_grid_individuals: int = 0


QUICK = Budget(
    name="quick",
    individuals=SPLITS["report"],
    styles=("watercolour",),
    seeds=(0,),
    # 25 CPU-minutes for sixteen trainings: as many steps as by default, half as many pictures that keep the class in each, and
    # checkpoints looked at four times instead of ten. A step of LoRA takes .32 CPU-seconds on a busy core.
    settings={
        "schedule.steps": 240,
        "loss.prior_batch_size": 2,
        "run.checkpoint_every": 60,
        "run.sample_every": 60,
        "run.sample_steps": 12,
    },
    num_picture_seeds=2,
    picture_steps=20,
)
FULL = Budget(
    name="full",
    individuals=(*SPLITS["report"], ("house", 204), ("bird", 205), ("boat", 206)),
    styles=("flat", "pixel", "sketch", "watercolour"),
    seeds=(0, 1, 2),
    settings={},
    num_picture_seeds=4,
    picture_steps=30,
    num_grid_individuals=2,
)
BUDGETS: Mapping[str, Budget] = {budget.name: budget for budget in (QUICK, FULL)}
"""None of the individuals was ever tuned on."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One training and its pictures."""

    subject: str
    method: str
    seed: int
    variant: Variant

    @property
    def name(self) -> str:
        """Its name in records and file names: `dog-201/dreambooth-lora/seed-0`."""
        plain = f"{self.subject}/{self.method}/seed-{self.seed}"
        return plain if self.variant.name == DEFAULT else f"{plain}/{self.variant.name}"


def items_of(budget: Budget, methods: Sequence[str], individuals: Sequence[str], styles: Sequence[str]) -> Iterator[Item]:
    """All trainings, so ordered that the first ones already compare the methods: seed by seed, subject by subject.

    Args:
        individuals, styles: names of the budget's subjects.
    """
    for seed in budget.seeds:
        for subject in (*individuals, *styles):
            for method in methods:
                yield Item(subject=subject, method=method, seed=seed, variant=Variant())
    for subject in individuals[: budget.num_grid_individuals]:
        for method in methods:
            for variant in grid_of(method):
                yield Item(subject=subject, method=method, seed=budget.seeds[0], variant=variant)
