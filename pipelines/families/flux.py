"""Where FLUX.1 keeps content and style, for adapter files of that model. The studio does not run FLUX itself.

SplitFlux (arXiv 2511.15258): the double-stream blocks matter little; of the 38 single-stream blocks the early ones decide the
content and the late ones the style. The paper counts all 57 blocks from one: content is 20-29, style 30-57. Its blocks 30 and
31 (`single_transformer_blocks.10` and `.11` here) also let some content through.
"""

from __future__ import annotations

FLUX_CONTENT_BLOCKS: tuple[str, ...] = tuple(f"single_transformer_blocks.{number}" for number in range(10))
FLUX_STYLE_BLOCKS: tuple[str, ...] = tuple(f"single_transformer_blocks.{number}" for number in range(10, 38))
