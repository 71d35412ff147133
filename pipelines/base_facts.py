"""What is known of a base model from its configs and file names, before a single weight is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.pipelines.base_files.content_hash import content_hash
from studio.pipelines.base_files.hub import download, is_hub_id
from studio.pipelines.base_files.single_file import checkpoint_family, configs_dir
from studio.pipelines.base_files.weight_files import find_weight_files
from studio.pipelines.base_model import EMBEDDED, embedded_base_dir
from studio.pipelines.errors import BaseModelError, MissingFileError
from studio.pipelines.families import ModelFamily, detect_family


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """A base model by name, with what decides a request's defaults.

    Attributes:
        source: as `BaseModel.source`. family, size, content_hash: as of the loaded model.
        files: its weights, under `root_dir`.
    """

    source: str
    family: ModelFamily
    size: int
    content_hash: str
    root_dir: Path
    files: tuple[Path, ...]


def read_base_facts(spec: str) -> BaseFacts:
    """The facts of the base model that `load_base(spec)` would load.

    Raises:
        MissingFileError: there is nothing at `spec`. BaseModelError: it is no base model of a known family.
    """
    if spec == EMBEDDED:
        return _of_folder(spec, embedded_base_dir())
    path = Path(spec).expanduser()
    if path.is_dir():
        return _of_folder(spec, path)
    if path.is_file() and path.suffix == ".safetensors":
        return _of_checkpoint(spec, path)
    if not path.exists() and is_hub_id(spec):
        return _of_folder(spec, download(spec))
    if path.is_file():
        raise BaseModelError(f"{path} is no base model: it should be a folder or end in .safetensors.")
    raise MissingFileError(f"There is no base model at {spec}.")


def _of_folder(spec: str, folder: Path) -> BaseFacts:
    unet = _config(folder / "unet")
    encoders = [_config(folder / name) for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    family = detect_family(unet, encoders)
    names = ["unet", "vae", *(facts.component for facts in family.text_encoders)]
    files = tuple(file for name in names for file in find_weight_files(folder / name)[1])
    return BaseFacts(
        source=spec,
        family=family,
        size=_size(family, unet, _config(folder / "vae")),
        content_hash=content_hash(folder, files),
        root_dir=folder,
        files=files,
    )


def _of_checkpoint(spec: str, path: Path) -> BaseFacts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{path} is not a readable safetensors file: it is damaged or incomplete.") from error
    family = checkpoint_family(path, shapes)
    configs = configs_dir(family)
    return BaseFacts(
        source=spec,
        family=family,
        size=_size(family, _config(configs / "unet"), _config(configs / "vae")),
        content_hash=content_hash(path.parent, (path,)),
        root_dir=path.parent,
        files=(path,),
    )


def _size(family: ModelFamily, unet: dict[str, Any], vae: dict[str, Any]) -> int:
    """Side of the square it draws by default, in pixels; as `load_base` has it."""
    side = unet.get("sample_size")
    levels = vae.get("encoder_block_out_channels") or vae.get("block_out_channels")
    if not isinstance(side, int) or not levels:
        return family.default_size
    return side * int(2 ** (len(levels) - 1))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BaseModelError(f"{folder.parent} is not a base model in the diffusers layout: it has no {folder.name}/{path.name}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{path} is not valid JSON.") from error
    if not isinstance(values, dict):
        raise BaseModelError(f"{path} should hold a JSON object.")
    return values
