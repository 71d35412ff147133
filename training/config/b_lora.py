"""Settings of B-LoRA alone."""

from __future__ import annotations

from studio.training.config.section import Section, setting


class BLoRAConfig(Section):
    """B-LoRA only: the two blocks it trains. What they hold by name is up to the base model; `studio probe-blocks` finds them."""

    content_block: str | None = setting(
        None, "Where the content shall sit, as up_blocks.0.attentions.0; by default as the base model's probe or family says."
    )
    style_block: str | None = setting(None, "Where the style shall sit, as up_blocks.0.attentions.1; the same.")
