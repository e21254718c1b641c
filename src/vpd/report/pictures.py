"""Pictures inside the page: as data URIs, large ones packed smaller."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

LARGE = 120_000
"""Bytes from which a picture of pixels is packed anew."""
WIDEST = 1600
"""Pixels; wider pictures are scaled down."""
QUALITY = 82
SCREEN_DPI, FILE_DPI = 96, 150
"""Pixels per inch of a browser, and of the figures' PNG files."""
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def data_uri(path: Path) -> str:
    """A PNG or SVG file as a data URI; a large PNG becomes WebP, at most ``WIDEST`` pixels wide."""
    content, kind = path.read_bytes(), TYPES[path.suffix]
    if kind == "image/png" and len(content) > LARGE:
        content, kind = _packed(path), "image/webp"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _packed(path: Path) -> bytes:
    with Image.open(path) as file:
        image = file.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "webp", quality=QUALITY, method=4)
    return packed.getvalue()


def figure(png: Path) -> dict[str, str | int]:
    """A drawn figure as ``uri`` and ``width``: its SVG at its own size, or its PNG at the same size if that is smaller."""
    vector = png.with_suffix(".svg")
    if not vector.is_file():
        return {"uri": data_uri(png), "width": 0}
    with Image.open(png) as image:
        width = round(image.width * SCREEN_DPI / FILE_DPI)
    return {"uri": min((data_uri(path) for path in (vector, png)), key=len), "width": width}
