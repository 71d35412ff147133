"""What the API can be asked for: the studio's own requests, with ids in the place of every path.

Nothing here names a file, a folder or an address: adapters, base models, photos and masks are brought in first (see
`uploads`) and named by their id, so that no request can make the studio read, write or fetch anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from studio.api.desk import Desk
from studio.api.problems import Problem
from studio.composition.plan import CompositionPlan, Entry, Region, StrategyChoice
from studio.jobs.specs import Drawing, Float, Int, Spec
from studio.service import (
    AdapterChoice,
    CompareSpec,
    ComposeSpec,
    ConflictsSpec,
    GenerateSpec,
    JobSpec,
    Kind,
    StartPicture,
    StylizeSpec,
    Submit,
    TrainSpec,
)
from studio.training.config.options import options

Id = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Of a thing in the library.")]
JobId = Annotated[str, Field(pattern=r"^[0-9]{6}-[0-9]{6}-[a-z0-9]{6}$", description="Of a job.")]
BaseId = Annotated[str, Field(pattern="^(embedded|[0-9a-f]{64})$", description='"embedded", or the id of a base model.')]
Sampler = Literal["ddim", "euler", "euler_a", "dpm++"]
Nothing = SkipJsonSchema[None]
"""A field of the studio's own request that the API does not have."""

MAX_DEPTH = 8


def plain(value: Any, depth: int = 0) -> Any:
    """Settings as they came. ValueError for what is nested too deep, or has halves of letters."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deep")
    if isinstance(value, Mapping):
        return {plain(name, depth + 1): plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a letter (a lone surrogate)") from None
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("it has a number that is too large")
    return value


class SubmitAsk(Spec):
    """How a job waits and runs. priority: higher goes first; above 0 only with the scope admin."""

    priority: Annotated[Int, Field(ge=-1000, le=1000)] = 0
    needs: Annotated[tuple[JobId, ...], Field(max_length=100)] = ()
    title: Annotated[str, Field(max_length=500)] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:[0-9]{1,3})?)$")] | None = None
    time_limit_seconds: Annotated[float, Field(gt=0, le=31_536_000)] | None = None
    held: bool = False

    def to_submit(self, desk: Desk, key: str | None) -> Submit:
        """With the caller's name. Raises Problem for jobs that are not theirs, or a priority that they may not have."""
        if self.priority > 0 and not desk.caller.may("admin"):
            raise Problem(403, "Only the scope admin may go before others: take a priority of 0 or less.")
        for needed in self.needs:
            desk.job(needed)
        values = self.model_dump(exclude_defaults=True)
        return Submit(**values, owner=desk.caller.owner, key=key)


class Ask(BaseModel):
    """A request that becomes a job."""

    submit: SubmitAsk = SubmitAsk()

    def to_spec(self, desk: Desk) -> JobSpec:
        """The studio's own request. Raises Problem for what the caller may not use."""
        raise NotImplementedError


class AdapterUse(Spec):
    """An adapter of the library, and how strongly it acts: 0 is off, 1 is as trained."""

    adapter: Id
    strength: Float = 1.0

    def to_choice(self, desk: Desk) -> AdapterChoice:
        """The same for the studio."""
        item = desk.used(self.adapter, Kind.ADAPTER, "adapter")
        return AdapterChoice(adapter=item.id, strength=self.strength, sha256=item.id)


class StartAsk(StartPicture):
    """A picture of the library to start from."""

    picture: Id
    mask: Id | None = None
    sha256: Nothing = None
    mask_sha256: Nothing = None

    def to_start(self, desk: Desk) -> StartPicture:
        """The same for the studio."""
        picture = desk.used(self.picture, Kind.PICTURE, "start")
        mask = None if self.mask is None else desk.used(self.mask, Kind.PICTURE, "mask")
        return StartPicture(picture=picture.id, change=self.change, mask=None if mask is None else mask.id)


class GenerateAsk(GenerateSpec, Ask):
    """Pictures from prompts; `num_images` of each prompt, with seeds in a row."""

    output_dir: Nothing = None
    base: BaseId = "embedded"
    scheduler: Sampler | None = None
    adapters: Annotated[tuple[AdapterUse, ...], Field(max_length=64)] = ()  # type: ignore[assignment]
    start: StartAsk | None = None
    control: Nothing = None

    def to_spec(self, desk: Desk) -> GenerateSpec:
        """The studio's own request."""
        check_pictures(desk, len(self.prompts) * self.num_images)
        adapters = tuple(use.to_choice(desk) for use in self.adapters)
        start = None if self.start is None else self.start.to_start(desk)
        return GenerateSpec(**_drawing(desk, self), prompts=self.prompts, adapters=adapters, start=start)


class StylizeAsk(StylizeSpec, Ask):
    """Content of one B-LoRA in the style of another, or either of them with words."""

    output_dir: Nothing = None
    base: BaseId = "embedded"
    scheduler: Sampler | None = None
    content: AdapterUse | None = None  # type: ignore[assignment]
    style: AdapterUse | None = None  # type: ignore[assignment]

    def to_spec(self, desk: Desk) -> StylizeSpec:
        """The studio's own request."""
        check_pictures(desk, self.num_images)
        own = ("prompt", "keep_colours", "content_prompt", "style_prompt", "content_block", "style_block")
        values: dict[str, Any] = _drawing(desk, self) | {name: getattr(self, name) for name in own}
        values |= {
            name: None if use is None else use.to_choice(desk) for name, use in (("content", self.content), ("style", self.style))
        }
        return StylizeSpec(**values)


class RegionAsk(Region):
    """Where on the canvas an adapter acts: a box or a mask."""

    mask: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Id of a grey picture: white acts.")] | None = None
    mask_sha256: Nothing = None


class EntryAsk(Entry):
    """One adapter and its part in the picture."""

    adapter: Id
    sha256: Nothing = None
    region: RegionAsk | None = None


class StrategyAsk(StrategyChoice):
    """The strategy's name and its settings; see the composition guide."""

    name: Annotated[str, Field(pattern="^[a-z0-9_-]{1,40}$")] = "merge"


def plain_strategy(choice: StrategyAsk) -> StrategyAsk:
    """The choice, if its settings are `plain`."""
    plain(choice.settings)
    return choice


class PlanAsk(CompositionPlan):
    """What to draw, with which adapters, and how they come together."""

    base: BaseId = "embedded"
    base_sha256: Nothing = None
    scheduler: Sampler | None = None
    entries: Annotated[tuple[EntryAsk, ...], Field(max_length=32)] = ()
    strategy: Annotated[StrategyAsk, AfterValidator(plain_strategy)] = StrategyAsk()
    width: Annotated[Int, Field(ge=8, le=16_384)] | None = None
    height: Annotated[Int, Field(ge=8, le=16_384)] | None = None

    def to_plan(self, desk: Desk) -> CompositionPlan:
        """The studio's own plan, with the masks' files."""
        check_pictures(desk, self.num_images)
        entries = []
        for number, entry in enumerate(self.entries, 1):
            item = desk.used(entry.adapter, Kind.ADAPTER, f"entry {number}")
            values = entry.model_dump(exclude_defaults=True) | {"sha256": item.id}
            if entry.region is not None and entry.region.mask is not None:
                values["region"]["mask"] = str(desk.used(entry.region.mask, Kind.PICTURE, f"the mask of entry {number}").path)
            entries.append(Entry(**values))
        values = self.model_dump(exclude_defaults=True) | {"base": base_of(desk, self.base), "entries": tuple(entries)}
        return CompositionPlan.model_validate(values)


class ComposeAsk(ComposeSpec, Ask):
    """Pictures of a plan with several adapters."""

    output_dir: Nothing = None
    plan: PlanAsk

    def to_spec(self, desk: Desk) -> ComposeSpec:
        """The studio's own request."""
        return ComposeSpec(**_composing(desk, self))


class CompareAsk(CompareSpec, Ask):
    """A plan by several strategies side by side, with scores; ["all"] takes all strategies."""

    output_dir: Nothing = None
    plan: PlanAsk
    strategies: Annotated[tuple[Annotated[str, Field(pattern="^[a-z0-9_-]{1,40}$")], ...], Field(min_length=1, max_length=40)] = (
        "all",
    )
    scorer: Literal["guide", "none"] = "guide"

    def to_spec(self, desk: Desk) -> CompareSpec:
        """The studio's own request."""
        return CompareSpec(**_composing(desk, self), strategies=self.strategies, scorer=self.scorer)


class ConflictsAsk(ConflictsSpec, Ask):
    """How much a plan's adapters get in each other's way; nothing is drawn."""

    output_dir: Nothing = None
    plan: PlanAsk

    def to_spec(self, desk: Desk) -> ConflictsSpec:
        """The studio's own request."""
        return ConflictsSpec(**_composing(desk, self))


Settings = Annotated[dict[str, dict[str, Any]], AfterValidator(plain)]


class TrainAsk(Ask):
    """A training on the photos of a concept.

    settings: tables of the training's settings, without those that name files and folders.
    keep: put the finished adapter into the library.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    concept: Id
    base: BaseId = "embedded"
    settings: Settings = Field(default_factory=dict)
    redact: Literal["none", "private", "minimal"] = "none"
    keep: bool = True

    def to_spec(self, desk: Desk) -> TrainSpec:
        """The studio's own request. Raises Problem 422 for a setting that names a file."""
        found = sorted(key for key in files_in_settings() if key.split(".")[1] in self.settings.get(key.split(".")[0], {}))
        if found:
            raise Problem(422, f"{', '.join(found)} cannot be set here: photos and base model are named by their ids.")
        settings = {name: dict(table) for name, table in self.settings.items()}
        settings.setdefault("concept", {})["images"] = desk.used(self.concept, Kind.CONCEPT, "concept").id
        settings.setdefault("model", {})["base"] = base_of(desk, self.base)
        return TrainSpec(settings=settings, redact=self.redact, keep=self.keep)


def files_in_settings() -> frozenset[str]:
    """Settings of a training that name files, folders or base models."""
    from pathlib import Path

    return frozenset(option.key for option in options() if issubclass(option.kind, Path)) | {"model.base"}


def base_of(desk: Desk, base: str) -> str:
    """The base model as the studio names it. Raises Problem 422 for one that the caller has not."""
    return base if base == "embedded" else desk.used(base, Kind.BASE, "base").id


def check_pictures(desk: Desk, number: int) -> None:
    """Problem 422 for more pictures than one job may have."""
    most = desk.counter.settings.limits.pictures
    if number > most:
        raise Problem(422, f"{number} pictures are too many for one job; {most} are the most.")


def _drawing(desk: Desk, ask: Drawing) -> dict[str, Any]:
    names = (name for name in Drawing.model_fields if name not in ("output_dir", "base"))
    return {name: getattr(ask, name) for name in names} | {"base": base_of(desk, ask.base)}


def _composing(desk: Desk, ask: ComposeAsk | CompareAsk | ConflictsAsk) -> dict[str, Any]:
    return {"plan": ask.plan.to_plan(desk), "batch_size": ask.batch_size, "dtype": ask.dtype, "metadata": ask.metadata}
