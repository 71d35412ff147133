"""Memory in which layers' weights and the adapters on them lie one after the other, so that one product reaches them all.

It is made once for a model. The weights move into it for good: each parameter stays the same object with the same numbers,
and is from then on a view into this memory; what the model needs beyond that is room for the adapters' factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

_FORWARDS = {nn.Linear: nn.Linear.forward, nn.Conv2d: nn.Conv2d.forward}


class JointWeights:
    """What is known of one such memory. It holds none of the model: the parameters do.

    Attributes:
        owner: whose factors are in it; None for nobody's. signature: which of its numbers these are.
        ups: second factors, a flat buffer. bias: of all rows, or None.
        num_blocks: rows of room behind the layers' own.
    """

    def __init__(self, storage: int, num_blocks: int) -> None:
        self.storage = storage
        self.num_blocks = num_blocks
        self.owner: object | None = None
        self.signature: object = None
        self.ups: Tensor | None = None
        self.bias: Tensor | None = None
        self._known_biases: tuple[tuple[int, int], ...] = ()

    def room_for_ups(self, count: int, like: Tensor) -> Tensor:
        """`count` numbers of the buffer, made larger if there are fewer."""
        if self.ups is None or self.ups.numel() < count or self.ups.dtype != like.dtype or self.ups.device != like.device:
            with torch.inference_mode(False):
                self.ups = torch.zeros(count, dtype=like.dtype, device=like.device)
            self.signature, self.owner = None, None
        return self.ups[:count]

    def joint_bias(self, modules: Sequence[nn.Module], rows: Tensor) -> Tensor | None:
        """The layers' present biases, and zeros behind them; None if no layer has one."""
        biases = [module._parameters.get("bias") for module in modules]
        if all(bias is None for bias in biases):
            return None
        known = tuple((id(bias), -1 if bias is None or bias.is_inference() else bias._version) for bias in biases)
        if self.bias is None or self.bias.device != rows.device or self.bias.dtype != rows.dtype or len(self.bias) != len(rows):
            with torch.inference_mode(False):
                self.bias = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
            self._known_biases = ()
        if known != self._known_biases:
            width = modules[0]._parameters["weight"].shape[0]  # type: ignore[union-attr]
            with torch.no_grad():
                for index, bias in enumerate(biases):
                    part = self.bias[index * width : (index + 1) * width]
                    part.zero_() if bias is None else part.copy_(bias)
            self._known_biases = known
        return self.bias


_known: WeakKeyDictionary[nn.Module, JointWeights] = WeakKeyDictionary()


def can_join(module: nn.Module) -> bool:
    """Whether a layer is torch's own, frozen and plain, so that its weight may lie in such a memory."""
    if type(module) not in _FORWARDS or "weight" in module.__dict__ or hasattr(module, "_hf_hook"):
        return False
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return False
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    if not isinstance(weight, nn.Parameter) or type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
        return False
    plain = weight.dtype.is_floating_point and not weight.requires_grad and not weight.is_inference()
    dense = weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    fits = bias is None or (bias.dtype == weight.dtype and not bias.requires_grad)
    return plain and dense and fits


def has_own_forward(module: nn.Module, forward: object) -> bool:
    """Whether `forward` is the one of its class."""
    return getattr(forward, "__func__", None) is _FORWARDS.get(type(module))


def can_join_together(modules: Sequence[nn.Module]) -> bool:
    """Whether layers can stand one after the other: each for itself, and of one shape, type and place."""
    if not all(can_join(module) for module in modules):
        return False
    weights = [module._parameters["weight"] for module in modules]
    facts = {(w.shape, w.dtype, w.device, w.stride()) for w in weights if w is not None}
    has_bias = {module._parameters.get("bias") is None for module in modules}
    return len(facts) == 1 and len(has_bias) == 1 and len({id(weight) for weight in weights}) == len(weights)


def join(modules: Sequence[nn.Module], num_blocks: int) -> tuple[JointWeights, Tensor]:
    """The memory of these layers, with at least `num_blocks` rows of room, and all of it as `[rows, …]`.

    Its numbers are the layers' own, to the bit; where it is made, the room is zero.
    """
    weights = [module._parameters["weight"] for module in modules]
    parameters = [weight for weight in weights if weight is not None]
    known = _known.get(modules[0])
    if known is None or known.num_blocks < num_blocks or not _lies_in(parameters, known.storage):
        known = _moved(parameters, num_blocks)
        _known[modules[0]] = known
    first = parameters[0].data  # not detach(): a factor that is written changes no weight, and autograd shall not think so
    num_rows = len(parameters) * first.shape[0] + known.num_blocks
    return known, first.as_strided((num_rows, *first.shape[1:]), first.stride(), 0)


def _lies_in(parameters: Sequence[Tensor], storage: int) -> bool:
    """Whether each is where `_moved` put it: not after the model went to another device or type."""
    size = parameters[0].numel()
    return all(
        parameter.untyped_storage()._cdata == storage and parameter.storage_offset() == index * size
        for index, parameter in enumerate(parameters)
    )


@torch.no_grad()
def _moved(parameters: Sequence[Tensor], num_blocks: int) -> JointWeights:
    first = parameters[0]
    size = first.shape[0]
    shape = (len(parameters) * size + num_blocks, *first.shape[1:])
    order = torch.contiguous_format if first.is_contiguous() else torch.channels_last
    with torch.inference_mode(False):
        rows = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=order)
        rows[len(parameters) * size :].zero_()
        for index, parameter in enumerate(parameters):
            place = rows[index * size : (index + 1) * size]
            place.copy_(parameter)
            # A graph may hold the parameter for its backward pass; the numbers are the same, so it is no change to it.
            with _unsafe_preserve_version_counter(parameter):
                parameter.data = place
    return JointWeights(rows.untyped_storage()._cdata, num_blocks)
