"""The images that the model got wrong, as thumbnails inside the page."""

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from PIL import Image

from app.image import Pixels
from training.run_report import Measured

MAX_THUMBNAILS = 24  # per gallery
MAX_SIDE = 112  # pixels
SMALL_SIDE = 64  # images up to here are lossless, and enlarged without smoothing: as the network sees them


def gallery(mistakes: Sequence[tuple[Measured, int]], labels: Sequence[str]) -> str:
    """The first of the mistakes, each an image of a part, with what they were called and which files they are."""
    if not mistakes:
        return "<p>There are none.</p>"
    items = "".join(_item(part, index, labels) for part, index in mistakes[:MAX_THUMBNAILS])
    return (
        f'<p>{min(len(mistakes), MAX_THUMBNAILS)} of {len(mistakes):,}, the surest first.</p><ul class="gallery">{items}</ul>'
    )


def thumbnail(pixels: Pixels) -> str:
    """uint8 `(height, width, channels)` as a data: URL of at most 17 KB."""
    image = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "png" if max(pixels.shape) <= SMALL_SIDE else "jpeg"
    image.save(encoded := io.BytesIO(), kind, quality=60)
    return f"data:image/{kind};base64,{b64encode(encoded.getvalue()).decode()}"


def _item(part: Measured, index: int, labels: Sequence[str]) -> str:
    pixels, probabilities, given = part.samples.pixels[index], part.probabilities[index], part.samples.classes[index]
    label, called = escape(labels[given]), escape(labels[probabilities.argmax()])
    path = escape("/".join(part.samples.paths[index].parts[-3:]))  # the rest is nobody's business on a page that is passed on
    return (
        f'<li><img src="{thumbnail(pixels)}" alt="labelled {label}, called {called}" loading="lazy">'
        f"<p><b>{called}</b> {probabilities.max():.2%}</p><p>label <b>{label}</b> {probabilities[given]:.2%}</p>"
        f'<p class="path">{path}</p></li>'
    )
