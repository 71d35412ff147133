"""Where a run computes, in which number format, and on how many processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from studio.pipelines.errors import ConfigError
from studio.training.config import RunConfig

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(run: RunConfig) -> Accelerator:
    """The accelerator that `run.device` and `run.mixed_precision` ask for.

    Raises ConfigError for a device that isn't there.
    """
    on_cpu = _on_cpu(run.device)
    if run.device.startswith("cuda:"):
        torch.cuda.set_device(run.device)
    _forget_finished_run()
    return Accelerator(cpu=on_cpu, mixed_precision=_precision(run.mixed_precision, on_cpu))


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """The number format of the frozen base model; what trains is always float32."""
    return DTYPES[str(accelerator.mixed_precision)]


def _on_cpu(device: str) -> bool:
    if device == "cpu":
        return True
    if device == "auto":
        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if device.startswith("cuda") and torch.cuda.is_available():
        number = device.partition(":")[2]
        if not number or (number.isdigit() and int(number) < torch.cuda.device_count()):
            return False
    elif device == "mps" and torch.backends.mps.is_available():
        return False
    raise ConfigError(f"run.device = {device!r}: this machine has no such device; use auto or cpu")


def _precision(wanted: str, on_cpu: bool) -> str:
    if wanted != "auto":
        return wanted
    if on_cpu or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _forget_finished_run() -> None:
    """accelerate keeps one global state; a second run of this process may want another device or format."""
    if AcceleratorState._shared_state and not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
    elif PartialState._shared_state and not torch.distributed.is_initialized():
        PartialState._reset_state()
