"""Many pictures on one sheet, with words that say which is which."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 15
TITLE_SIZE = 20
MIN_CELL = 192
GAP = 10
BACKGROUND, INK = (255, 255, 255), (32, 32, 36)
MAX_LINES = 3

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    column_labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """A sheet of pictures, row by row.

    Small pictures are enlarged by whole factors, so that words fit under them and their pixels stay what they are; large
    ones keep their size. Long words are wrapped, and cut after three lines.

    Args:
        captions: one under each picture. column_labels, row_labels: above the columns and left of the rows.
        columns: pictures in a row; by default one per column label, or about as many as there are rows.
    """
    if not images:
        raise ValueError("A contact sheet needs at least one picture.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(captions)} captions.")
    if columns is None:
        columns = len(column_labels) if column_labels else math.ceil(math.sqrt(len(images)))
    enlarged = [_enlarged(image) for image in images]
    cell_width, cell_height = max(i.width for i in enlarged), max(i.height for i in enlarged)
    font, title_font = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(TITLE_SIZE)
    below = [_wrapped(text, font, cell_width) for text in captions] if captions else []
    above = [_wrapped(text, font, cell_width) for text in column_labels] if column_labels else []
    left_width = min(cell_width, 2 * MIN_CELL) if row_labels else 0
    left = [_wrapped(text, font, left_width) for text in row_labels] if row_labels else []
    heading = _wrapped(title, title_font, columns * (cell_width + GAP)) if title else ""

    line = FONT_SIZE + 5
    caption_height = max((text.count("\n") + 1 for text in below), default=0) * line
    label_height = max((text.count("\n") + 1 for text in above), default=0) * line
    title_height = (heading.count("\n") + 1) * (TITLE_SIZE + 8) if heading else 0
    rows = math.ceil(len(images) / columns)
    x0 = GAP + (left_width + GAP if left else 0)
    y0 = GAP + title_height + label_height
    row_height = cell_height + caption_height + GAP
    sheet = Image.new("RGB", (x0 + columns * (cell_width + GAP), y0 + rows * row_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.multiline_text((GAP, GAP), heading, INK, font=title_font)
    for column, text in enumerate(above):
        draw.multiline_text((x0 + column * (cell_width + GAP), GAP + title_height), text, INK, font=font)
    for row, text in enumerate(left):
        draw.multiline_text((GAP, y0 + row * row_height), text, INK, font=font)
    for number, image in enumerate(enlarged):
        x = x0 + number % columns * (cell_width + GAP)
        y = y0 + number // columns * row_height
        sheet.paste(image.convert("RGB"), (x, y))
        if below:
            draw.multiline_text((x, y + image.height + 3), below[number], INK, font=font)
    return sheet


def _enlarged(image: Image.Image) -> Image.Image:
    factor = math.ceil(MIN_CELL / max(image.size))
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _wrapped(text: str, font: _Font, width: int) -> str:
    """`text` in at most three lines that fit into `width` pixels."""
    lines: list[str] = [""]
    for word in text.split():
        for part in _parts(word, font, width):
            longer = f"{lines[-1]} {part}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    if len(lines) > MAX_LINES:
        lines = lines[:MAX_LINES]
        while lines[-1] and font.getlength(f"{lines[-1]}…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return "\n".join(lines)


def _parts(word: str, font: _Font, width: int) -> list[str]:
    """A word cut where it is wider than a line."""
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts
