"""Numbered contact sheets: pictures in rows, each with a short line under it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LINE = 11


def numbered_sheet(images: Sequence[Image.Image], lines: Sequence[Sequence[str]], columns: int, side: int = 128) -> Image.Image:
    """One picture of all `images`, `columns` a row, each `side` pixels and with its lines of text under it.

    Text that is wider than its picture is cut.
    """
    font = ImageFont.load_default(size=9)
    num_lines = max((len(text) for text in lines), default=0)
    cell = side + num_lines * LINE + 6
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 6), rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, text) in enumerate(zip(images, lines, strict=True)):
        left, top = index % columns * (side + 6) + 3, index // columns * cell + 3
        sheet.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top))
        for number, line in enumerate(text):
            while line and draw.textlength(line, font=font) > side + 4:
                line = line[:-1]
            draw.text((left, top + side + number * LINE), line, fill="black", font=font)
    return sheet
