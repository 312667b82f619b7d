"""Pen strokes are found and brought to the form of MNIST, from its own files and from photographs of paper."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from app.image import decode, fit
from app.ink import BOX_SHARE, frame_ink, light_on_dark
from app.spec import InputSpec

MNIST = InputSpec(height=28, width=28, channels=1, resize="ink", polarity="light_on_dark", filter="bilinear")
DIGITS = sorted((Path(__file__).parents[1] / "data" / "digits" / "test").glob("*/*.png"))
ONE_OF_EACH = [next(path for path in DIGITS if path.parent.name == str(digit)) for digit in range(10)]

Grey = NDArray[np.uint8]


def original(path: Path) -> Grey:
    """An MNIST digit, light on dark, 28 × 28."""
    return np.asarray(Image.open(path).convert("L"))


def seen(data: bytes, spec: InputSpec = MNIST) -> Grey:
    """What the model sees of a file, 28 × 28."""
    return fit(decode(data, spec), spec)[:, :, 0]


def file_of(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    """An encoded image."""
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def correlation(one: Grey, other: Grey) -> float:
    """Pearson's, over the pixels."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def sheet_with(digit: Grey, rng: np.random.Generator, *, share: float, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A photograph of paper: the digit dark, off centre, in uneven light, with noise and blur. `share` is of the height."""
    width, height = size
    side = round(share * height)
    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    left, top = rng.integers(5, width - side - 5), rng.integers(5, height - side - 5)
    strokes = np.zeros((height, width), np.float32)
    strokes[top : top + side, left : left + side] = ink
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    light = 215 - 60 * (rng.random() * across + rng.random() * down)
    paper = light * (1 - 0.75 * strokes) + rng.normal(0, 5, (height, width))
    return Image.fromarray(paper.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))


def by_definition(image: Image.Image) -> Image.Image:
    """`light_on_dark` as numpy says it."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    low, high = np.percentile(pixels, [1, 99])
    middle = (low + high) / 2 if high - low > 16 else 127.5
    return Image.fromarray(255 - pixels) if np.median(border) > middle else image


def test_polarity_is_that_of_the_percentiles_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    pictures = [original(path) for path in DIGITS]
    pictures += [255 - digit for digit in pictures]
    for _ in range(600):
        low, high = sorted(rng.integers(0, 256, 2))
        pictures.append(rng.integers(low, high + 1, rng.integers(1, 40, 2), np.uint8))
    turned = 0
    for picture in pictures:
        image = Image.fromarray(picture)
        found = light_on_dark(image)
        assert found.tobytes() == by_definition(image).tobytes()
        turned += found is not image
    assert 0 < turned < len(pictures)


@pytest.mark.parametrize("path", ONE_OF_EACH, ids=lambda path: path.parent.name)
def test_an_mnist_digit_passes_unchanged(path: Path) -> None:
    assert np.array_equal(seen(path.read_bytes()), original(path))


def test_every_digit_and_its_inversion_give_the_same_pixels() -> None:
    assert len(DIGITS) >= 50
    for path in DIGITS:
        digit = original(path)
        assert np.array_equal(seen(file_of(Image.fromarray(255 - digit))), seen(path.read_bytes())), path


@pytest.mark.parametrize("path", ONE_OF_EACH, ids=lambda path: path.parent.name)
def test_polarity_holds_at_other_sizes(path: Path) -> None:
    large = Image.fromarray(original(path)).resize((200, 150), Image.Resampling.BICUBIC)
    assert correlation(seen(file_of(ImageChops.invert(large))), seen(file_of(large))) > 0.99


def best_shift(framed: Grey, digit: Grey) -> tuple[float, int, int]:
    """The best correlation of a digit with its frame moved by at most one pixel, and that move."""
    moves = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    return max((correlation(np.roll(framed, (y, x), (0, 1)), digit), x, y) for x, y in moves)


@pytest.mark.parametrize("path", ONE_OF_EACH, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("share", [0.6, 0.7])
def test_a_photographed_digit_is_framed_like_the_original(path: Path, share: float) -> None:
    rng = np.random.default_rng(int(path.parent.name) + round(share * 100))
    framed = seen(file_of(sheet_with(original(path), rng, share=share), "JPEG", quality=85))
    assert best_shift(framed, original(path))[0] > 0.87


def test_photographed_digits_lie_where_mnist_puts_them() -> None:
    """Rounding may move a frame by one pixel, but not all of them the same way."""
    rng = np.random.default_rng(0)
    pairs = [(seen(file_of(sheet_with(original(path), rng, share=0.65), "JPEG")), original(path)) for path in DIGITS]
    correlations = np.array([correlation(framed, digit) for framed, digit in pairs])
    shifts = np.array([best_shift(framed, digit)[1:] for framed, digit in pairs])
    assert np.median(correlations) > 0.94
    assert (correlations >= 0.8).mean() >= 0.9
    assert np.abs(shifts.mean(axis=0)).max() < 0.2


def test_a_photograph_of_chalk_on_a_board_is_framed_too() -> None:
    path = ONE_OF_EACH[5]
    board = ImageChops.invert(sheet_with(original(path), np.random.default_rng(1), share=0.65))
    assert correlation(seen(file_of(board, "JPEG", quality=85)), original(path)) >= 0.8


def test_a_large_photograph_is_framed_like_a_small_one() -> None:
    path = ONE_OF_EACH[3]
    small = sheet_with(original(path), np.random.default_rng(1), share=0.65)
    large = small.resize((2560, 1920), Image.Resampling.BICUBIC)
    assert best_shift(seen(file_of(large, "JPEG")), seen(file_of(small, "JPEG")))[0] > 0.9


def test_dust_beside_the_strokes_does_not_move_them() -> None:
    sheet = Image.new("L", (300, 300), 240)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((100, 100, 120, 220), fill=20)
    clean = seen(file_of(sheet))
    draw.rectangle((280, 10, 283, 13), fill=20)
    assert np.abs(seen(file_of(sheet)).astype(int) - clean).mean() < 3


def test_a_stroke_of_two_parts_keeps_both() -> None:
    sheet = Image.new("L", (300, 300), 240)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((60, 100, 75, 200), fill=20)
    draw.rectangle((200, 120, 215, 180), fill=20)
    framed = seen(file_of(sheet))
    assert (framed[:, :9] > 128).any()
    assert (framed[:, 19:] > 128).any()


@pytest.mark.parametrize(("width", "height"), [(28, 28), (56, 56), (40, 28)])
@pytest.mark.parametrize("stroke", [(40, 150, 280, 165), (200, 20, 215, 280), (100, 100, 200, 200)])
def test_the_strokes_fill_their_box_and_lie_at_the_centre(width: int, height: int, stroke: tuple[int, int, int, int]) -> None:
    image = Image.new("L", (320, 300), 10)
    ImageDraw.Draw(image).rectangle(stroke, fill=230)
    framed, _ = frame_ink(image, width, height, Image.Resampling.BILINEAR)
    assert framed.size == (width, height)
    left, top, right, bottom = framed.point(lambda level: 255 if level > 64 else 0).getbbox() or (0, 0, 0, 0)
    fill = max((right - left) / (width * BOX_SHARE), (bottom - top) / (height * BOX_SHARE))
    assert 0.85 < fill < 1.15
    assert abs((left + right) / 2 - width / 2) <= 1
    assert abs((top + bottom) / 2 - height / 2) <= 1
    assert np.asarray(framed).max() > 240
    assert framed.getpixel((0, 0)) == 0


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
@pytest.mark.parametrize("size", [(640, 480), (28, 27), (1, 1), (1, 700), (700, 1), (3, 3)])
def test_a_blank_sheet_is_only_resized(level: int, size: tuple[int, int]) -> None:
    framed = seen(file_of(Image.new("L", size, level)))
    assert framed.shape == (28, 28)
    assert (framed == min(level, 255 - level)).all()


def test_a_sheet_of_noise_gives_a_frame() -> None:
    rng = np.random.default_rng(0)
    for size in ((480, 640), (28, 29), (5, 900)):
        noise = rng.normal(200, 5, size).clip(0, 255).astype(np.uint8)
        assert seen(file_of(Image.fromarray(noise), "JPEG")).shape == (28, 28)


def test_the_border_decides_the_polarity() -> None:
    light = np.full((20, 20), 200, np.uint8)
    light[8:12, 8:12] = 30
    for image in (light, 255 - light):
        assert np.array_equal(np.asarray(light_on_dark(Image.fromarray(image))), 255 - light)


def test_a_dim_sheet_is_still_light_beside_its_ink() -> None:
    dim = np.full((20, 20), 90, np.uint8)
    dim[8:12, 8:12] = 10
    assert np.array_equal(np.asarray(light_on_dark(Image.fromarray(dim))), 255 - dim)


def test_a_stroke_that_touches_the_border_does_not_turn_the_polarity() -> None:
    sheet = np.full((40, 40), 220, np.uint8)
    sheet[:, 18:22] = 10
    assert light_on_dark(Image.fromarray(sheet)).getpixel((0, 0)) == 35


def test_a_frame_is_always_the_same() -> None:
    data = file_of(sheet_with(original(ONE_OF_EACH[7]), np.random.default_rng(3), share=0.6), "JPEG")
    assert len({seen(data).tobytes() for _ in range(5)}) == 1


def test_a_maze_of_strokes_takes_no_longer_than_a_digit() -> None:
    """One piece that is 18,000 pixels long: found by spreading its number pixel by pixel, it took 44 s."""
    maze = np.zeros((190, 190), np.uint8)
    maze[::2] = 255
    maze[1::4, -1] = maze[3::4, 0] = 255
    start = time.perf_counter()
    assert frame_ink(Image.fromarray(maze), 28, 28, Image.Resampling.BILINEAR)[0].size == (28, 28)
    assert time.perf_counter() - start < 2
