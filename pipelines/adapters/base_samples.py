"""Samples of a base tensor's values, by which a change that only fits one base model knows it again.

A sparse change means something on the weights it was trained on and nothing on others. A hash of the whole tensor would
refuse the same base in another precision and would read every weight; so 64 values at fixed places stand for it. They are
compared with a tolerance that half precision of either kind stays within, 2⁻⁷ of the value (bfloat16 rounds by 2⁻⁸ at most,
float16 by 2⁻¹¹, and either may have been rounded before) and 1e-7 near zero (float16 has steps of 6e-8 there). Another base,
a finetune of the same one included, is outside of it at the first tensors.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studio.pipelines.errors import AdapterFileError, AdapterMismatchError

NUM_SAMPLES = 64
RELATIVE_TOLERANCE = 2.0**-7
ABSOLUTE_TOLERANCE = 1e-7


@dataclass(frozen=True)
class BaseSamples:
    """Values of one tensor of a base model.

    Attributes:
        values: up to 64 of them, evenly spread over the flattened tensor.
        base_name: the base model, as the user named it, for the error; None if it is not known.
    """

    values: tuple[float, ...]
    base_name: str | None = None

    @classmethod
    def of(cls, weight: Tensor, base_name: str | None = None) -> BaseSamples:
        """The samples of `weight`."""
        return cls(tuple(_sampled(weight).tolist()), base_name)

    def require(self, weight: Tensor) -> None:
        """Raise AdapterMismatchError unless `weight` is the tensor these samples are of, in whatever precision.

        A weight that is quantized, offloaded or already changed by another adapter does not show its values and passes.
        """
        if weight.is_meta or not weight.dtype.is_floating_point or not isinstance(weight, nn.Parameter):
            return
        own, found = torch.tensor(self.values), _sampled(weight)
        allowed = RELATIVE_TOLERANCE * torch.maximum(own.abs(), found.abs()) + ABSOLUTE_TOLERANCE
        differing = int(((own - found).abs() > allowed).sum()) if own.shape == found.shape else len(own)
        if differing:
            known = "the base model it was trained on" if self.base_name is None else f"the base model {self.base_name!r}"
            raise AdapterMismatchError(
                f"It changes single weights of {known}, and this model has others here: {differing} of {len(own)} samples "
                f"differ. Use it with {known}."
            )

    def as_text(self) -> str:
        """The values as base64 of little-endian float32."""
        return base64.b64encode(torch.tensor(self.values).numpy().astype("<f4").tobytes()).decode("ascii")

    @classmethod
    def from_text(cls, text: str, base_name: str | None = None) -> BaseSamples:
        """What `as_text` wrote; AdapterFileError if it is something else."""
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError:
            content = b"?"
        if not content or len(content) % 4 or len(content) > 4 * NUM_SAMPLES:
            raise AdapterFileError("the samples of the base model in its metadata are damaged.")
        return cls(tuple(torch.frombuffer(bytearray(content), dtype=torch.float32).tolist()), base_name)


def _sampled(weight: Tensor) -> Tensor:
    """Float32, on the CPU."""
    flat = weight.detach().reshape(-1)
    count = min(NUM_SAMPLES, flat.numel())
    places = torch.arange(count, device=flat.device) * flat.numel() // count
    return flat[places].to(device="cpu", dtype=torch.float32)
