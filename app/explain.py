"""Why: where in an image the evidence for a class lies, as numbers and as a picture to lay over the image.

    bytes ─▶ decode ─▶ fit ─▶ classifier ─▶ class activation map, from the pass that classifies ──┬─▶ overlay, over the image
                          └─▶ classifier again and again, a part covered each time ─▶ occlusion ──┘

Sources: Zhou et al., "Learning deep features for discriminative localization", 2016; Zeiler and Fergus, "Visualizing and
understanding convolutional networks", 2014.
"""

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.classifier import Classifier, Maps, Probabilities
from app.engine import Answer
from app.image import DEFAULT_MAX_PIXELS, Pixels, decode, fit_and_locate
from app.ink import Box, Size

OCCLUSION_SIDE = 8  # places in a row and in a column
BATCH = 8  # covered images in one pass through the session, which bounds the memory
OVERLAY_SIDE = 160  # pixels of the longer side; browsers enlarge it smoothly, and it stays under 10 kB
# RGBA from no evidence to the most: as bright as hot, for every kind of colour vision.
STOPS = np.array([[40, 0, 80, 0], [110, 20, 130, 110], [220, 60, 70, 180], [255, 150, 20, 205], [255, 235, 80, 220]])
LEVELS = 64

Evidence = NDArray[np.float32]  # (rows, columns)


@dataclass(frozen=True, slots=True)
class Explainer:
    """Answers an image with an explanation, of the most probable class if `class_index` is None."""

    classifier: Classifier
    class_index: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def passes(self) -> int:
        """How often the network runs for one image."""
        height, width, _ = self.classifier.spec.input.shape
        return 1 if self.classifier.has_maps else 1 + min(OCCLUSION_SIDE, height) * min(OCCLUSION_SIDE, width)

    def __call__(self, data: bytes, check: Callable[[], None]) -> Answer:
        """Answers encoded bytes; raises as `decode` does, and what `check` raises when there is no use in going on."""
        spec, begun = self.classifier.spec, time.monotonic()
        image = decode(data, spec.input, max_pixels=self.max_pixels)
        pixels, box = fit_and_locate(image, spec.input)
        decoded = time.monotonic()
        [probabilities], maps = self.classifier.explain(pixels[np.newaxis])
        inferred = time.monotonic()
        index = int(probabilities.argmax()) if self.class_index is None else self.class_index
        evidence = occlude(self.classifier, pixels, probabilities, index, check) if maps is None else contrast(maps[0], index)
        explanation = {
            "method": "occlusion" if maps is None else "class_activation_map",
            "label": spec.labels[index],
            "class_index": index,
            "passes": self.passes,
            "evidence": evidence.astype(np.float64).round(4).tolist(),
            "box": [round(share, 5) for share in box],
            "overlay": base64.b64encode(draw_overlay(evidence, box, image.size)).decode(),
        }
        seconds = time.monotonic() - inferred
        return Answer(self.classifier, probabilities, decoded - begun, 0.0, inferred - decoded, 1, seconds, explanation)


def contrast(maps: Maps, class_index: int) -> Evidence:
    """A class's map of `(classes, rows, columns)`, over the mean of all: softmax sees differences alone."""
    evidence: Evidence = maps[class_index] - maps.mean(axis=0)
    return evidence


def occlude(
    classifier: Classifier, pixels: Pixels, probabilities: Probabilities, class_index: int, check: Callable[[], None]
) -> Evidence:
    """How much ln(probability) falls where a window, twice as wide as a place, covers the image with its median colour."""
    down, across = (_windows(min(OCCLUSION_SIDE, side), side) for side in pixels.shape[:2])
    colour = np.median(pixels, axis=(0, 1)).astype(np.uint8)
    found: list[Probabilities] = []
    for start in range(0, len(down) * len(across), BATCH):
        check()
        row, column = np.divmod(np.arange(start, min(start + BATCH, len(down) * len(across))), len(across))
        covered = down[row][:, :, np.newaxis, np.newaxis] & across[column][:, np.newaxis, :, np.newaxis]
        found.append(classifier(np.where(covered, colour, pixels))[:, class_index])
    tiny = np.finfo(np.float32).tiny
    fall: Evidence = np.log(probabilities[class_index] + tiny) - np.log(np.concatenate(found) + tiny)
    return fall.reshape(len(down), len(across))


def _windows(places: int, side: int) -> NDArray[np.bool_]:
    """Which of `side` pixels the window about each place covers, `(places, side)`."""
    centres = (np.arange(side) + 0.5) * places / side
    return np.abs(centres - np.arange(places)[:, np.newaxis] - 0.5) <= 1


def draw_overlay(evidence: Evidence, box: Box, size: Size) -> bytes:
    """A PNG of the shape of an image of `size`, in whose `box` the evidence lies: clear where there is none."""
    heat = np.maximum(evidence, 0) / max(float(evidence.max()), 1e-6)
    width, height = (max(1, round(side * OVERLAY_SIDE / max(size))) for side in size)
    # From the overlay's pixels to places of the evidence, both counted from their corners.
    across, down = evidence.shape[1] / (box[2] - box[0]), evidence.shape[0] / (box[3] - box[1])
    affine = (across / width, 0, -box[0] * across, 0, down / height, -box[1] * down)
    places = Image.fromarray(heat.astype(np.float32))
    enlarged = places.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    overlay = Image.fromarray((np.asarray(enlarged).clip(0, 1) * (LEVELS - 1)).round().astype(np.uint8))
    at = np.linspace(0, len(STOPS) - 1, LEVELS)
    colours = np.stack([np.interp(at, range(len(STOPS)), channel) for channel in STOPS.T], axis=1).astype(np.uint8)
    overlay.putpalette(colours[:, :3].tobytes())
    file = io.BytesIO()
    overlay.save(file, "PNG", transparency=colours[:, 3].tobytes())
    return file.getvalue()
