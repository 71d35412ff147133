"""Passes of the denoiser: branches in, predictions and attention maps out.

What is made of a branch's routes, texts and regions is made once for a generation: routes are bound, texts are joined,
keys and values of words are computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from studio.pipelines.adapters.routing import LeftOut
from studio.pipelines.adapters.traced import is_compiled
from studio.pipelines.denoising.acceleration import records_passes
from studio.pipelines.denoising.attention.control import Captured, attention_control
from studio.pipelines.denoising.attention.isolation import isolated_layers
from studio.pipelines.denoising.attention.layers import last_part
from studio.pipelines.denoising.batching import group_branches, identity, with_fewer_captured
from studio.pipelines.denoising.block_texts import block_texts
from studio.pipelines.denoising.denoiser import Denoiser, DenoiserCall, DenoiserOutput
from studio.pipelines.denoising.prepared import PreparedPass
from studio.pipelines.denoising.request import Branch, DenoiseRequest, PassOutput, Step
from studio.pipelines.errors import UserError

_MOST_KEPT = 64


class Passes:
    """Makes the passes of one generation.

    Attributes:
        denoiser, request: what runs, and for what. timesteps: the scheduler's, all of them.
    """

    def __init__(self, denoiser: Denoiser, request: DenoiseRequest) -> None:
        self.denoiser = denoiser
        self.request = request
        self.timesteps: Tensor = request.scheduler.timesteps
        self._prepared: OrderedDict[Hashable, PreparedPass] = OrderedDict()
        self._features: dict[Hashable, Tensor] = {}
        self._left_out: dict[LeftOut, None] = {}

    def like(self, request: DenoiseRequest) -> Passes:
        """Others of the same kind, for another request of the same generation."""
        return Passes(self.denoiser, request)

    def step(self, index: int) -> Step:
        """The step at `index` of the schedule."""
        return Step(index, len(self.timesteps), self.timesteps[index])

    def report(self) -> tuple[LeftOut, ...]:
        """Every patch that did not act in some pass so far, and why."""
        return tuple(self._left_out)

    def run(self, latents: Tensor, step: Step, branches: Sequence[Branch]) -> list[PassOutput]:
        """Make the passes that `branches` ask for; see `open`."""
        with self.open(latents, step, branches) as outputs:
            return outputs

    @contextmanager
    def open(
        self, latents: Tensor, step: Step, branches: Sequence[Branch], *, stops_early: bool = False
    ) -> Iterator[list[PassOutput]]:
        """Make the passes that `branches` ask for.

        For a gradient with respect to the latents: call it with gradients enabled, and go backward inside the block, where
        the adapters still act: gradient checkpointing runs forwards again then, which must find the model as it was.
        Branches that cannot be one batch cannot be open together; with checkpointing, open them one after the other.

        Args:
            latents: the loop's, `[B, C, h, w]`; they are scaled here as the scheduler wants it.
            stops_early: end each pass after the last layer that is captured; there are no predictions then.

        Yields:
            What came of each branch, in their order.

        Raises:
            UserError: the denoiser cannot do what a branch asks for.
            ValueError: branches of several batches, gradients and checkpointing.
        """
        self.denoiser.wake()
        self._check(branches)
        model_input = _scaled(self.request.scheduler, latents, step.timestep)
        is_cached = [self._has_feature(branch) for branch in branches]
        request = self.request
        if request.captured_share < 1.0:
            branches = [with_fewer_captured(branch, request.captured_share) for branch in branches]
        components, most_rows = self.denoiser.components(), request.most_rows
        groups = group_branches(branches, is_cached, components, request.max_rows, len(latents), most_rows)
        runs_again = torch.is_grad_enabled() and getattr(self.denoiser.network, "is_gradient_checkpointing", False)
        if len(groups) > 1 and runs_again:
            raise ValueError("With gradient checkpointing, branches with different adapters are opened one after the other.")
        outputs: list[PassOutput] = []
        with ExitStack() as still_open:
            for group in groups:
                still_open.close()
                chosen = [branches[index] for index in group]
                outputs += still_open.enter_context(self._pass(model_input, step, chosen, is_cached[group[0]], stops_early))
            yield outputs

    @contextmanager
    def _pass(
        self, model_input: Tensor, step: Step, branches: Sequence[Branch], is_cached: bool, stops_early: bool
    ) -> Iterator[list[PassOutput]]:
        """One batch."""
        count, num_pictures = len(branches), len(model_input)
        prepared = self._prepare(branches, num_pictures, (model_input.shape[-2], model_input.shape[-1]))
        captures = [
            None if branch.capture is None else Captured(branch.capture, slice(index * num_pictures, (index + 1) * num_pictures))
            for index, branch in enumerate(branches)
        ]
        network = self.denoiser.network
        with ExitStack() as restore:
            if prepared.routes is not None:
                restore.enter_context(prepared.routes.open())
            if self.denoiser.has_parts:
                prepared.fill_region_text(network)
                if is_compiled(network):
                    prepared.fill_text(network)
                restore.enter_context(block_texts(network, prepared.block_texts))
                asked = [captured for captured in captures if captured is not None]
                restore.enter_context(attention_control(network, prepared.control, asked))
                restore.enter_context(isolated_layers(network, prepared.control))
            output = self._predict(prepared, branches, torch.cat([model_input] * count), step, is_cached, stops_early)
            predictions = [None] * count if output.prediction is None else output.prediction.float().chunk(count)
            yield [
                PassOutput(prediction, None if captured is None else captured.maps())
                for prediction, captured in zip(predictions, captures, strict=True)
            ]

    def _predict(
        self,
        prepared: PreparedPass,
        branches: Sequence[Branch],
        rows: Tensor,
        step: Step,
        is_cached: bool,
        stops_early: bool,
    ) -> DenoiserOutput:
        """Run the denoiser on all rows, and keep or use deep features."""
        layers = [layer for branch in branches if branch.capture is not None for layer in branch.capture.layers]
        features = [branch.features for branch in branches]
        first = features[0]
        call = DenoiserCall(
            latents=rows,
            timestep=step.timestep,
            condition=prepared.condition,
            height=self.request.height,
            width=self.request.width,
            stop_after=last_part(self.denoiser.network, layers) if stops_early and layers else None,
            depth=None if first is None else first.depth,
            deep_feature=torch.cat([self._features[use.key] for use in features if use is not None]) if is_cached else None,
        )
        if self.request.control is not None:
            call = replace(call, control=self.request.control.residuals(call))
        output = self._output(prepared, call, branches)
        if output.deep_feature is not None and not is_cached:
            for use, feature in zip(features, output.deep_feature.detach().chunk(len(branches)), strict=True):
                assert use is not None
                self._features[use.key] = feature
        return output

    def _output(self, prepared: PreparedPass, call: DenoiserCall, branches: Sequence[Branch]) -> DenoiserOutput:
        """What the denoiser makes of it; replayed, where passes are recorded and nothing but latents and time changes."""
        is_fixed = call.stop_after is None and call.depth is None and call.control is None and prepared.control.text is not None
        captures = any(branch.capture is not None for branch in branches)
        if not is_fixed or captures or torch.is_grad_enabled() or not records_passes(self.denoiser.network):
            return self.denoiser.predict(call)

        def predict(arguments: Mapping[str, Tensor]) -> Tensor:
            output = self.denoiser.predict(replace(call, latents=arguments["latents"], timestep=arguments["timestep"]))
            assert output.prediction is not None
            return output.prediction

        return DenoiserOutput(prepared.recording.run(predict, {"latents": call.latents, "timestep": call.timestep}))

    def _has_feature(self, branch: Branch) -> bool:
        use = branch.features
        return use is not None and not use.refreshes and use.key in self._features

    def _prepare(self, branches: Sequence[Branch], num_pictures: int, size: tuple[int, int]) -> PreparedPass:
        """What is made of these branches once."""
        key = (tuple(identity(branch) for branch in branches), num_pictures, size)
        if key not in self._prepared:
            prepared = PreparedPass(self.denoiser, branches, num_pictures, size, keeps_text=self.request.keeps_text)
            self._left_out |= dict.fromkeys(prepared.report())
            self._prepared[key] = prepared
            if len(self._prepared) > _MOST_KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _check(self, branches: Sequence[Branch]) -> None:
        if self.denoiser.has_parts:
            return
        wishes = {
            "regions": any(branch.regions or branch.isolation for branch in branches),
            "adapters with a mask": any(route.mask is not None for branch in branches for route in branch.routes),
            "attention maps": any(branch.capture is not None for branch in branches),
            "cached features": any(branch.features is not None for branch in branches),
            "prompts for single blocks": any(branch.block_conditions for branch in branches),
        }
        asked = [name for name, is_asked in wishes.items() if is_asked]
        if asked:
            raise UserError(
                f"A {type(self.denoiser.network).__name__} has no UNet's attention: {' and '.join(asked)} cannot be had of it. "
                f"Choose a strategy without, as merge, switch or composite."
            )


def _scaled(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    scale = getattr(scheduler, "scale_model_input", None)
    return latents if scale is None else scale(latents, timestep)
