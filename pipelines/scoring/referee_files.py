"""Referees on disk: fp16 weights, one `referees.json` that says what they are, and their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from studio.pipelines.errors import MissingFileError, UserError
from studio.pipelines.files import atomic_write_bytes, atomic_write_json
from studio.pipelines.scoring.embedded import EmbeddedScorer
from studio.pipelines.scoring.network import RefereeConfig, RefereeNetwork

INDEX = "referees.json"
REFEREES = ("guide", "judge")


class RefereeFileError(UserError):
    """A referee's weights are not the frozen ones that its description names."""


def embedded_referees_dir() -> Path:
    """Folder of the referees that come with the studio."""
    return Path(str(files("studio.assets"))) / "referees"


def load_referee(name: str, folder: Path | None = None) -> EmbeddedScorer:
    """Load the guide or the judge in fp32 and verify that its weights are the frozen ones.

    Raises MissingFileError where there is none and RefereeFileError where the SHA-256 differs from the index's.
    """
    folder = embedded_referees_dir() if folder is None else folder
    index_path = folder / INDEX
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else {}
    if name not in index:
        raise MissingFileError(f"There is no referee {name!r} in {folder}; make it with python -m studio.training.referees.")
    entry = index[name]
    weights_path = folder / entry["file"]
    if not weights_path.is_file():
        raise MissingFileError(f"The weights {weights_path} of the referee {name!r} are missing; restore the file.")
    data = weights_path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        raise RefereeFileError(
            f"{weights_path} has the SHA-256 {found[:12]}…, but {INDEX} froze {entry['sha256'][:12]}…: "
            "restore the file, or every figure it judges is another referee's."
        )
    network = RefereeNetwork(RefereeConfig.from_dict(entry["network"]))
    weights = {key: value.float() for key, value in load(data).items()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise RefereeFileError(f"{weights_path} does not fit the network that {INDEX} describes; restore both files.")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return EmbeddedScorer(network, name, found)


def save_referee(network: RefereeNetwork, name: str, folder: Path, training: Mapping[str, Any]) -> str:
    """Write the weights in fp16 and freeze them in the index; returns their SHA-256."""
    weights = {
        key: value.detach().to(torch.float16).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    data = save(weights)
    digest = hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / f"{name}.safetensors", data)
    index_path = folder / INDEX
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else {}
    index[name] = {
        "file": f"{name}.safetensors",
        "sha256": digest,
        "network": network.config.to_dict(),
        "training": dict(training),
    }
    atomic_write_json(index_path, dict(sorted(index.items())))
    return digest
