"""Compiled blocks, and a pass of the denoiser as one CUDA graph.

Compiling pays on a GPU, where a UNet's hundreds of small operations cost more to start than to run. Only the repeated
transformer blocks are compiled (`unet.compile_repeated_blocks`): as quick as the whole and many times sooner done. Adapters can
be switched under compiled blocks without compiling again: their ranks are padded to few sizes and their factors are data, so
open `patched` before the first call and keep its shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from studio.pipelines.errors import UserError


def compile_blocks(unet: Any, *, backend: str = "inductor") -> None:
    """Compile the UNet's repeated transformer blocks, each kind once.

    Raises:
        UserError: the UNet says of no block that it is repeated.
    """
    if not getattr(unet, "_repeated_blocks", None):
        raise UserError(f"A {type(unet).__name__} has no repeated blocks to compile; draw without --compile.")
    unet.compile_repeated_blocks(fullgraph=False, backend=backend)


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

    def __call__(self, arguments: Mapping[str, Tensor]) -> Tensor:
        """Copy the arguments in, replay, and return a copy of the result.

        Raises:
            ValueError: other names or shapes than were recorded.
        """
        if {name: tensor.shape for name, tensor in arguments.items()} != {n: t.shape for n, t in self._inputs.items()}:
            raise ValueError("A CUDA graph takes the names and shapes that it was recorded with.")
        for name, tensor in arguments.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._output.clone()
