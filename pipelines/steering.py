"""Pictures that decide a drawing besides its words: one to start from, parts of it to draw anew, one to follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from studio.pipelines.base_model import BaseModel, encode_images
from studio.pipelines.denoising import DenoiseRequest, UNetDenoiser
from studio.pipelines.denoising.control_net import ControlNetSource
from studio.pipelines.errors import BaseModelError, MissingFileError, UserError

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """What a request has besides words; pictures are cut and scaled to the size that is drawn.

    Attributes:
        picture: to start from; None to start from noise. change: how far to leave it, above 0 to 1.
        redraw: grey: white is drawn anew, black is kept; None for all of it.
        control_net: a diffusers `ControlNetModel`, which follows `control` as strongly as `control_scale` says.
    """

    picture: Image.Image | None = None
    change: float = 0.6
    redraw: Image.Image | None = None
    control_net: Any = None
    control: Image.Image | None = None
    control_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.redraw is not None and self.picture is None:
            raise UserError("A mask needs the picture of which a part is to be drawn anew.")

    def applied(self, base: BaseModel, request: DenoiseRequest) -> DenoiseRequest:
        """`request` with these pictures. Raises UserError for a change that is none."""
        size = (request.width, request.height)
        values: dict[str, Any] = {}
        if self.picture is not None:
            pixels = pixels_of(self.picture, size)[None] * 2 - 1
            latents = [encode_images(base, pixels, generator) for generator in request.generators]
            values["picture"] = torch.cat(latents)
            values["first_step"] = first_step(request.num_steps, self.change) * request.scheduler.order
        if self.redraw is not None:
            rows, columns = request.noise.shape[-2:]
            grey = ImageOps.fit(self.redraw.convert("L"), size).resize((columns, rows), Image.Resampling.BOX)
            values["redraw"] = torch.from_numpy(np.array(grey))[None, None].gt(127).float()
        if self.control_net is not None and self.control is not None:
            control = pixels_of(self.control, size)[None]
            values["control"] = ControlNetSource(self.control_net, UNetDenoiser(base), control, self.control_scale)
        return replace(request, **values)


def pixels_of(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """`[3, H, W]` in 0..1 of the largest part of the picture, about its middle, with the aspect of `size` (width, height)."""
    fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def box_mask(size: tuple[int, int], box: Box) -> Image.Image:
    """A grey picture that is white in `box` (left, top, right, bottom as fractions) and black elsewhere."""
    mask = Image.new("L", size)
    left, top, right, bottom = (round(side * length) for side, length in zip(box, (*size, *size), strict=True))
    mask.paste(255, (left, top, right, bottom))
    return mask


def first_step(num_steps: int, change: float) -> int:
    """The step from which a picture has `change` of the way to go, as diffusers counts. Raises UserError if there is none."""
    if not 0.0 < change <= 1.0:
        raise UserError(f"The strength should be above 0 and at most 1, not {change}.")
    return max(num_steps - min(int(num_steps * change), num_steps), 0) if num_steps * change >= 1 else num_steps - 1


def load_control_net(folder: Path | str, base: BaseModel) -> Any:
    """A ControlNet from a folder in the diffusers layout (safetensors), on the base's device and in its type.

    Raises:
        MissingFileError: there is no such folder. BaseModelError: it cannot be read, or was made for another family.
    """
    from diffusers import ControlNetModel

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise MissingFileError(f"There is no ControlNet in {path}: name a folder in the diffusers layout.")
    try:
        net = ControlNetModel.from_pretrained(path, use_safetensors=True, torch_dtype=base.dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseModelError(f"{path} cannot be read as a ControlNet: {error}") from error
    wanted, width = base.unet.config.cross_attention_dim, net.config.cross_attention_dim  # type: ignore[union-attr]
    if wanted != width:
        raise BaseModelError(f"The ControlNet in {path} was made for another family than {base.source!r}.")
    return net.to(base.device).eval().requires_grad_(False)
