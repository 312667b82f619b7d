"""Pen strokes, brought to the form of MNIST: light on dark, in a box of 20/28 of the frame, centred by mass.

Used by `app.image.fit` for models whose input rule says `polarity = light_on_dark` or `resize = ink`.
Source: the construction of MNIST, LeCun et al., "Gradient-based learning applied to document recognition", 1998.
"""

from bisect import bisect_right
from itertools import accumulate

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

MAX_SIDE = 512  # pixels; strokes are searched at no finer scale
BOX_SHARE = 20 / 28
SPECK_SIDE = 96  # pixels; pieces are told apart at no finer scale
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def light_on_dark(image: Image.Image) -> Image.Image:
    """The grey image, inverted if its border is nearer to its light than to its dark extreme (1st and 99th percentile)."""
    box = image.getbbox()
    if box is None or (min(box[:2]) > 0 and box[2] < image.width and box[3] < image.height):
        return image  # its border is black, nobody's light extreme: most drawings end here
    border = _median_of_border(image)
    if not border:
        return image
    below = list(accumulate(image.histogram()))
    low, high = _percentile(below, 0.01), _percentile(below, 0.99)
    middle = (low + high) / 2 if high - low > 16 else 127.5
    return ImageChops.invert(image) if border > middle else image


def _median_of_border(image: Image.Image) -> float:
    data, width = image.tobytes(), image.width
    levels = sorted(data[:width] + data[-width:] + data[::width] + data[width - 1 :: width])
    return (levels[len(levels) // 2 - 1] + levels[len(levels) // 2]) / 2


def _percentile(below: list[int], share: float) -> float:
    """`np.percentile` of the pixels whose histogram adds up to `below`, to the last bit and without sorting millions."""
    position = (below[-1] - 1) * share
    floor = int(position)
    low, high = bisect_right(below, floor), bisect_right(below, min(floor + 1, below[-1] - 1))
    part = position - floor
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def locate_frame(frame: Size, content: Size, corner: tuple[int, int], box: Box, image: Size) -> Box:
    """Where a frame lies in an image, in shares of its sides: the frame shows the image's `box` at `corner` as `content`."""
    sides = [
        ((low - start * step) / side, (low + (whole - start) * step) / side)
        for low, high, start, part, whole, side in zip(box[:2], box[2:], corner, content, frame, image, strict=True)
        for step in [(high - low) / part]
    ]
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def frame_ink(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> tuple[Image.Image, Box]:
    """The strokes of a light-on-dark grey image, framed as MNIST's are, `width` × `height` pixels, and where the frame lies.

    The paper's uneven light is subtracted, the strokes are cut out by Otsu's threshold, specks are dropped, the bounding
    box is scaled to 20/28 of the frame and its centre of mass put at the centre. An image without strokes is only resized.
    """
    image = image.reduce(max(1, max(image.size) // MAX_SIDE))
    strokes = _subtract_paper(image)
    box = _bounding_box(strokes)
    if box is None:
        return image.resize((width, height), resample), WHOLE
    strokes = strokes.crop(box)
    scale = min(width * BOX_SHARE / strokes.width, height * BOX_SHARE / strokes.height)
    size = (max(1, round(strokes.width * scale)), max(1, round(strokes.height * scale)))
    strokes = _full_contrast(strokes.resize(size, resample))
    corner = _centre_by_mass(strokes, width, height)
    frame = Image.new("L", (width, height), 0)
    frame.paste(strokes, corner)
    return frame, locate_frame((width, height), size, corner, box, image.size)


def _subtract_paper(image: Image.Image) -> Image.Image:
    """Removes what is wider than a stroke: the paper and the light that falls on it."""
    small = image.copy()
    small.thumbnail((48, 48), Image.Resampling.BOX)
    paper = small.filter(ImageFilter.MinFilter(15)).filter(ImageFilter.MaxFilter(15))
    paper = paper.filter(ImageFilter.GaussianBlur(3)).resize(image.size, Image.Resampling.BILINEAR)
    strokes = np.asarray(image).astype(np.int16) - np.asarray(paper)
    return Image.fromarray(strokes.clip(0, 255).astype(np.uint8))


def _bounding_box(strokes: Image.Image) -> tuple[int, int, int, int] | None:
    threshold = _otsu(np.asarray(strokes))
    mask = strokes.point(lambda level: 255 if level > threshold else 0)
    return _without_specks(mask).getbbox()


def _without_specks(mask: Image.Image) -> Image.Image:
    """Drops every connected piece that has less than a twentieth of the largest one's area: dust, not strokes."""
    step = max(1, max(mask.size) // SPECK_SIDE)
    coarse = np.asarray(mask.reduce(step)) > 0
    pieces = _label_pieces(coarse)
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    kept = (areas * 20 >= areas.max())[pieces] & coarse
    fine = Image.fromarray(kept).resize((kept.shape[1] * step, kept.shape[0] * step), Image.Resampling.NEAREST)
    return ImageChops.darker(mask, fine.convert("L").crop((0, 0, *mask.size)))


def _label_pieces(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number for each 8-connected piece, 0 outside.

    Each pixel takes the largest number around it, hands it to the pixel its old number stands for, and takes that pixel's
    number in turn: about log2(pixels) rounds even for a spiral, where spreading alone needs as many as it is long.
    Source: FastSV, Zhang, Azad and Hu, 2020.
    """
    pieces = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        around = sliding_window_view(np.pad(pieces, 1), (3, 3)).max(axis=(2, 3))
        spread = np.where(mask, around, 0)
        if np.array_equal(spread, pieces):
            return pieces
        numbers = spread.ravel()
        np.maximum.at(numbers, pieces[mask] - 1, spread[mask])
        pieces = np.where(mask, numbers[spread - 1], 0)


def _otsu(pixels: NDArray[np.uint8]) -> int:
    """The level that best parts dark from light pixels. Source: Otsu, 1979."""
    counts = np.bincount(pixels.ravel(), minlength=256).astype(np.float64)
    levels = np.arange(256)
    below = counts.cumsum()
    above = below[-1] - below
    total = (counts * levels).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return int(np.nan_to_num(between).argmax())


def _full_contrast(strokes: Image.Image) -> Image.Image:
    """Sets everything under the noise floor to 0 and the brightest twentieth of the strokes to 255."""
    pixels = np.asarray(strokes).astype(np.float32)
    lit = pixels[pixels > _otsu(np.asarray(strokes))]
    high = float(np.percentile(lit, 80)) if lit.size else 255.0
    low = 0.15 * high
    return Image.fromarray(((pixels - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8))


def _centre_by_mass(strokes: Image.Image, width: int, height: int) -> tuple[int, int]:
    """The corner that puts the mean pixel index at half the side, as in MNIST: 14.0 ± 0.3 over 2,000 digits, not 13.5."""
    mass = np.asarray(strokes).astype(np.float64)
    total = mass.sum() or 1.0
    x = round(width / 2 - mass.sum(axis=0) @ np.arange(strokes.width) / total)
    y = round(height / 2 - mass.sum(axis=1) @ np.arange(strokes.height) / total)
    return x, y
