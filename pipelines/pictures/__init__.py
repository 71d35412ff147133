"""Pictures on disk: names, metadata that other tools read, sidecars and contact sheets."""

from __future__ import annotations

from studio.pipelines.pictures.contact_sheet import contact_sheet
from studio.pipelines.pictures.infotext import Infotext, read_infotext
from studio.pipelines.pictures.names import next_index, picture_name, slug
from studio.pipelines.pictures.png import png_bytes, read_png, read_sidecar, save_picture, save_png, sidecar_path
from studio.pipelines.pictures.record import AdapterUse, PictureRecord, lora_short_hash

__all__ = [
    "AdapterUse",
    "Infotext",
    "PictureRecord",
    "contact_sheet",
    "lora_short_hash",
    "next_index",
    "picture_name",
    "png_bytes",
    "read_infotext",
    "read_png",
    "read_sidecar",
    "save_picture",
    "save_png",
    "sidecar_path",
    "slug",
]
