"""What a batch over the API may hold: all that a batch file may, with ids in the place of every path.

It is expanded before anything is kept, and every request of the expansion is looked at: whatever an axis, a default or a tag
in a prompt puts together, what names a file must be the id of a thing that the caller may use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field

from studio.api.asks import Ask, Sampler, base_of, check_pictures, files_in_settings, plain
from studio.api.desk import Desk
from studio.api.problems import Problem
from studio.batch.expansion import Expanded, expand
from studio.batch.fields import ComposeRequest, GenerateRequest, TrainRequest
from studio.batch.reading import batch_of, flat_values
from studio.composition.plan_files import plan_from_values
from studio.jobs.specs import Int, Precision
from studio.service import BatchSpec, Kind, TrainSpec
from studio.service.requests import resolved_train

MAX_EXCLUDES = 1000
_NAMED = frozenset({"concept.images", "model.base"})
"""Settings of a training that name things, here by their ids."""

Document = Annotated[
    dict[str, Any],
    AfterValidator(plain),
    Field(description="What a batch file in YAML or JSON holds: jobs, defaults, matrix, zip, exclude, wildcards, name, grid."),
]


class BatchAsk(Ask):
    """Many requests at once: `document`, or `text` in the encoding `form`. The batch guide has all that they may say.

    Adapters, masks, base models and concepts are ids of the library, in prompts too: `<lora:ID:0.8>`.
    continue_on_error: pass over what fails; otherwise the first failure ends it. scorer: "guide" also scores the pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    document: Document | None = None
    text: Annotated[str, Field(min_length=1, max_length=500_000)] | None = None
    form: Literal["txt", "csv", "jsonl"] = "txt"
    batch_size: Annotated[Int, Field(ge=1, le=64)] = 8
    dtype: Precision = "auto"
    continue_on_error: bool = True
    scorer: Literal["guide", "none"] = "none"

    def to_spec(self, desk: Desk) -> BatchSpec:
        """The studio's own request. Raises Problem or ConfigError for what cannot be, or what the caller may not use."""
        values = self._values()
        batch = batch_of(values, Path("batch"), opens_files=False)
        if any(len(entry.exclude) > MAX_EXCLUDES for entry in batch.entries):
            raise Problem(422, f"exclude: {MAX_EXCLUDES} tables are the most.")
        requests = expand(batch, desk.counter.settings.limits.pictures)
        check_pictures(desk, len(requests))
        for each in requests:
            _check(desk, each)
        options = ["--batch-size", str(self.batch_size)]
        options += ["--dtype", self.dtype] if self.dtype != "auto" else []
        options += ["--continue-on-error"] if self.continue_on_error else []
        options += ["--scorer", self.scorer] if self.scorer != "none" else []
        return BatchSpec(document=values, options=tuple(options))

    def _values(self) -> dict[str, Any]:
        if (self.document is None) == (self.text is None):
            raise Problem(422, "Give a document or a text, and one of them alone.")
        if self.document is not None:
            return self.document
        try:
            values: dict[str, Any] = plain(flat_values(self.text or "", f".{self.form}", "text")[0])
        except ValueError as error:
            raise Problem(422, f"text: {error}.") from error
        return values


def _check(desk: Desk, each: Expanded) -> None:
    """Problem 403 or 422 for a request that is not for the caller, or names what it must not."""
    request, where = each.request, each.where
    if isinstance(request, GenerateRequest):
        _check_names(desk, request.base, request.scheduler, where)
        for adapter in request.adapters:
            desk.used(adapter.file.removesuffix(".safetensors"), Kind.ADAPTER, f"{where}: adapters")
    elif isinstance(request, ComposeRequest):
        _check_plan(desk, request, where)
    else:
        _check_training(desk, request, where)


def _check_plan(desk: Desk, request: ComposeRequest, where: str) -> None:
    if request.plan is not None:
        raise Problem(422, f"{where}: plan names a file, which cannot be here; write entries and strategy into the request.")
    plan = plan_from_values(dict(request.values), source=where)
    _check_names(desk, plan.base, plan.scheduler, where)
    for entry in plan.entries:
        desk.used(entry.adapter, Kind.ADAPTER, f"{where}: entries")
        if entry.region is not None and entry.region.mask is not None:
            desk.used(entry.region.mask, Kind.PICTURE, f"{where}: mask")


def _check_training(desk: Desk, request: TrainRequest, where: str) -> None:
    if not desk.caller.may("train"):
        raise Problem(403, f"{where}: this token has not the scope train.")
    if request.config is not None or request.num_processes != 1:
        raise Problem(422, f"{where}: config and num_processes cannot be set here.")
    settings: dict[str, dict[str, Any]] = {name: dict(table) for name, table in request.values.items()}
    found = sorted(key for key in files_in_settings() - _NAMED if key.split(".")[1] in settings.get(key.split(".")[0], {}))
    if found:
        raise Problem(422, f"{where}: {', '.join(found)} cannot be set here.")
    images, base = settings.get("concept", {}).get("images"), settings.get("model", {}).get("base", "embedded")
    desk.used(str(images), Kind.CONCEPT, f"{where}: concept.images")
    base_of(desk, str(base))
    settings["adapter"] = {**settings.get("adapter", {}), "method": request.method}
    resolved_train(desk.studio.library, TrainSpec(settings=settings))


def _check_names(desk: Desk, base: str, sampler: str | None, where: str) -> None:
    base_of(desk, base)
    if sampler is not None and sampler not in get_args(Sampler):
        raise Problem(422, f"{where}: there is no sampler {sampler[:40]!r}; there are {', '.join(get_args(Sampler))}.")
