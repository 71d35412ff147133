"""Facts about kinds of base models, each written down once."""

from __future__ import annotations

from studio.pipelines.families.detection import FAMILIES, ModuleAxis, detect_family, family_named, module_axis
from studio.pipelines.families.embedded import EMBEDDED
from studio.pipelines.families.family import ModelFamily, TextEncoderFacts, TrainDefaults
from studio.pipelines.families.sd2 import SD2
from studio.pipelines.families.sd15 import SD15
from studio.pipelines.families.sdxl import SDXL

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "SD2",
    "SD15",
    "SDXL",
    "ModelFamily",
    "ModuleAxis",
    "TextEncoderFacts",
    "TrainDefaults",
    "detect_family",
    "family_named",
    "module_axis",
]
