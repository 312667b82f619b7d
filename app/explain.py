"""Why: where in an image the evidence for a class lies, as numbers and as a picture to lay over the image.

    bytes ─▶ decode ─▶ fit ─▶ classifier.explain ─▶ class activation map ──┐
                          └─▶ classifier, many times ─▶ occlusion map ─────┴─▶ overlay, in the image's own coordinates

A class activation map comes from the pass that classifies. Source: Zhou et al., "Learning deep features for discriminative
localization", 2016. A model without one is asked again and again with a part of the image covered. Source: Zeiler and
Fergus, "Visualizing and understanding convolutional networks", 2014.
"""

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.classifier import Classifier, Probabilities
from app.engine import Answer
from app.image import DEFAULT_MAX_PIXELS, Pixels, decode, fit_and_locate
from app.ink import Box, Size

OCCLUSION_SIDE = 8  # places in a row and in a column
BATCH = 8  # covered images in one pass through the session, which bounds the memory
OVERLAY_SIDE = 160  # pixels of the longer side; browsers enlarge it smoothly, and it stays under 10 kB
LEVELS = 64

Evidence = NDArray[np.float32]  # (rows, columns)


@dataclass(frozen=True, slots=True)
class Explainer:
    """Answers one image with an explanation, of the most probable class if `class_index` is None."""

    classifier: Classifier
    class_index: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def passes(self) -> int:
        """How often the network runs for one image."""
        height, width, _ = self.classifier.spec.input.shape
        return 1 if self.classifier.has_maps else 1 + min(OCCLUSION_SIDE, height) * min(OCCLUSION_SIDE, width)

    def __call__(self, data: bytes, check: Callable[[], None]) -> Answer:
        """Answers an encoded image; `check` raises when there is no more use in going on.

        Raises: UnsupportedImageError, UndecodableImageError, TooLargeError, and what `check` raises.
        """
        begun = time.monotonic()
        image = decode(data, self.classifier.spec.input, max_pixels=self.max_pixels)
        pixels, box = fit_and_locate(image, self.classifier.spec.input)
        decoded = time.monotonic()
        if self.classifier.has_maps:
            [probabilities], [maps] = self.classifier.explain(pixels[np.newaxis])
        else:
            [probabilities], maps = self.classifier(pixels[np.newaxis]), None
        inferred = time.monotonic()
        index = int(probabilities.argmax()) if self.class_index is None else self.class_index
        evidence = occlude(self.classifier, pixels, probabilities, index, check) if maps is None else contrast(maps, index)
        explanation = {
            "method": "occlusion" if maps is None else "class_activation_map",
            "label": self.classifier.spec.labels[index],
            "class_index": index,
            "passes": self.passes,
            "evidence": evidence.astype(np.float64).round(4).tolist(),
            "box": [round(share, 5) for share in box],
            "overlay": base64.b64encode(draw_overlay(evidence, box, image.size)).decode(),
        }
        seconds = (decoded - begun, inferred - decoded, time.monotonic() - inferred)
        return Answer(probabilities, seconds[0], 0.0, seconds[1], 1, seconds[2], explanation)


def contrast(maps: NDArray[np.float32], class_index: int) -> Evidence:
    """A class's activation map of `(classes, rows, columns)`, over the mean of all: softmax sees differences alone."""
    evidence: Evidence = maps[class_index] - maps.mean(axis=0)
    return evidence


def occlude(
    classifier: Classifier, pixels: Pixels, probabilities: Probabilities, class_index: int, check: Callable[[], None]
) -> Evidence:
    """How much ln(probability) falls where a window, twice as wide as a place, covers the image with its median colour."""
    height, width, _ = pixels.shape
    rows, columns = min(OCCLUSION_SIDE, height), min(OCCLUSION_SIDE, width)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    colour = np.median(pixels, axis=(0, 1)).astype(np.uint8)
    found: list[Probabilities] = []
    for start in range(0, len(places), BATCH):
        check()
        covered = np.repeat(pixels[np.newaxis], len(places[start : start + BATCH]), axis=0)
        for image, (row, column) in zip(covered, places[start : start + BATCH], strict=True):
            image[_window(row, rows, height), _window(column, columns, width)] = colour
        found.append(classifier(covered)[:, class_index])
    tiny = np.finfo(np.float32).tiny
    fall: Evidence = np.log(probabilities[class_index] + tiny) - np.log(np.concatenate(found) + tiny)
    return fall.reshape(rows, columns)


def _window(place: int, places: int, side: int) -> slice:
    """The pixels of a window about a place, twice as wide as it."""
    return slice(max(0, int((place - 0.5) * side / places)), -int(-(place + 1.5) * side // places))


def draw_overlay(evidence: Evidence, box: Box, size: Size) -> bytes:
    """A PNG of the shape of an image of `size`: the more evidence for the class, the hotter; transparent where there is none.

    `box` says where in the image the evidence lies.
    """
    heat = np.maximum(evidence, 0) / max(float(evidence.max()), 1e-6)
    scale = OVERLAY_SIDE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    rows, columns = evidence.shape
    # From the overlay's pixels to places of the evidence, both counted from their corners.
    across, down = columns / (box[2] - box[0]), rows / (box[3] - box[1])
    affine = (across / width, 0, -box[0] * across, 0, down / height, -box[1] * down)
    enlarged = Image.fromarray(heat.astype(np.float32)).transform(
        (width, height), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    levels = (np.asarray(enlarged).clip(0, 1) * (LEVELS - 1)).round().astype(np.uint8)
    overlay, colours = Image.fromarray(levels), _colours()
    overlay.putpalette(colours[:, :3].tobytes())
    file = io.BytesIO()
    overlay.save(file, "PNG", transparency=colours[:, 3].tobytes())
    return file.getvalue()


def _colours() -> NDArray[np.uint8]:
    """RGBA of each level: from clear over violet and orange to yellow, as bright as hot, for every kind of colour vision."""
    stops = np.array([[40, 0, 80, 0], [110, 20, 130, 110], [220, 60, 70, 180], [255, 150, 20, 205], [255, 235, 80, 220]])
    at = np.linspace(0, len(stops) - 1, LEVELS)
    ramp: Any = np.stack([np.interp(at, range(len(stops)), stops[:, channel]) for channel in range(4)], axis=1)
    return ramp.round().astype(np.uint8)  # type: ignore[no-any-return]
