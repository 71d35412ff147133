"""Settings of DiffuseKronA alone."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from studio.training.config.section import Section, setting


def parse_factors(text: str) -> tuple[int, int]:
    """(a_out, a_in) of "64x4". Raises ValueError with a sentence."""
    match = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text)
    if match is None:
        raise ValueError('must be two whole numbers as OUTxIN, such as "16x16" or "64x4"')
    return int(match[1]), int(match[2])


def _normal(text: str) -> str:
    a_out, a_in = parse_factors(text.strip().lower())
    return f"{a_out}x{a_in}"


class KronaConfig(Section):
    """DiffuseKronA only: the shape of the Kronecker factors."""

    factors: Annotated[str, AfterValidator(_normal)] | None = setting(
        None,
        "Size of the first Kronecker factor in every layer, as OUTxIN; it must divide the layers' channels. A square one loads "
        "in PEFT and diffusers; the paper's best on SDXL is 64x4. A larger product OUT·IN makes a smaller adapter.",
    )
    init: Literal["gaussian", "kaiming"] = setting("gaussian", "How the first factor starts; the second is zero.")
