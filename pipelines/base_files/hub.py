"""Getting a base model from the Hugging Face hub, or from its local cache when there is no network."""

from __future__ import annotations

import re
from pathlib import Path

from studio.pipelines.base_files.loading import loading
from studio.pipelines.base_files.weight_files import find_weight_files
from studio.pipelines.errors import BaseModelError, MissingFileError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_UNUSED = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


def is_hub_id(spec: str) -> bool:
    """Whether `spec` can name a model on the hub (`owner/name`) and its first part is no folder that is here."""
    return _HUB_ID.fullmatch(spec) is not None and not Path(spec.partition("/")[0]).exists()


def download(hub_id: str) -> Path:
    """The local folder of the hub's model `hub_id`: safetensors weights and configs, no code and no pickles.

    Raises:
        MissingFileError: when the hub cannot be reached and the model is not in the local cache, or there is none.
        BaseModelError: when the model on the hub is not in the diffusers layout with safetensors weights.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return _download(hub_id)
    except GatedRepoError as error:
        raise MissingFileError(
            f"The model {hub_id!r} asks for consent: accept its terms on its page, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingFileError(f"There is no public model {hub_id!r} on the hub, and no folder of that name here.") from error
    except OSError as error:  # also huggingface_hub's errors about connections and its cache
        raise MissingFileError(
            f"The base model {hub_id!r} is not in the local cache and the hub cannot be reached. Connect to the internet "
            "once, or give a folder or a .safetensors file."
        ) from error


def _download(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline

    with loading(f"base model {hub_id!r} from the hub", passing=(OSError,)):
        cached = _cached(hub_id)
        if cached is not None:
            return cached
        try:
            return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, **_UNUSED))
        except ValueError as error:
            # Some models are published in half precision only.
            if "variant" not in str(error) and "fp16" not in str(error):
                raise BaseModelError(f"The hub's {hub_id!r} is no diffusers model with safetensors weights.") from error
            return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, variant="fp16", **_UNUSED))


def _cached(hub_id: str) -> Path | None:
    """The model's folder in the local cache, if it is there with all its weights; no network is used."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
        components = [name for name in _WITH_WEIGHTS if (folder / name / "config.json").is_file()]
        for name in components:
            find_weight_files(folder / name)
    except (OSError, ValueError, BaseModelError):
        return None
    return folder if {"unet", "vae", "text_encoder"} <= set(components) else None
