"""Pipelines: base models, adapters in memory and on disk, patching, scoring and the denoising loop."""
