"""What a job is asked to do, as closed and frozen values that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from studio.composition.plan import CompositionPlan

Int = Annotated[int, Strict()]
Float = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Name = Annotated[str, Field(min_length=1, max_length=4_096)]
Seed = Annotated[Int, Field(ge=0, le=2**63 - 1)]
Side = Annotated[Int, Field(ge=8, le=16_384)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Spec(BaseModel):
    """A piece of a request: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class JobSpec(Spec):
    """What one kind of job needs to know. `output_dir`: by default a folder of the job's own under the home."""

    kind: ClassVar[str]
    output_dir: Name | None = None

    def title(self) -> str:
        """A few words for lists."""
        raise NotImplementedError


class Drawing(JobSpec):
    """What every job that draws can be told. None means the base model's own default; a seed of None is drawn once, when the
    job is handed in."""

    base: Name = "embedded"
    negative_prompt: Annotated[str, Field(max_length=20_000)] = ""
    num_images: Annotated[Int, Field(ge=1, le=10_000)] = 1
    seed: Seed | None = None
    steps: Annotated[Int, Field(ge=1, le=1000)] = 30
    guidance_scale: Float | None = None
    width: Side | None = None
    height: Side | None = None
    scheduler: Name | None = None
    batch_size: Annotated[Int, Field(ge=1, le=256)] = 8
    dtype: Precision = "auto"
    metadata: bool = True


class AdapterChoice(Spec):
    """An adapter of the library (its id, the beginning of its id, or its name) or a file, and how strongly it acts.

    `sha256` is filled in when the job is handed in, and checked when it runs.
    """

    adapter: Name
    strength: Float = 1.0
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class StartPicture(Spec):
    """A picture to start from: of the library (its id) or a file.

    Attributes:
        change: how far to leave it, above 0 to 1. mask: a grey picture, white where it is drawn anew; None for all of it.
        sha256, mask_sha256: of the files; filled in when the job is handed in, and checked when it runs.
    """

    picture: Name
    change: Annotated[Float, Field(gt=0, le=1)] = 0.6
    mask: Name | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    mask_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class ControlPicture(Spec):
    """A picture that a ControlNet follows. model: a folder in the diffusers layout. scale: how strongly."""

    picture: Name
    model: Name
    scale: Annotated[Float, Field(ge=0, le=2)] = 1.0
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class TrainSpec(JobSpec):
    """A training run.

    Attributes:
        settings: tables of `docs/training-config.md`: {"concept": {"images": …, "class_noun": …}, "schedule": …}. `images` may
            be the id or the name of a concept in the library.
        redact: what to leave out of the adapter files.
        keep: put the finished adapter into the library.
    """

    kind: ClassVar[str] = "train"
    settings: Mapping[str, Mapping[str, Any]]
    redact: Literal["none", "private", "minimal"] = "none"
    keep: bool = True

    def title(self) -> str:
        """The method and the words."""
        concept = self.settings.get("concept", {})
        method = self.settings.get("adapter", {}).get("method", "dreambooth-lora")
        return f"{method}: {concept.get('token', 'ohwx')} {concept.get('class_noun', '')}".strip()


class GenerateSpec(Drawing):
    """Pictures from prompts; `num_images` of each prompt, with seeds in a row."""

    kind: ClassVar[str] = "generate"
    prompts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)]
    adapters: Annotated[tuple[AdapterChoice, ...], Field(max_length=64)] = ()
    start: StartPicture | None = None
    control: ControlPicture | None = None

    def title(self) -> str:
        """The first prompt."""
        return self.prompts[0]

    @property
    def is_steered(self) -> bool:
        """Whether pictures decide it besides words: then it shares no pass with other jobs."""
        return self.start is not None or self.control is not None


class ComposeSpec(JobSpec):
    """Pictures of a plan with several adapters; entries may name adapters of the library by id or name."""

    kind: ClassVar[str] = "compose"
    plan: CompositionPlan
    batch_size: Annotated[Int, Field(ge=1, le=256)] = 8
    dtype: Precision = "auto"
    metadata: bool = True

    def title(self) -> str:
        """The plan's prompt."""
        return self.plan.prompt


class CompareSpec(ComposeSpec):
    """A plan by several strategies side by side; `strategies` names them, or is ("all",)."""

    kind: ClassVar[str] = "compare"
    strategies: Annotated[tuple[Name, ...], Field(min_length=1)] = ("all",)
    scorer: Name = "guide"


class ConflictsSpec(ComposeSpec):
    """How much a plan's adapters get in each other's way; nothing is drawn. See `studio compose --conflicts`."""

    kind: ClassVar[str] = "conflicts"


class StylizeSpec(Drawing):
    """Content of one B-LoRA in the style of another, or either of them with words; see `studio stylize`."""

    kind: ClassVar[str] = "stylize"
    content: AdapterChoice | None = None
    style: AdapterChoice | None = None
    prompt: Text | None = None
    keep_colours: bool = False
    content_prompt: Text | None = None
    style_prompt: Text | None = None
    content_block: Name | None = None
    style_block: Name | None = None
    num_images: Annotated[Int, Field(ge=1, le=10_000)] = 4

    def title(self) -> str:
        """The prompt, or the two files."""
        return self.prompt or " in the style of ".join(half.adapter for half in (self.content, self.style) if half is not None)


class BatchSpec(JobSpec):
    """Many requests, run as `studio batch FILE` with these options, in a process of its own.

    Attributes:
        file: a batch file; or instead of it
        document: what such a file holds, as plain values (`docs/batch.md`). Ids of the library may stand for files; other names
            of files start in the job's folder, so they should be absolute.
    """

    kind: ClassVar[str] = "batch"
    file: Name | None = None
    document: Mapping[str, Any] | None = None
    options: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _either(self) -> BatchSpec:
        if (self.file is None) == (self.document is None):
            raise ValueError("a batch is a file or a document, and one of them alone")
        return self

    def title(self) -> str:
        """The file, or the document's name."""
        if self.document is None:
            return str(self.file)
        return str(self.document.get("name", "batch"))[:500]


SPECS: Mapping[str, type[JobSpec]] = {
    spec.kind: spec for spec in (TrainSpec, GenerateSpec, ComposeSpec, CompareSpec, ConflictsSpec, StylizeSpec, BatchSpec)
}
"""Every kind of job by its name."""

DRAWING_KINDS = ("generate", "compose", "compare", "conflicts", "stylize")
"""Kinds that the warm worker does; the others have a process each."""


class Submit(Spec):
    """How a job waits and runs; all of it optional.

    Attributes:
        priority: higher goes first; among equals the earlier one.
        needs: ids of jobs that must have succeeded before. It is canceled if one of them fails.
        title: for lists; by default what the spec says.
        device: "cpu", "cuda:1"; by default any.
        time_limit_seconds: of running time, after which it is stopped and fails.
        max_attempts: how often it is begun at most if the process that works on it dies.
        held: wait until somebody resumes it.
        owner: whose it is; fairness is between owners.
        key: handing in the same owner's same key again gives the job that there is already.
        parent: id of the job or batch it belongs to.
    """

    priority: Annotated[Int, Field(ge=-1000, le=1000)] = 0
    needs: tuple[Name, ...] = ()
    title: Annotated[str, Field(max_length=500)] | None = None
    device: Name | None = None
    time_limit_seconds: Annotated[float, Field(gt=0)] | None = None
    max_attempts: Annotated[Int, Field(ge=1, le=100)] = 3
    held: bool = False
    owner: Annotated[str, Field(max_length=200)] = ""
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    parent: Name | None = None
