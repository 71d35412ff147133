"""The training methods, as an explicit list."""

from __future__ import annotations

from typing import Any

from studio.pipelines.errors import ConfigError
from studio.training.method import AdapterMethod
from studio.training.methods.b_lora import BLoRA
from studio.training.methods.diffusekrona import DiffuseKronA
from studio.training.methods.dreambooth_lora import DreamBoothLoRA
from studio.training.methods.sara import Sara

METHODS: tuple[AdapterMethod[Any], ...] = (DreamBoothLoRA(), BLoRA(), DiffuseKronA(), Sara())
"""Every method there is; the contract tests run on each."""


def method_named(name: str) -> AdapterMethod[Any]:
    """The method called `name`. Raises ConfigError when there is none."""
    for method in METHODS:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in METHODS)
    raise ConfigError(f"adapter.method = {name!r} is no training method; there is {known}")
