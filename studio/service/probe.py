"""What torch and its friends say about this machine, as JSON: `python -m studio.service.probe`.

A process of its own, so that the doctor can say what is wrong with an installation that crashes when it is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow", "gradio", "xformers")


def probe() -> dict[str, Any]:
    """Versions, devices and ways to compute attention."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform(), "versions": {}}
    for name in PACKAGES:
        try:
            found["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][name] = None
    import torch

    found["devices"] = [{"name": "cpu", "about": f"{torch.get_num_threads()} threads"}]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        about = f"{facts.name}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free, compute {facts.major}.{facts.minor}"
        found["devices"].append({"name": f"cuda:{number}", "about": about})
    if torch.backends.mps.is_available():
        found["devices"].append({"name": "mps", "about": "Apple GPU"})
    found["cuda"] = torch.version.cuda
    found["attention"] = _attention(torch)
    return found


def _attention(torch: Any) -> dict[str, str]:
    backends = {"math": "everywhere"}
    if torch.cuda.is_available():
        backends |= {
            name: "on" if enabled() else "switched off"
            for name, enabled in (
                ("flash", torch.backends.cuda.flash_sdp_enabled),
                ("memory-efficient", torch.backends.cuda.mem_efficient_sdp_enabled),
                ("cudnn", torch.backends.cuda.cudnn_sdp_enabled),
            )
        }
    else:
        backends["flash"] = "on the processor"
    try:
        import xformers
    except ImportError:
        backends["xformers"] = "not installed"
    else:
        backends["xformers"] = str(xformers.__version__)
    return backends


if __name__ == "__main__":
    json.dump(probe(), sys.stdout)
