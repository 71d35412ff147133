"""The denoising loop, and the interface through which strategies say what it does."""

from __future__ import annotations

from studio.pipelines.denoising.block_texts import attention_stacks, block_texts, check_stacks
from studio.pipelines.denoising.guidance import GuidanceStrategy
from studio.pipelines.denoising.loop import denoise
from studio.pipelines.denoising.request import Branch, DenoiseRequest, Step, Strategy
from studio.pipelines.denoising.schedulers import SCHEDULER_NAMES, make_scheduler, scheduler_title

__all__ = [
    "SCHEDULER_NAMES",
    "Branch",
    "DenoiseRequest",
    "GuidanceStrategy",
    "Step",
    "Strategy",
    "attention_stacks",
    "block_texts",
    "check_stacks",
    "denoise",
    "make_scheduler",
    "scheduler_title",
]
