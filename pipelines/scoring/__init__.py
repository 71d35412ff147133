"""Scoring: identity, prompt fidelity and style of pictures, by the embedded referees or by CLIP and DINOv2."""

from studio.pipelines.scoring.checklist import PromptFacts, check, parse_prompt
from studio.pipelines.scoring.embedded import EmbeddedScorer
from studio.pipelines.scoring.loading import embedded_referee, load_scorer
from studio.pipelines.scoring.scorer import Detection, Picture, PromptScore, Reading, Scorer

__all__ = [
    "Detection",
    "EmbeddedScorer",
    "Picture",
    "PromptFacts",
    "PromptScore",
    "Reading",
    "Scorer",
    "check",
    "embedded_referee",
    "load_scorer",
    "parse_prompt",
]
