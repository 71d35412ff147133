"""The denoising loop, and the interface through which strategies say what it does."""

from __future__ import annotations

from studio.pipelines.denoising.attention.capture import AttentionMaps, Capture, mean_map, token_columns
from studio.pipelines.denoising.attention.layers import AttentionLayer, attention_layers, layers_at
from studio.pipelines.denoising.attention.regions import STRICT, Isolation, Region
from studio.pipelines.denoising.block_texts import attention_stacks, block_texts, check_stacks
from studio.pipelines.denoising.denoiser import Denoiser
from studio.pipelines.denoising.guessing import Guessing, OnGuess
from studio.pipelines.denoising.guidance import GuidanceStrategy
from studio.pipelines.denoising.loop import as_denoiser, denoise
from studio.pipelines.denoising.passes import Passes
from studio.pipelines.denoising.prediction import PredictionType, convert_prediction, noise_level, split_prediction
from studio.pipelines.denoising.request import Branch, DenoiseRequest, FeatureUse, PassOutput, Step, Strategy
from studio.pipelines.denoising.schedulers import SCHEDULER_NAMES, make_scheduler, scheduler_title
from studio.pipelines.denoising.unet_denoiser import UNetDenoiser

__all__ = [
    "AttentionLayer",
    "AttentionMaps",
    "Branch",
    "Capture",
    "DenoiseRequest",
    "Denoiser",
    "FeatureUse",
    "Guessing",
    "GuidanceStrategy",
    "Isolation",
    "OnGuess",
    "PassOutput",
    "Passes",
    "PredictionType",
    "Region",
    "SCHEDULER_NAMES",
    "STRICT",
    "Step",
    "Strategy",
    "UNetDenoiser",
    "as_denoiser",
    "attention_layers",
    "attention_stacks",
    "block_texts",
    "check_stacks",
    "convert_prediction",
    "denoise",
    "layers_at",
    "make_scheduler",
    "mean_map",
    "noise_level",
    "scheduler_title",
    "split_prediction",
    "token_columns",
]
