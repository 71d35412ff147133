"""A generation without numbers: loop and strategy run as they are, the denoiser on the meta device, and its cost is counted.

The strategy gets predictions and attention maps that mean nothing, with a way back to the latents, so that what it does with
gradients is counted too. A pass that came up before is not run again: it is booked at what it cost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from studio.pipelines.adapters import Adapter, Route
from studio.pipelines.counting import Cost, CostCounter, counting
from studio.pipelines.denoising.attention.capture import AttentionMaps, Capture
from studio.pipelines.denoising.attention.regions import Region
from studio.pipelines.denoising.batching import identity
from studio.pipelines.denoising.denoiser import Denoiser, DenoiserCall, DenoiserOutput
from studio.pipelines.denoising.loop import denoise
from studio.pipelines.denoising.passes import Passes
from studio.pipelines.denoising.request import Branch, DenoiseRequest, PassOutput, Step, Strategy
from studio.pipelines.denoising.unet_denoiser import UNetDenoiser
from studio.pipelines.encoding import TextCondition

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class DryRun:
    """What a generation costs.

    Attributes:
        steps: cost of each step; what comes before the first one is in it. peak_bytes: the most bytes of activations, and of
            what is kept between passes, alive at once; the weights of models and adapters do not count.
    """

    steps: tuple[Cost, ...]
    peak_bytes: int

    @property
    def total(self) -> Cost:
        """Of all steps."""
        return sum(self.steps, Cost())


@dataclass(frozen=True, kw_only=True)
class DryModel:
    """The denoiser that is counted.

    Attributes:
        base: a base model whose UNet is on the meta device. adapter: what stands for an adapter there.
        text: what stands for a text's features there. device: where the strategy's own numbers are.
        runs: how often a pass is run before it is known; the first run also makes what is kept for later ones.
        whole_pipelines: count as if whole pipelines were put together: attention with all its scores in memory, every pass
            by itself and to its end, its text computed anew. region_passes: and a pass for every region.
    """

    base: Any
    adapter: Callable[[Adapter], Adapter] = lambda adapter: adapter.to("meta")
    text: Callable[[TextCondition], TextCondition] = lambda text: TextCondition(
        text.prompt_embeds.to("meta"), None if text.pooled is None else text.pooled.to("meta")
    )
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    runs: int = 2
    whole_pipelines: bool = False
    region_passes: bool = False


def on_meta(module: ModuleT) -> ModuleT:
    """A copy of a module whose parameters and buffers hold no numbers; no number is copied on the way."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        twin = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    return copy.deepcopy(module, memo)


def dry_run(model: DryModel, request: DenoiseRequest, strategy: Strategy) -> DryRun:
    """Count a generation. `request` and `strategy` are as for `denoise`; the noise's numbers do not matter.

    Raises:
        NotImplementedError: a pass asks for what depends on numbers.
    """
    with counting(all_scores=model.whole_pipelines) as counter:
        marks: list[Cost] = []
        denoise(
            UNetDenoiser(model.base, model.device),
            request,
            strategy,
            on_step=lambda done, steps: marks.append(counter.cost),
            make_passes=lambda denoiser, asked: DryPasses(denoiser, asked, model, counter),
        )
    steps = [after - before for before, after in zip([Cost(), *marks[:-1]], marks, strict=True)]
    return DryRun(tuple(steps), counter.peak_bytes)


_Name = tuple[str, int, str]
"""Which of a branch's outputs: kind, number of the region, name of the layer."""


@dataclass(eq=False)
class _Known:
    """A pass that came up before: how often, what it costs forward and backward, and the shapes of what comes of each branch."""

    runs: int = 0
    forward: Cost = field(default_factory=Cost)
    backward: Cost = field(default_factory=Cost)
    shapes: tuple[dict[_Name, torch.Size], ...] = ()


class DryPasses(Passes):
    """Passes that give nothing but their cost, booked at `counter`, whose block is open."""

    def __init__(self, denoiser: Denoiser, request: DenoiseRequest, model: DryModel, counter: CostCounter) -> None:
        super().__init__(denoiser, request)
        self.counter = counter
        self._model = model
        settings: dict[str, Any] = {"max_rows": 0, "most_rows": 1, "keeps_text": False} if model.whole_pipelines else {}
        inner = replace(request, noise=request.noise.to("meta"), **settings)
        self._inner = Passes(_Counted(model.base, self.counter), inner)
        self._known: dict[Hashable, _Known] = {}
        self._twins: dict[int, tuple[Any, Any]] = {}

    def like(self, request: DenoiseRequest) -> Passes:
        """Others that are booked with these."""
        return DryPasses(self.denoiser, request, self._model, self.counter)

    @contextmanager
    def open(
        self, latents: Tensor, step: Step, branches: Sequence[Branch], *, stops_early: bool = False
    ) -> Iterator[list[PassOutput]]:
        """As `Passes.open`, with outputs of the right shapes, numbers without meaning, and a way back to the latents."""
        needs_gradient = torch.is_grad_enabled() and latents.requires_grad
        stops_early = stops_early and not self._model.whole_pipelines
        known = self._known.setdefault(self._key(latents, branches, stops_early, needs_gradient), _Known())
        known.runs += 1
        with ExitStack() as still_open:
            link = _Link(self, known, None, ())
            if known.runs <= self._model.runs:
                link = still_open.enter_context(self._run(latents, step, branches, known, stops_early, needs_gradient))
            else:
                self.counter.cost += known.forward
            yield _outputs(latents, known.shapes, link)

    @contextmanager
    def _run(
        self,
        latents: Tensor,
        step: Step,
        branches: Sequence[Branch],
        known: _Known,
        stops_early: bool,
        needs_gradient: bool,
    ) -> Iterator[_Link]:
        """Run the branches on the meta device, and note what it costs."""
        parts = [self._parts(branch) for branch in branches]
        twins = [self._twin_branch(part) for each in parts for part in each]
        way_back = latents.detach().to("meta").requires_grad_(needs_gradient)
        before = self.counter.cost
        with ExitStack() as still_open:
            found = iter(still_open.enter_context(self._inner.open(way_back, step, twins, stops_early=stops_early)))
            known.forward = self.counter.cost - before
            tensors = tuple(_joined([next(found) for _ in each]) for each in parts)
            known.shapes = tuple({name: tensor.shape for name, tensor in each.items()} for each in tensors)
            flat = tuple(tensor for each in tensors for tensor in each.values())
            yield _Link(self, known, way_back, flat if needs_gradient else ())

    def _key(self, latents: Tensor, branches: Sequence[Branch], stops_early: bool, needs_gradient: bool) -> Hashable:
        found = []
        for branch in branches:
            self._twins.setdefault(id(branch.condition), (branch.condition, None))  # held, so that its identity stays its own
            capture, use = branch.capture, branch.features
            columns = () if capture is None else (capture.columns, *capture.region_columns)
            shapes = tuple(None if each is None else each.shape for each in columns)
            kept = None if use is None else (use.depth, use.refreshes, self._inner._has_feature(branch))
            found.append((identity(branch), None if capture is None else capture.layers, shapes, kept))
        return (latents.shape, tuple(found), stops_early, needs_gradient)

    def _parts(self, branch: Branch) -> list[Branch]:
        """The branch, or one for the canvas and one for each region."""
        if self._model.whole_pipelines:
            branch = replace(branch, isolation=None, features=None)
        if not (self._model.region_passes and branch.regions):
            return [branch]
        capture = branch.capture
        columns = () if capture is None else capture.region_columns
        parts = [replace(branch, regions=(), capture=None if capture is None else replace(capture, region_columns=()))]
        for index, region in enumerate(branch.regions):
            own = columns[index] if index < len(columns) else None
            condition = branch.condition if region.condition is None else region.condition
            pooled = branch.condition.pooled if condition.pooled is None else condition.pooled
            parts.append(
                Branch(
                    TextCondition(condition.prompt_embeds, pooled),
                    (*branch.routes, *region.routes),
                    capture=None if own is None or capture is None else Capture(capture.layers, own),
                )
            )
        return parts

    def _twin_branch(self, branch: Branch) -> Branch:
        """The branch on the meta device; masks stay, because places are found by their numbers."""
        isolation = branch.isolation
        if isolation is not None and isolation.reach == "everything":
            isolation = replace(isolation, reach="attention")  # the rest of it depends on numbers
        capture = branch.capture
        return replace(
            branch,
            condition=self._twin_text(branch.condition),
            routes=self._twin_routes(branch.routes),
            block_conditions={stack: self._twin_text(text) for stack, text in branch.block_conditions.items()},
            regions=tuple(self._twin(region, self._twin_region) for region in branch.regions),
            isolation=isolation,
            capture=capture if capture is None else _capture_twin(capture),
        )

    def _twin_region(self, region: Region) -> Region:
        condition = None if region.condition is None else self._twin_text(region.condition)
        return replace(region, condition=condition, routes=self._twin_routes(region.routes))

    def _twin_routes(self, routes: Sequence[Route]) -> tuple[Route, ...]:
        made: tuple[Route, ...] = tuple(self._twin(route, self._twin_route) for route in routes)
        return made

    def _twin_route(self, route: Route) -> Route:
        strength = 1.0 if isinstance(route.strength, Tensor) else route.strength
        return Route(self._twin(route.adapter, self._model.adapter), strength, mask=route.mask)

    def _twin_text(self, text: TextCondition) -> TextCondition:
        made: TextCondition = self._twin(text, self._model.text)
        return made

    def _twin(self, thing: Any, make: Callable[[Any], Any]) -> Any:
        """The one twin of a thing, so that what was the same is the same."""
        known = self._twins.get(id(thing))
        if known is None or known[1] is None:
            with _disable_current_modes():  # an adapter's weights are no activations
                known = (thing, make(thing))
            self._twins[id(thing)] = known
        return known[1]


class _Counted(UNetDenoiser):
    """The UNet, with the rows it ran on."""

    def __init__(self, base: Any, counter: CostCounter) -> None:
        super().__init__(base)
        self._counter = counter

    def predict(self, call: DenoiserCall) -> DenoiserOutput:
        """Run, and count."""
        self._counter.evaluated(len(call.latents))
        return super().predict(call)


@dataclass(frozen=True, eq=False)
class _Link:
    """The way from outputs shown to a strategy to those on the meta device, which has a graph of them if `way_back` is given."""

    passes: DryPasses
    known: _Known
    way_back: Tensor | None
    outputs: tuple[Tensor, ...]

    def go_back(self, wanted: Sequence[bool]) -> None:
        """Run, or book, the backward pass of the outputs that are `wanted`."""
        counter = self.passes.counter
        if self.way_back is None:
            counter.cost += self.known.backward
            return
        before = counter.cost
        chosen = [each for each, is_wanted in zip(self.outputs, wanted, strict=True) if is_wanted and each.requires_grad]
        torch.autograd.grad(chosen, self.way_back, [torch.empty_like(each) for each in chosen], allow_unused=True)
        self.known.backward = counter.cost - before


class _WayBack(torch.autograd.Function):
    """Numbers without meaning, whose gradient goes by way of the meta device and comes back as zeros."""

    @staticmethod
    def forward(context: Any, latents: Tensor, link: _Link, *shapes: torch.Size) -> tuple[Tensor, ...]:
        context.link, context.like = link, latents
        generator = torch.Generator().manual_seed(0)
        with _disable_current_modes():  # those that they stand for are counted
            return tuple(torch.rand(shape, generator=generator).to(latents.device) for shape in shapes)

    @staticmethod
    def backward(context: Any, *gradients: Tensor | None) -> Any:
        context.link.go_back([gradient is not None for gradient in gradients])
        return torch.zeros_like(context.like), None, *(None for _ in gradients)


def _outputs(latents: Tensor, shapes: Sequence[Mapping[_Name, torch.Size]], link: _Link) -> list[PassOutput]:
    """What a strategy is shown."""
    flat = [shape for each in shapes for shape in each.values()]
    values = iter(_WayBack.apply(latents, link, *flat))
    return [_output({name: next(values) for name in each}) for each in shapes]


_PREDICTION: _Name = ("prediction", 0, "")


def _joined(parts: Sequence[PassOutput]) -> dict[_Name, Tensor]:
    """The outputs of a branch's parts by name: the first part's, and of the others their maps of words as those of regions."""
    first = parts[0]
    found: dict[_Name, Tensor] = {} if first.prediction is None else {_PREDICTION: first.prediction}
    maps = AttentionMaps() if first.maps is None else first.maps
    regions = [*maps.regions, *({} if part.maps is None else part.maps.words for part in parts[1:])]
    named: list[tuple[str, int, Mapping[str, Tensor]]] = [("words", 0, maps.words), ("places", 0, maps.places)]
    named += [("region", index, each) for index, each in enumerate(regions)]
    return found | {(kind, index, name): tensor for kind, index, each in named for name, tensor in each.items()}


def _output(values: Mapping[_Name, Tensor]) -> PassOutput:
    maps: dict[tuple[str, int], dict[str, Tensor]] = {}
    for (kind, index, name), tensor in values.items():
        maps.setdefault((kind, index), {})[name] = tensor
    prediction = values.get(_PREDICTION)
    maps.pop(("prediction", 0), None)
    if not maps:
        return PassOutput(prediction)
    num_regions = max((index + 1 for kind, index in maps if kind == "region"), default=0)
    regions = tuple(maps.get(("region", index), {}) for index in range(num_regions))
    return PassOutput(prediction, AttentionMaps(maps.get(("words", 0), {}), regions, maps.get(("places", 0), {})))


def _capture_twin(capture: Capture) -> Capture:
    columns = None if capture.columns is None else capture.columns.to("meta")
    regions = tuple(None if each is None else each.to("meta") for each in capture.region_columns)
    return replace(capture, columns=columns, region_columns=regions)
