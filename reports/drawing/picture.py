"""A figure as the page shows it."""

import base64
import io
from typing import Any, NamedTuple

WIDE, WIDE_PX = 1.72, 1250  # figures wider than so many times their height, or so many px, get a row of their own
LARGE = 400_000  # bytes of a PNG above which the page holds it as WebP, a fifth of the size


class Picture(NamedTuple):
    """A figure as the page shows it; `source` is a data URI."""

    name: str
    title: str
    how: str
    alt: str
    source: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Whether it needs the full width."""
        return self.width > WIDE * self.height or self.width > WIDE_PX


def picture(drawn: Any, png: bytes) -> Picture:
    """A drawn figure with its PNG bytes as a picture of the page."""
    width, height = (int.from_bytes(png[k : k + 4], "big") for k in (16, 20))  # the header of every PNG
    form, data = _smaller(png) if len(png) > LARGE else ("png", png)
    source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    return Picture(drawn.name, drawn.title, drawn.how, drawn.alt, source, width, height)


def _smaller(png: bytes) -> tuple[str, bytes]:
    """A PNG as WebP, where this Pillow can write it."""
    from PIL import Image, features

    if not features.check("webp"):
        return "png", png
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(out, "WEBP", quality=90, method=4)
    return "webp", out.getvalue()
