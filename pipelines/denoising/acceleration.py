"""Compiled blocks, and a pass of the denoiser as one CUDA graph.

Both pay on a GPU, where a UNet's hundreds of small operations cost more to start than to run. Only the repeated transformer
blocks are compiled (`unet.compile_repeated_blocks`): as quick as the whole and many times sooner done. Adapters are switched
under compiled blocks without compiling again, see `studio.pipelines.adapters.traced`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from studio.pipelines.adapters.joint_site import changes_of_memory
from studio.pipelines.adapters.traced import mark_compiled
from studio.pipelines.errors import UserError

MOST_COMPILATIONS = 64
"""Of the blocks' one forward: for each width and grid of a UNet, with and without adapters. torch gives up at 8 by itself."""

_recorded: WeakSet[nn.Module] = WeakSet()


def compile_blocks(unet: Any, *, backend: str | Callable[..., Any] = "inductor", fullgraph: bool = False) -> None:
    """Compile the UNet's repeated transformer blocks, each kind once, when they first run.

    Raises:
        UserError: the UNet says of no block that it is repeated.
    """
    if not getattr(unet, "_repeated_blocks", None):
        raise UserError(f"A {type(unet).__name__} has no repeated blocks to compile; draw without --compile.")
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_COMPILATIONS)
    unet.compile_repeated_blocks(fullgraph=fullgraph, backend=backend)
    mark_compiled(unet)


@contextmanager
def recorded_passes(unet: nn.Module, device: torch.device) -> Iterator[str]:
    """Inside the block, passes of the UNet that have come up before are recorded as CUDA graphs and replayed.

    Yields:
        A note that says why they are not; empty where they are.
    """
    if device.type != "cuda":
        yield f"CUDA graphs need a CUDA device, and the model is on {device.type}; passes run as they are."
        return
    _recorded.add(unet)
    try:
        yield ""
    finally:
        _recorded.discard(unet)


def records_passes(unet: nn.Module) -> bool:
    """Whether `recorded_passes` is open on this model."""
    return unet in _recorded


class Recording:
    """A pass that is run again and again with other latents: as it is the first time, then recorded, then replayed."""

    def __init__(self) -> None:
        self._num_runs = 0
        self._changes = -1
        self._graph: GraphedPass | None = None

    def run(self, function: Callable[[Mapping[str, Tensor]], Tensor], arguments: Mapping[str, Tensor]) -> Tensor:
        """`function(arguments)`. The first run makes what is kept for the later ones, as keys and values of words."""
        self._num_runs += 1
        if self._num_runs == 1:
            return function(arguments)
        graph = self._graph
        if graph is None or self._changes != changes_of_memory() or not graph.fits(arguments):
            graph = self._graph = GraphedPass(function, arguments)
            self._changes = changes_of_memory()
        return graph(arguments)


class GraphedPass:
    """One shape of a function of tensors as a CUDA graph: recorded once, then replayed on new numbers.

    Everything that the function reads besides its arguments (weights, factors of adapters) is read where it was at the
    recording. Factors are written in place when adapters of the same ranks are switched, so a replay sees them.

    Args:
        run: reads the named tensors and returns one. example: arguments of the shapes to record.

    Raises:
        UserError: there is no CUDA device.
    """

    def __init__(self, run: Callable[[Mapping[str, Tensor]], Tensor], example: Mapping[str, Tensor], warm_ups: int = 3) -> None:
        if not torch.cuda.is_available():
            raise UserError("A CUDA graph needs a CUDA device, which is not here.")
        self._inputs = {name: tensor.clone() for name, tensor in example.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(warm_ups):
                run(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self._output = run(self._inputs)

    def fits(self, arguments: Mapping[str, Tensor]) -> bool:
        """Whether these have the names, shapes and types that were recorded."""
        return _kinds(arguments) == _kinds(self._inputs)

    def __call__(self, arguments: Mapping[str, Tensor]) -> Tensor:
        """Copy the arguments in, replay, and return a copy of the result.

        Raises:
            ValueError: other names, shapes or types than were recorded.
        """
        if not self.fits(arguments):
            raise ValueError("A CUDA graph takes the names, shapes and types that it was recorded with.")
        for name, tensor in arguments.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._output.clone()


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
