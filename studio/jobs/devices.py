"""Devices by name, and the environment in which a child sees only its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from studio.pipelines.errors import UserError

_DEVICE = re.compile(r"cpu|mps|cuda(?::(\d{1,3}))?")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def child_environment(device: str, environment: Mapping[str, str] | None = None) -> tuple[dict[str, str], str]:
    """The environment for a child that works on `device`, and what the device is called in there.

    Of several GPUs the child sees one, as "cuda": a mistake cannot touch the others, and no memory is taken on them. Numbers
    count within what this process may see itself. On the processor the child leaves one core to the page and to whatever else
    runs, unless OMP_NUM_THREADS says otherwise: threads that wait for one that is not running cost a small model much time.

    Raises:
        UserError: it is no device's name, or is not among those that may be seen.
    """
    values = dict(os.environ if environment is None else environment)
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise UserError(f"{device!r} is no device; they are called cpu, cuda, cuda:1 or mps.")
    if not device.startswith("cuda"):
        return _leaving_a_core() | values | {VISIBLE: ""}, device
    number = int(match[1] or 0)
    seen = values.get(VISIBLE)
    if seen is None:
        return values | {VISIBLE: str(number)}, "cuda"
    names = [name.strip() for name in seen.split(",") if name.strip()]
    if number >= len(names):
        raise UserError(f"There is no {device}: {VISIBLE} names {len(names)} devices.")
    return values | {VISIBLE: names[number]}, "cuda"


def _leaving_a_core() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)), "OMP_WAIT_POLICY": "PASSIVE"}


def default_devices(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Every GPU that the driver names, or else the processor; found without loading torch."""
    values = os.environ if environment is None else environment
    if VISIBLE in values:
        names = [name for name in values[VISIBLE].split(",") if name.strip()]
        return tuple(f"cuda:{number}" for number in range(len(names))) or ("cpu",)
    tool = shutil.which("nvidia-smi", path=values.get("PATH"))
    if tool is None:
        return ("cpu",)
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ("cpu",)
    found = [line for line in done.stdout.splitlines() if re.match(r"GPU \d+:", line)]
    return tuple(f"cuda:{number}" for number in range(len(found))) or ("cpu",)
