"""Bring a picture of any colour mode to 8-bit RGB as a person sees it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image` as 8-bit sRGB; transparent parts lie on white; deep greys are scaled, not cut off.

    Args:
        image: decoded picture of any mode.
        notes: phrases on what was changed are appended.

    Raises:
        OSError, ValueError: there is no way from its mode to RGB.
    """
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP_MODES:
        notes.append("16-bit grey was reduced to 8 bits")
        image = _eight_bit(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = _on_white(image, notes)
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _to_srgb(image, profile, notes)
    if image.mode == "CMYK":
        notes.append("CMYK was converted to RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinite pixels")
    if image.mode.startswith("I;16"):
        scale = 65535.0
    else:
        largest = float(values.max())
        scale = next((limit for limit in (1.0, 255.0, 65535.0) if largest <= limit), largest)
        if image.mode == "I" and scale == 1.0:
            scale = 255.0  # whole numbers: nearly black, not nearly white
    grey = np.clip(values / scale * 255.0, 0.0, 255.0).round().astype(np.uint8)
    return Image.fromarray(grey)


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return layered.convert("RGB")
    notes.append("transparent parts became white")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """Through the embedded colour profile, so that a phone's wide colours don't look pale; as it is if that fails."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        if "srgb" in name.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if converted is None:
        return image
    notes.append(f"colours were converted from {name[:40]} to sRGB")
    return converted
