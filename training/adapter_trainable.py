"""A trainable that is an adapter: its patches' tensors are the parameters, and `patched` runs them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from studio.pipelines.adapters import Adapter, AdapterInfo, Route, patched
from studio.pipelines.base_model import BaseModel
from studio.training.method import Trainable
from studio.training.optimizers import ParameterGroup


class AdapterTrainable(Trainable):
    """Trains the tensors of `adapter` (which require gradients) on `components`, the base model's modules by name."""

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        adapter: Adapter,
        learning_rate: float,
        text_encoder_learning_rate: float,
    ) -> None:
        super().__init__()
        self._components = dict(components)  # a dictionary, so that the base's modules aren't this module's children
        self._adapter = adapter
        self._rates = (learning_rate, text_encoder_learning_rate)
        self._patch: ExitStack | None = None
        for name, tensor in adapter.named_tensors().items():
            assert isinstance(tensor, nn.Parameter), f"{name} does not train"
            self.register_parameter(_parameter_name(name), tensor)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """One group for the denoiser, and one for the text encoders when they train."""
        by_group: dict[str, list[nn.Parameter]] = {"denoiser": [], "text_encoder": []}
        for path, patch in self._adapter.patches.items():
            group = "denoiser" if path.component == "unet" else "text_encoder"
            by_group[group] += [tensor for tensor in patch.parameters().values() if isinstance(tensor, nn.Parameter)]
        rates = dict(zip(by_group, self._rates, strict=True))
        return tuple(
            ParameterGroup(name=name, parameters=tuple(parameters), learning_rate=rates[name])
            for name, parameters in by_group.items()
            if parameters
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """The adapter acts on the base model inside the block."""
        assert self._patch is None, "active() does not nest"
        self._open()
        try:
            yield
        finally:
            self._close()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model itself: the adapter is taken off for the block and put back on."""
        was_active = self._patch is not None
        self._close()
        try:
            yield
        finally:
            if was_active:
                self._open()

    def extract(self, info: AdapterInfo) -> Adapter:
        """Detached float32 copies of the tensors."""
        patches = {path: copy.deepcopy(patch) for path, patch in self._adapter.patches.items()}
        for patch in patches.values():
            for tensor in patch.parameters().values():
                tensor.requires_grad_(False)
        return Adapter(info, patches).to("cpu")

    def _open(self) -> None:
        self._patch = ExitStack()
        # Under no_grad the patches would bind to views without history, and nothing would train.
        with torch.enable_grad():
            self._patch.enter_context(patched(self._components, [Route(self._adapter)]))

    def _close(self) -> None:
        if self._patch is not None:
            self._patch.close()
            self._patch = None


def adapter_targets(model: BaseModel, denoiser: str, text_encoders: str | None) -> dict[str, str]:
    """Regular expressions by component, for `new_lora`.

    SDXL reads its first text encoder before the last layer, so nothing that sits in that layer could ever learn (and
    several processes would wait for its gradients in vain): it is left out.
    """
    targets = {"unet": denoiser}
    if text_encoders is not None:
        for facts, encoder in zip(model.family.text_encoders, model.text_encoders, strict=True):
            unread = facts.penultimate and not facts.projection
            config: Any = encoder.config
            last = config.num_hidden_layers - 1
            targets[facts.component] = rf"(?!.*\.layers\.{last}\.)(?:{text_encoders})" if unread else text_encoders
    return targets


def _parameter_name(tensor_name: str) -> str:
    """A module's parameters can't have dots in their names."""
    return tensor_name.replace(".", "/")
