"""From the names of pictures in a request to the pictures, and to what records say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from studio.jobs.specs import GenerateSpec
from studio.jobs.work.models import Models
from studio.library.item import Kind
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import ImageError, MissingFileError
from studio.pipelines.steering import Steering, load_control_net
from studio.training.data.images import ImageLimits, open_image

_LIMITS = ImageLimits(min_side=8, max_aspect=100.0)


def steering_of(spec: GenerateSpec, models: Models, base: BaseModel) -> Steering:
    """The pictures of a request.

    Raises:
        MissingFileError: one is not there any more. ImageError: it is another than when the job was handed in, or none.
        BaseModelError: the ControlNet cannot be read, or does not fit the base.
    """
    start, control = spec.start, spec.control
    return Steering(
        picture=None if start is None else _picture(models, start.picture, start.sha256),
        change=1.0 if start is None else start.change,
        redraw=None if start is None or start.mask is None else _picture(models, start.mask, start.mask_sha256),
        control_net=None if control is None else load_control_net(control.model, base),
        control=None if control is None else _picture(models, control.picture, control.sha256),
        control_scale=1.0 if control is None else control.scale,
    )


def steered_record(spec: GenerateSpec) -> dict[str, Any]:
    """What a picture's record keeps of them: hashes, no paths."""
    record: dict[str, Any] = {}
    if spec.start is not None:
        record["start"] = {"sha256": spec.start.sha256, "change": spec.start.change}
        if spec.start.mask is not None:
            record["start"]["mask_sha256"] = spec.start.mask_sha256
    if spec.control is not None:
        control = spec.control
        record["control"] = {"sha256": control.sha256, "model": Path(control.model).name, "scale": control.scale}
    return record


def _picture(models: Models, name: str, sha256: str | None) -> Image.Image:
    path, _ = models.library.resolve(name, Kind.PICTURE)
    if not path.is_file():
        raise MissingFileError(f"There is no picture {path} any more.")
    if sha256 is not None and file_sha256(path) != sha256:
        raise ImageError(f"{path} has changed since this was asked for; ask again.")
    return open_image(path, _LIMITS)
