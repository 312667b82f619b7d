"""Bytes to pixels, edge by edge, with real files; each test looks at the pixels, not only for an error.

Decided here, where design.md leaves it open: a file cut after its last pixel (a PNG without IEND) is whole; a CMYK JPEG
is read by Adobe's convention with or without Adobe's marker; a PNG whose text unpacks to more than 1 MB is refused.
"""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from app.errors import ConvServeError, TooLargeError, UndecodableImageError, UnsupportedImageError
from app.image import MAX_RLE_PIXELS, MAX_SCANS, decode, fit, fit_at_once, sniff
from app.spec import InputSpec
from tests.images import (
    GREY_PICTURE,
    PICTURE,
    Array,
    bombs,
    chunk,
    encode,
    fine_avif,
    fine_jpeg,
    grey_tiff,
    raw_bmp,
    raw_png,
    raw_tiff,
)

# pytest's "error" would go before the filter of app.image; that the filter works is tested in a process of its own.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

RGB = InputSpec(height=32, width=48, channels=3)
GREY = InputSpec(height=32, width=48, channels=1)
LOSSY = 4  # levels: mean absolute difference that JPEG, WebP and AVIF are allowed

LOSSLESS_FILES: dict[str, bytes] = {
    "png": encode(PICTURE, "PNG"),
    "png-palette": encode(Image.fromarray(PICTURE).quantize(16), "PNG"),
    "webp-lossless": encode(PICTURE, "WEBP", lossless=True),
    "gif": encode(PICTURE, "GIF"),
    "gif-interlaced": encode(PICTURE, "GIF", interlace=1),
    "bmp": encode(PICTURE, "BMP"),
    "bmp-palette": encode(Image.fromarray(PICTURE).quantize(16), "BMP"),
    "tiff": encode(PICTURE, "TIFF"),
    "tiff-lzw": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": encode(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "tiff-packbits": encode(PICTURE, "TIFF", compression="packbits"),
    "bigtiff": encode(PICTURE, "TIFF", big_tiff=True),
}
LOSSY_FILES: dict[str, bytes] = {
    "jpeg": fine_jpeg(PICTURE),
    "jpeg-progressive": fine_jpeg(PICTURE, progressive=True),
    "jpeg-subsampled": encode(PICTURE, "JPEG", quality=95, subsampling=2),
    "jpeg-restarts": fine_jpeg(PICTURE, restart_marker_blocks=2),
    "webp": encode(PICTURE, "WEBP", quality=95),
    "tiff-jpeg": encode(PICTURE, "TIFF", compression="jpeg", quality=95),
    "avif": fine_avif(PICTURE),
}
FILES = LOSSLESS_FILES | LOSSY_FILES
FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")


def pixels(data: bytes, spec: InputSpec = RGB) -> Array:
    """The decoded image, uint8 (height, width, 3) or (height, width)."""
    return np.asarray(decode(data, spec))


def difference(one: Array, other: Array) -> float:
    """Mean absolute difference in levels; shapes must agree."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


def on(background: tuple[int, int, int], channels: int = 3) -> InputSpec:
    """The rule with another background."""
    return InputSpec(height=32, width=48, channels=3 if channels == 3 else 1, background=background)


# --- formats ---


@pytest.mark.parametrize("name", LOSSLESS_FILES)
def test_a_lossless_file_gives_its_very_pixels(name: str) -> None:
    assert np.array_equal(pixels(LOSSLESS_FILES[name]), PICTURE)


@pytest.mark.parametrize("name", LOSSY_FILES)
def test_a_lossy_file_gives_nearly_its_pixels(name: str) -> None:
    assert difference(pixels(LOSSY_FILES[name]), PICTURE) < LOSSY


@pytest.mark.parametrize("name", FILES)
def test_a_grey_model_gets_the_luma_of_any_file(name: str) -> None:
    image = decode(FILES[name], GREY)
    assert image.mode == "L"
    assert difference(np.asarray(image), GREY_PICTURE) < (1e-9 if name in LOSSLESS_FILES else LOSSY)


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_found_by_content(name: str) -> None:
    assert sniff(FILES[name]) == name.upper()


def test_a_png_called_jpg_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(LOSSLESS_FILES["png"])
    assert np.array_equal(pixels(path.read_bytes()), PICTURE)


def test_an_avif_whose_main_brand_is_the_container_is_taken() -> None:
    avif = FILES["avif"]
    assert difference(pixels(avif[:8] + b"mif1" + avif[12:]), PICTURE) < LOSSY


@pytest.mark.parametrize("format_name", ["ICO", "PPM", "EPS", "PDF", "TGA", "PCX", "JPEG2000", "DDS", "SGI", "ICNS", "IM"])
def test_another_format_that_pillow_writes_is_refused(format_name: str) -> None:
    data = encode(Image.fromarray(PICTURE).resize((32, 32)), format_name)
    with pytest.raises(UnsupportedImageError, match="JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"):
        decode(data, RGB)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xd8",
        b"GIF88a" + bytes(50),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"LIST\x24\0\0\0WEBPVP8 ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"8BPS\0\1" + bytes(50),
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"<!doctype html><title>404</title>",
        b"hello, world",
        b"#define x_width 8\n",
        b"P6 1 1 255 abc",
        b"PK\x03\x04" + bytes(50),
        b" " + LOSSLESS_FILES["png"],
    ],
)
def test_what_is_no_image_of_a_known_type_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError):
        decode(data, RGB)


@pytest.mark.parametrize(
    "animated",
    [
        encode(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (48, 32), "red")], duration=50),
        encode(PICTURE, "PNG", save_all=True, append_images=[Image.new("RGB", (48, 32), "red")]),
        encode(PICTURE, "WEBP", save_all=True, append_images=[Image.new("RGB", (48, 32), "red")], lossless=True),
        encode(PICTURE, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")], compression="tiff_lzw"),
    ],
    ids=["gif", "apng", "webp", "tiff"],
)
def test_the_first_frame_or_page_is_taken(animated: bytes) -> None:
    assert Image.open(io.BytesIO(animated)).n_frames == 2  # type: ignore[attr-defined]
    assert np.array_equal(pixels(animated), PICTURE)


def test_the_first_frame_of_an_animated_avif_is_taken() -> None:
    animated = fine_avif(PICTURE, save_all=True, append_images=[Image.new("RGB", (48, 32), "red")])
    assert difference(pixels(animated), PICTURE) < LOSSY


def test_a_gif_frame_smaller_than_its_canvas_shows_the_background_around() -> None:
    canvas = struct.pack("<HHBBB", 4, 2, 0x80, 1, 0) + b"\x0a\x0a\x0a\xff\0\0"
    frame = b"!\xf9\x04\1\0\0\0\0," + struct.pack("<HHHHB", 1, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\0;"  # one pixel of colour 1
    picture = pixels(b"GIF89a" + canvas + frame, on((1, 2, 3)))
    assert picture.shape == (2, 4, 3)
    assert picture[0, 1].tolist() == [255, 0, 0]
    assert picture[1, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("format_options", [{}, {"progressive": True}])
def test_of_a_phones_two_pictures_the_first_is_taken(format_options: dict[str, object]) -> None:
    mpo = encode(
        PICTURE,
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (48, 32), "red")],
        quality=95,
        subsampling=0,
        **format_options,
    )
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    assert difference(pixels(mpo), PICTURE) < LOSSY


def test_a_broken_index_of_pictures_leaves_the_first_one_readable() -> None:
    index = b"MPF\0" + b"garbage that is no directory"
    segment = b"\xff\xe2" + struct.pack(">H", len(index) + 2) + index
    jpeg = FILES["jpeg"]
    assert np.array_equal(pixels(jpeg[:2] + segment + jpeg[2:]), pixels(jpeg))


# --- modes ---


def test_palette_transparency_by_index_shows_the_background() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = encode(palette, "PNG", transparency=1)
    assert pixels(data).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert pixels(data, on((1, 2, 3))).tolist() == [[[10, 20, 30], [1, 2, 3], [70, 80, 90]]]
    assert pixels(encode(palette, "GIF", transparency=1), on((1, 2, 3)))[0, 1].tolist() == [1, 2, 3]


def test_palette_transparency_by_bytes_is_blended_with_the_background() -> None:
    palette = chunk(b"PLTE", bytes([0, 0, 0, 100, 100, 100, 200, 200, 200]))
    data = raw_png(3, 1, 8, 3, [b"\0\1\2"], palette, chunk(b"tRNS", bytes([255, 128, 0])))
    opaque, half, clear = pixels(data, on((0, 0, 255)))[0].astype(int)
    assert opaque.tolist() == [0, 0, 0]
    assert clear.tolist() == [0, 0, 255]
    assert np.abs(half - [50, 50, 177]).max() <= 1


def test_grey_with_alpha_is_blended_with_the_background() -> None:
    data = encode(Image.fromarray(np.array([[[80, 255], [80, 0], [80, 51]]], np.uint8), "LA"), "PNG")
    opaque, clear, fifth = pixels(data)[0].astype(int)
    assert (opaque.tolist(), clear.tolist()) == ([80] * 3, [255] * 3)
    assert np.abs(fifth - 220).max() <= 1  # 80 / 5 + 255 × 4 / 5
    assert pixels(data, on((0, 0, 0), channels=1))[0, :2].tolist() == [80, 0]


@pytest.mark.parametrize(
    "options",
    [{"format_name": "PNG"}, {"format_name": "WEBP", "lossless": True, "exact": True}, {"format_name": "TIFF"}],
    ids=["png", "webp", "tiff"],
)
def test_colour_with_alpha_is_blended_with_the_background(options: dict[str, object]) -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 128]]], np.uint8)
    data = encode(rgba, **options)  # type: ignore[arg-type]
    for background in ((255, 255, 255), (10, 20, 30)):
        opaque, clear, half = pixels(data, on(background))[0].astype(int)
        assert opaque.tolist() == [200, 100, 0]
        assert clear.tolist() == list(background)
        assert np.abs(half - (np.array([200, 100, 0]) + background) / 2).max() <= 1.5


def test_transparent_avif_shows_the_background() -> None:
    rgba = np.dstack([PICTURE, np.repeat(np.where(np.arange(32) < 16, 255, 0)[:, None], 48, axis=1)]).astype(np.uint8)
    picture = pixels(fine_avif(rgba), on((10, 20, 30)))
    assert difference(picture[:12], PICTURE[:12]) < LOSSY
    assert difference(picture[20:], np.full((12, 48, 3), (10, 20, 30), np.uint8)) < LOSSY


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x80", 0, [255, 9]),
        (2, b"\x70", 1, [9, 255]),
        (4, b"\x3f", 3, [9, 255]),
        (8, b"\x30\x90", 0x30, [9, 144]),
        (16, b"\x30\x00\x90\x00", 0x3000, [9, 144]),
    ],
)
def test_a_transparent_grey_level_shows_the_background_at_any_depth(
    depth: int, row: bytes, key: int, expected: list[int]
) -> None:
    data = raw_png(2, 1, depth, 0, [row], chunk(b"tRNS", struct.pack(">H", key)))
    assert pixels(data, on((9, 9, 9), channels=1)).tolist() == [expected]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_shows_the_background(depth: int) -> None:
    step = 1 if depth == 8 else 257
    colour, other = [value * step for value in (10, 20, 30)], [value * step for value in (11, 20, 30)]
    row = struct.pack(">6B" if depth == 8 else ">6H", *colour, *other)
    data = raw_png(2, 1, depth, 2, [row], chunk(b"tRNS", struct.pack(">3H", *colour)))
    assert pixels(data, on((1, 2, 3))).tolist() == [[[1, 2, 3], [11, 20, 30]]]


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_becomes_black_and_white(format_name: str) -> None:
    mask = np.arange(48)[None, :] % 3 == np.arange(32)[:, None] % 2
    data = encode(Image.fromarray(mask), format_name)
    assert np.array_equal(pixels(data, GREY), np.where(mask, 255, 0))
    assert np.array_equal(pixels(data)[:, :, 2], np.where(mask, 255, 0))


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP", "AVIF"])
def test_grey_files_give_three_equal_channels_to_a_colour_model(format_name: str) -> None:
    options: dict[str, object] = {"quality": 95} if format_name in ("JPEG", "AVIF") else {}
    options |= {"lossless": True} if format_name == "WEBP" else {}
    picture = pixels(encode(GREY_PICTURE, format_name, **options))
    assert difference(picture, np.dstack([GREY_PICTURE] * 3)) < 2
    assert (np.ptp(picture.astype(int), axis=2) <= 1).all()


def cmyk_picture() -> tuple[Image.Image, Array]:
    """Four flat inks with black in two of them, and the colours that they print (light that both inks let through)."""
    inks = np.zeros((32, 48, 4), np.uint8)
    inks[:16, :24], inks[:16, 24:] = (200, 30, 10, 0), (20, 220, 60, 40)
    inks[16:, :24], inks[16:, 24:] = (0, 0, 0, 0), (90, 10, 200, 100)
    light = 255 - inks.astype(float)
    colours = (light[:, :, :3] * light[:, :, 3:] / 255).round().astype(np.uint8)
    return Image.fromarray(inks, "CMYK"), colours


def adobe_marker(jpeg: bytes) -> slice:
    """Where a JPEG's segment APP14 lies."""
    start = jpeg.index(b"\xff\xee")
    return slice(start, start + 2 + int.from_bytes(jpeg[start + 2 : start + 4]))


def test_a_cmyk_jpeg_as_adobe_writes_it_inverted_is_right() -> None:
    image, colours = cmyk_picture()
    data = fine_jpeg(image)
    assert data[adobe_marker(data)][4:9] == b"Adobe"
    assert difference(pixels(data), colours) < LOSSY
    assert difference(pixels(data, GREY), np.asarray(Image.fromarray(colours).convert("L"))) < LOSSY


def test_a_cmyk_jpeg_without_adobes_marker_is_read_like_one_with_it() -> None:
    image, colours = cmyk_picture()
    data = fine_jpeg(image)
    marker = adobe_marker(data)
    assert difference(pixels(data[: marker.start] + data[marker.stop :]), colours) < LOSSY


def test_a_ycck_jpeg_is_right() -> None:
    image, colours = cmyk_picture()
    cyan, magenta, yellow, black = image.split()
    luma_chroma = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr")
    planes = [band.point(lambda level: 255 - level) for band in luma_chroma.split()]  # Pillow inverts all four on writing
    data = bytearray(fine_jpeg(Image.merge("CMYK", (*planes, black))))
    data[adobe_marker(bytes(data)).stop - 1] = 2  # "YCCK"
    assert difference(pixels(bytes(data)), colours) < LOSSY


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_cmyk_tiff_is_right(compression: str | None) -> None:
    image, colours = cmyk_picture()
    assert difference(pixels(encode(image, "TIFF", compression=compression)), colours) < 1


def test_a_jpeg_stored_as_rgb_is_right() -> None:
    data = fine_jpeg(PICTURE, keep_rgb=True)
    assert difference(pixels(data), PICTURE) < LOSSY
    assert difference(pixels(data, GREY), GREY_PICTURE) < LOSSY


DEEP = np.array([[0, 255, 256, 0x1234], [0x80FF, 0xFEFF, 0xFF00, 0xFFFF]], np.uint16)
DEEP_HIGH_BYTES = [[0, 0, 1, 0x12], [0x80, 0xFE, 0xFF, 0xFF]]


@pytest.mark.parametrize(
    "data",
    [encode(Image.fromarray(DEEP), "PNG"), encode(Image.fromarray(DEEP), "TIFF"), grey_tiff(DEEP, "<"), grey_tiff(DEEP, ">")],
    ids=["png", "tiff", "tiff-little", "tiff-big"],
)
def test_sixteen_bits_of_grey_become_their_high_eight(data: bytes) -> None:
    assert pixels(data, GREY).tolist() == DEEP_HIGH_BYTES
    assert pixels(data)[:, :, 1].tolist() == DEEP_HIGH_BYTES


def test_sixteen_bits_per_colour_become_their_high_eight() -> None:
    row = struct.pack(">6H", 0x1122, 0x3344, 0x5566, 0xFFFF, 0x8000, 0x00FF)
    assert pixels(raw_png(2, 1, 16, 2, [row])).tolist() == [[[0x11, 0x33, 0x55], [0xFF, 0x80, 0]]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_per_colour_of_a_tiff_become_their_high_eight(order: str) -> None:
    bits = struct.pack(order + "HHII", 258, 3, 3, 8 + 2 + 12 * 9 + 4)  # three numbers behind the directory
    tags = {256: 1, 257: 1, 259: 1, 262: 2, 277: 3, 278: 1}
    plain = raw_tiff(
        tags, struct.pack(order + "3H", 16, 16, 16) + struct.pack(order + "3H", 0x1122, 0x3344, 0xFFFF), order=order
    )
    count = struct.unpack_from(order + "H", plain, 8)[0]
    data = bytearray(plain[:8] + struct.pack(order + "H", count + 1) + plain[10 : 10 + 24] + bits + plain[10 + 24 :])
    at = data.index(struct.pack(order + "HHI", 273, 4, 1))
    struct.pack_into(order + "I", data, at + 8, 8 + 2 + 12 * 9 + 4 + 6)
    at = data.index(struct.pack(order + "HHI", 279, 4, 1))
    struct.pack_into(order + "I", data, at + 8, 6)
    assert pixels(bytes(data)).tolist() == [[[0x11, 0x33, 0xFF]]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_with_what_to_do(dtype: type[np.generic]) -> None:
    data = encode(Image.fromarray(GREY_PICTURE.astype(dtype)), "TIFF")
    for spec in (RGB, GREY):
        with pytest.raises(UndecodableImageError, match=r"no stated range: convert the image to 8 or 16 bits"):
            decode(data, spec)


def test_a_lab_tiff_is_refused_with_what_to_do() -> None:
    with pytest.raises(UndecodableImageError, match="CIELAB is not read: convert the image"):
        decode(encode(Image.new("LAB", (4, 4)), "TIFF"), RGB)


def test_a_run_length_bmp_is_right() -> None:
    runs = bytes([3, 1, 1, 2, 0, 0]) + bytes([4, 0, 0, 1])  # bottom row: 1 1 1 2; top row: 0 0 0 0
    palette = bytes([0, 0, 0, 0, 30, 20, 10, 0, 60, 50, 40, 0])
    picture = pixels(raw_bmp(4, 2, 8, runs, compression=1, palette=palette))
    assert picture.tolist() == [[[0, 0, 0]] * 4, [[10, 20, 30]] * 3 + [[40, 50, 60]]]


def test_a_top_down_bmp_is_not_upside_down() -> None:
    rows = bytes([1, 2, 3, 0]) + bytes([4, 5, 6, 0])
    assert pixels(raw_bmp(1, -2, 24, rows)).tolist() == [[[3, 2, 1]], [[6, 5, 4]]]


# --- orientation ---

STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
ENCODERS: dict[str, Callable[..., bytes]] = {
    "jpeg": fine_jpeg,
    "png": lambda image, **options: encode(image, "PNG", **options),
    "webp": lambda image, **options: encode(image, "WEBP", lossless=True, **options),
    "tiff": lambda image, **options: encode(image, "TIFF", **options),
    "tiff-lzw": lambda image, **options: encode(image, "TIFF", compression="tiff_lzw", **options),
    "avif": fine_avif,
}


def exif(orientation: int) -> Image.Exif:
    """EXIF that states an orientation."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_exif_orientation_is_turned_upright(name: str, orientation: int) -> None:
    stored = np.ascontiguousarray(STORED[orientation](PICTURE))
    data = ENCODERS[name](stored, exif=exif(orientation))
    assert difference(pixels(data), PICTURE) < LOSSY


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    assert np.array_equal(pixels(ENCODERS["png"](PICTURE, exif=exif(orientation))), PICTURE)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
@pytest.mark.parametrize(
    "damaged",
    [
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0not a directory",
        b"\xff" * 40,
        exif(6).tobytes()[:-7],
        b"Exif\0\0MM\0*\xff\xff\xff\xf0",
    ],
)
def test_damaged_exif_still_decodes(name: str, damaged: bytes) -> None:
    assert difference(pixels(ENCODERS[name](PICTURE, exif=damaged)), PICTURE) < LOSSY


def test_the_orientation_counts_even_if_the_exif_cannot_be_written_again() -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Make] = 6, "ab"
    damaged = bytearray(tags.tobytes())
    damaged[17] = 0  # tag 0x010f, Make, becomes 0x0100, ImageWidth: a number, and here a text
    data = fine_jpeg(np.ascontiguousarray(STORED[6](PICTURE)), exif=bytes(damaged))
    assert difference(pixels(data), PICTURE) < LOSSY


# --- reduced scale ---


@pytest.mark.parametrize(
    ("size", "rule", "decoded"),
    [
        ((640, 480), {}, (640, 480)),
        ((895, 1200), {}, (895, 1200)),
        ((896, 896), {}, (448, 448)),
        ((1000, 901), {}, (500, 451)),
        ((1791, 1791), {}, (896, 896)),
        ((1792, 1800), {}, (448, 450)),
        ((4000, 3000), {}, (1000, 750)),
        ((3583, 3583), {}, (896, 896)),
        ((3584, 3600), {}, (448, 450)),
        ((4000, 447), {}, (4000, 447)),
        ((640, 480), {"decode_oversampling": 1.0}, (320, 240)),
        ((1344, 1400), {"decode_oversampling": 1.5}, (336, 350)),
        ((1343, 1400), {"decode_oversampling": 1.5}, (672, 700)),
        ((1600, 1600), {"height": 100, "width": 200}, (400, 400)),
        ((1600, 1600), {"height": 200, "width": 100}, (400, 400)),
        ((1024, 1024), {"resize": "crop", "crop_fraction": 0.875}, (512, 512)),
        ((1023, 1023), {"resize": "crop", "crop_fraction": 0.875}, (1023, 1023)),
        ((1023, 1023), {"resize": "pad", "crop_fraction": 0.875}, (512, 512)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_reduced_as_far_as_the_rule_allows(
    size: tuple[int, int], rule: dict[str, object], decoded: tuple[int, int], channels: int
) -> None:
    spec = InputSpec.model_validate({"height": 224, "width": 224, "channels": channels} | rule)
    assert decode(encode(Image.new("L", size, 90), "JPEG"), spec).size == decoded


def photo(width: int, height: int) -> Image.Image:
    """Noise of several sizes, as colourful and detailed as a photograph."""
    rng = np.random.default_rng(7)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (height // step + 1, width // step + 1, 3), np.uint8)).resize((width, height))
        )
        for step in (4, 32, 256)
    ]
    return Image.fromarray((np.stack(layers).astype(np.float32).mean(axis=0)).astype(np.uint8))


def at_224(**changes: object) -> InputSpec:
    """The usual input of an image model."""
    return InputSpec.model_validate({"height": 224, "width": 224, "channels": 3} | changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_jpeg_is_bit_identical_to_the_full_decode(channels: int) -> None:
    data = encode(photo(640, 480), "JPEG")
    full = at_224(channels=channels, decode_oversampling=1000)
    reduced = at_224(channels=channels)
    assert np.array_equal(fit(decode(data, reduced), reduced), fit(decode(data, full), full))


def test_a_large_jpeg_is_close_to_the_full_decode() -> None:
    data = encode(photo(4000, 3000), "JPEG")
    full, reduced = at_224(decode_oversampling=1000), at_224()
    assert decode(data, reduced).size == (1000, 750)
    assert difference(fit(decode(data, reduced), reduced), fit(decode(data, full), full)) < 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_jpeg_is_reduced_the_same(orientation: int) -> None:
    image = decode(encode(Image.new("RGB", (4000, 3000)), "JPEG", exif=exif(orientation)), at_224())
    assert image.size == ((1000, 750) if orientation < 5 else (750, 1000))


def test_for_a_grey_model_only_the_luma_of_a_jpeg_is_decoded() -> None:
    data = encode(photo(320, 240), "JPEG")
    stored = Image.open(io.BytesIO(data))
    stored.draft("YCbCr", None)  # the planes as they are in the file
    assert np.array_equal(pixels(data, at_224(channels=1)), np.asarray(stored)[:, :, 0])


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("jpeg")])
def test_other_formats_are_never_reduced(name: str) -> None:
    assert decode(FILES[name], InputSpec(height=2, width=2, channels=3)).size == (48, 32)


# --- limits ---


@pytest.mark.parametrize("name", FILES)
def test_the_pixel_limit_is_exact(name: str) -> None:
    assert decode(FILES[name], RGB, max_pixels=48 * 32).size == (48, 32)
    with pytest.raises(TooLargeError):
        decode(FILES[name], RGB, max_pixels=48 * 32 - 1)


def test_a_limit_of_one_image_is_not_kept_for_the_next() -> None:
    with pytest.raises(TooLargeError):
        decode(FILES["webp"], RGB, max_pixels=10)
    assert difference(pixels(FILES["webp"]), PICTURE) < LOSSY


def test_the_refusal_says_the_size_and_the_limit() -> None:
    with pytest.raises(TooLargeError, match="48 × 32 pixels and at most 1,000 are taken"):
        decode(FILES["png"], RGB, max_pixels=1000)


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_a_huge_claim_in_a_small_file_is_too_large(name: str) -> None:
    assert len(BOMBS[name]) < 20_000
    with pytest.raises(TooLargeError):
        decode(BOMBS[name], RGB)


def test_an_avif_larger_than_its_library_takes_does_not_decode() -> None:
    canvas, huge = struct.pack(">II", 48, 32), struct.pack(">II", 50_000, 50_000)
    with pytest.raises(UndecodableImageError):
        decode(FILES["avif"].replace(canvas, huge), RGB)


def text_bomb(name: bytes, head: bytes) -> bytes:
    """A PNG with 100 MB of text or profile in 100 kB."""
    return raw_png(1, 1, 8, 0, [b"\7"], chunk(name, head + zlib.compress(bytes(100_000_000))))


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    text_bombs = {
        "itxt": text_bomb(b"iTXt", b"k\0\1\0\0\0"),
        "ztxt": text_bomb(b"zTXt", b"k\0\0"),
        "icc": text_bomb(b"iCCP", b"k\0\0"),
    }
    for name, data in (BOMBS | text_bombs).items():
        (tmp_path / name).write_bytes(data)
    script = """
import pathlib, resource, sys
from app.errors import ConvServeError
from app.image import decode
from app.spec import InputSpec
spec = InputSpec(height=8, width=8, channels=3)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode(path.read_bytes(), spec)
    except ConvServeError as error:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(path.name, error.status, after - before)
"""
    outcomes = [line.split() for line in run_python(script, str(tmp_path)).stdout.splitlines()]
    assert {name: int(status) for name, status, _ in outcomes} == dict.fromkeys(BOMBS, 413) | dict.fromkeys(text_bombs, 422)
    unit = 1024 if sys.platform == "darwin" else 1
    assert max(int(growth) for *_, growth in outcomes) // unit < 20_000, outcomes  # kB


def test_a_long_text_in_a_png_is_no_matter() -> None:
    assert pixels(raw_png(1, 1, 8, 0, [b"\7"], chunk(b"tEXt", b"k\0" + b"a" * 5_000_000)), GREY).tolist() == [[7]]


def test_a_jpeg_with_needlessly_many_scans_is_refused() -> None:
    jpeg = encode(np.full((64, 64), 128, np.uint8), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    again = jpeg[jpeg.rindex(b"\xff\xc4", 0, last) : -2]
    scans = jpeg.count(b"\xff\xda")
    harmless = jpeg[:-2] + again * (MAX_SCANS - scans) + b"\xff\xd9"
    assert (pixels(harmless, GREY) == 128).all()
    with pytest.raises(UndecodableImageError, match="more than 100 scans"):
        decode(jpeg[:-2] + again * (MAX_SCANS - scans + 1) + b"\xff\xd9", GREY)
    hidden = b"\xff\xfe\0\x06" + b"\xff\xd9" + b"\xff\xd9"  # a comment that looks like the end
    with pytest.raises(UndecodableImageError, match="more than 100 scans"):
        decode(jpeg[:-2] + hidden + again * MAX_SCANS + b"\xff\xd9", GREY)


def test_what_follows_a_jpegs_end_is_not_counted_as_scans() -> None:
    data = encode(PICTURE, "JPEG", progressive=True)
    assert np.array_equal(pixels(data + b"\xff\xda\0\0" * 500), pixels(data))


def test_a_large_run_length_bmp_is_refused_since_pillow_reads_it_in_python() -> None:
    side = 2000  # 2000 × 2000 is the limit
    assert side * side == MAX_RLE_PIXELS
    palette = bytes(4) * 256
    with pytest.raises(TooLargeError, match="4,000,000"):
        decode(raw_bmp(side, side + 1, 8, b"\1\0\0\0" * side, compression=1, palette=palette), RGB)


# --- damage ---


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_and_never_half_an_image(name: str) -> None:
    data = FILES[name]
    whole = pixels(data)
    after_pixels = {"png": 21, "gif": 2, "jpeg": 2}.get(name.split("-")[0], 0)  # checksums and end marks
    for length in sorted({*range(12, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}):
        if len(data) - length > after_pixels:
            with pytest.raises(UndecodableImageError):
                decode(data[:length], RGB)
            continue
        try:
            assert np.array_equal(pixels(data[:length]), whole)
        except UndecodableImageError:
            continue


@pytest.mark.parametrize("size", [(400, 300), (333, 777)])
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff-lzw"])
def test_a_truncated_photo_is_refused(name: str, size: tuple[int, int]) -> None:
    data = ENCODERS[name](photo(*size))
    for share in (0.1, 0.5, 0.9, 0.99):
        with pytest.raises(UndecodableImageError, match=r"damaged or truncated: \w"):
            decode(data[: int(len(data) * share)], RGB)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("garbage", [bytes(64), b"\xde\xad\xbe\xef" * 16, b"\xff\xd8\xff\xd9" * 16])
def test_what_follows_the_image_is_no_matter(name: str, garbage: bytes) -> None:
    assert np.array_equal(pixels(FILES[name] + garbage), pixels(FILES[name]))


def test_a_flipped_bit_in_a_pngs_pixels_is_found() -> None:
    data = bytearray(ENCODERS["png"](photo(100, 100)))
    data[len(data) // 2] ^= 4
    with pytest.raises(UndecodableImageError):
        decode(bytes(data), RGB)


def test_a_palette_png_without_its_palette_is_refused_in_a_whole_sentence() -> None:
    with pytest.raises(UndecodableImageError, match=r"truncated: \w"):
        decode(raw_png(2, 1, 8, 3, [b"\0\1"]), RGB)


@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    share=st.one_of(st.just(1.0), st.floats(0, 1)),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
def test_damaged_files_give_an_image_or_one_of_three_errors(
    name: str, edits: list[tuple[float, int]], share: float, channels: int
) -> None:
    data = bytearray(FILES[name])
    for place, value in edits:
        data[int(place * min(len(data), 800))] = value
    spec = RGB if channels == 3 else GREY
    try:
        image = decode(bytes(data[: round(len(data) * share)]), spec, max_pixels=100_000)
    except (UnsupportedImageError, UndecodableImageError, TooLargeError):
        return
    assert image.mode == ("RGB" if channels == 3 else "L")
    assert image.width * image.height <= 100_000
    assert fit(image, spec).shape == spec.shape


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a Python that makes errors of warnings."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)


def test_a_warning_of_pillow_is_neither_an_error_nor_noise(tmp_path: Path) -> None:
    bad_tag = struct.pack("<HHII", 65000, 7, 1_000_000, 8)  # data that the file does not hold
    tags = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    path = tmp_path / "odd.tiff"
    path.write_bytes(raw_tiff(tags, b"\x0a\x14", extra=bad_tag))
    with pytest.warns(UserWarning, match="Skipping tag 65000"):
        Image.open(path).load()
    script = """
import pathlib, sys, warnings
from app.image import decode
from app.spec import InputSpec
for action in ("error", "default"):
    image = decode(pathlib.Path(sys.argv[1]).read_bytes(), InputSpec(height=8, width=8, channels=1))
    print(image.tobytes().hex())
"""
    finished = run_python(script, str(path))
    assert (finished.stdout.split(), finished.stderr) == (["0a14", "0a14"], "")


# --- fit ---


def rule(height: int, width: int, channels: int = 3, **changes: object) -> InputSpec:
    """An input rule."""
    return InputSpec.model_validate({"height": height, "width": width, "channels": channels} | changes)


def grey(rows: list[list[int]]) -> Image.Image:
    """A grey image of these levels."""
    return Image.fromarray(np.array(rows, np.uint8))


def test_stretch_squeezes_each_axis_by_itself() -> None:
    image = grey([[0, 10, 100, 200], [20, 30, 100, 200]])
    assert fit(image, rule(1, 2, 1, filter="box")).tolist() == [[[15], [150]]]
    assert fit(image, rule(2, 1, 1, filter="box")).tolist() == [[[78]], [[88]]]  # 77.5 and 87.5, halves up


def test_shrinking_is_antialiased() -> None:
    stripes = grey([[0, 255] * 32] * 64)
    for name in ("bilinear", "bicubic", "lanczos", "box"):
        assert np.abs(fit(stripes, rule(8, 8, 1, filter=name)).astype(int) - 127).max() < 20, name


def test_the_filter_of_the_rule_is_used() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))
    results = {name: fit(image, rule(8, 8, 1, filter=name)).tobytes() for name in ("bilinear", "bicubic", "lanczos", "box")}
    assert len(set(results.values())) == 4
    assert results["bicubic"] == image.resize((8, 8), Image.Resampling.BICUBIC).tobytes()


def test_crop_takes_the_centre_in_the_targets_shape() -> None:
    wide = grey([[1, 2, 30, 40, 5, 6], [1, 2, 50, 60, 5, 6]])
    assert fit(wide, rule(2, 2, 1, resize="crop", filter="box"))[:, :, 0].tolist() == [[30, 40], [50, 60]]
    tall = grey([[1, 1], [30, 40], [50, 60], [2, 2]])
    assert fit(tall, rule(2, 2, 1, resize="crop", filter="box"))[:, :, 0].tolist() == [[30, 40], [50, 60]]
    odd = grey([[0, 100, 200]])
    assert fit(odd, rule(1, 2, 1, resize="crop", filter="bilinear"))[:, :, 0].tolist() == [[50, 150]]  # from ½ to 2½


def test_the_crop_fraction_keeps_that_share_of_the_shorter_side() -> None:
    image = grey([[1, 1, 1, 1], [1, 10, 20, 1], [1, 30, 40, 1], [1, 1, 1, 1]])
    half = rule(2, 2, 1, resize="crop", crop_fraction=0.5, filter="box")
    assert fit(image, half)[:, :, 0].tolist() == [[10, 20], [30, 40]]


def test_pad_keeps_the_whole_image_on_the_background() -> None:
    wide = Image.new("RGB", (4, 2), (9, 8, 7))
    padded = fit(wide, rule(4, 4, resize="pad", background=(1, 2, 3)))
    assert padded[:, 0].tolist() == [[1, 2, 3], [9, 8, 7], [9, 8, 7], [1, 2, 3]]
    tall = fit(wide.transpose(Image.Transpose.ROTATE_90), rule(4, 4, resize="pad", background=(1, 2, 3)))
    assert tall[0].tolist() == [[1, 2, 3], [9, 8, 7], [9, 8, 7], [1, 2, 3]]
    assert (fit(wide, rule(2, 4, resize="pad")) == (9, 8, 7)).all()


def test_pad_enlarges_a_small_image() -> None:
    padded = fit(Image.new("L", (3, 2), 50), rule(6, 6, 1, resize="pad", background=(0, 0, 0)))
    assert padded[:, 0, 0].tolist() == [0, 50, 50, 50, 50, 0]


def test_pad_never_loses_a_thin_image() -> None:
    for size in ((1, 5000), (5000, 1)):
        padded = fit(Image.new("L", size, 50), rule(8, 8, 1, resize="pad"))
        assert sorted(padded.ravel().tolist()) == [50] * 8 + [255] * 56


@pytest.mark.parametrize("background", [(1, 1, 0), (255, 255, 255), (12, 200, 77), (0, 0, 4)])
def test_the_grey_background_is_what_pillow_makes_of_the_colour(background: tuple[int, int, int]) -> None:
    padded = fit(Image.new("L", (4, 2), 50), rule(4, 4, 1, resize="pad", background=background))
    assert padded[0, 0, 0] == Image.new("RGB", (1, 1), background).convert("L").getpixel((0, 0))


RULES: list[dict[str, object]] = [
    {"channels": 3, "resize": "stretch"},
    {"channels": 3, "resize": "crop"},
    {"channels": 3, "resize": "crop", "crop_fraction": 0.3},
    {"channels": 3, "resize": "pad"},
    {"channels": 1, "resize": "stretch"},
    {"channels": 1, "resize": "stretch", "polarity": "light_on_dark"},
    {"channels": 1, "resize": "ink"},
    {"channels": 1, "resize": "ink", "polarity": "light_on_dark"},
]
SIZES = [(1, 1), (1, 5000), (5000, 1), (2, 3), (1, 2), (7, 7), (8, 6), (6, 8), (9, 511), (513, 1025), (97, 193)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("changes", RULES, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_any_size_gives_the_models_shape(size: tuple[int, int], changes: dict[str, object]) -> None:
    spec = InputSpec.model_validate({"height": 6, "width": 8} | changes)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    result = fit(Image.fromarray(noise).convert("L" if spec.channels == 1 else "RGB"), spec)
    assert result.dtype == np.uint8
    assert result.shape == (6, 8, spec.channels)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("changes", RULES, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_an_image_that_has_the_size_is_taken_as_it_is(changes: dict[str, object]) -> None:
    spec = InputSpec.model_validate({"height": 6, "width": 8} | changes)
    dark_border = np.random.default_rng(1).integers(0, 256, (6, 8, spec.channels), np.uint8)
    dark_border[[0, -1]] = dark_border[:, [0, -1]] = 3
    image = Image.fromarray(dark_border[:, :, 0] if spec.channels == 1 else dark_border)
    assert np.array_equal(fit(image, spec), dark_border)


@pytest.mark.parametrize("changes", RULES, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_threads_give_what_one_thread_gives(changes: dict[str, object]) -> None:
    spec = InputSpec.model_validate({"height": 28, "width": 28} | changes)
    files = [FILES[name] for name in FORMATS] * 4
    single = [fit(decode(data, spec), spec) for data in files[: len(FORMATS)]] * 4
    with ThreadPoolExecutor(4) as threads:
        batch = list(threads.map(lambda data: fit(decode(data, spec), spec), files))
    assert np.array_equal(np.stack(batch), np.stack(single))


def test_the_three_errors_have_the_statuses_of_the_contract() -> None:
    statuses: list[int] = []
    for data in (b"text", b"GIF89a", BOMBS["png"]):
        with pytest.raises(ConvServeError) as refused:
            decode(data, RGB)
        statuses.append(refused.value.status)
    assert statuses == [415, 422, 413]


def test_crop_never_leaves_an_image_of_any_size() -> None:
    spec = InputSpec(height=224, width=224, channels=1, resize="crop")
    for side in range(1, 400):  # 29 and others put the box outside by 1e-15
        assert fit(Image.new("L", (side, side + 7), 7), spec).max() == 7


def outcome(data: bytes, spec: InputSpec) -> list[object] | type[Exception]:
    """Mode, size and pixels, or the kind of error."""
    try:
        image = decode(data, spec)
    except ConvServeError as error:
        return type(error)
    return [image.mode, image.size, image.tobytes()]


@settings(max_examples=150, deadline=None)
@given(
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
    level=st.integers(0, 9),
    spec=st.sampled_from([GREY, RGB]),
)
def test_a_plain_png_decodes_as_by_pillows_reader(
    side: tuple[int, int], channels: int, seed: int, level: int, spec: InputSpec
) -> None:
    """A byte after the end, which says nothing, sends the same picture to the reader."""
    levels = np.random.default_rng(seed).integers(0, 256, (*side, channels), np.uint8).cumsum(axis=1, dtype=np.uint8)
    data = encode(levels.squeeze(2) if channels == 1 else levels, "PNG", compress_level=level)
    assert outcome(data, spec) == outcome(data + b"\0", spec)


def test_a_plain_png_with_a_changed_byte_ends_as_by_pillows_reader() -> None:
    data = encode(np.arange(63, dtype=np.uint8).reshape(7, 9), "PNG")
    length = int.from_bytes(data[33:37])
    for position in range(8, len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x11
        resealed = bytearray(broken)  # broken inside sound checksums
        resealed[29:33] = zlib.crc32(broken[12:29]).to_bytes(4)
        resealed[41 + length : 45 + length] = zlib.crc32(broken[37 : 41 + length]).to_bytes(4)
        for one in (bytes(broken), bytes(resealed)):
            assert outcome(one, GREY) == outcome(one + b"\0", GREY), position


def test_a_plain_png_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(TooLargeError):
        decode(encode(np.zeros((30, 30), np.uint8), "PNG"), GREY, max_pixels=899)


@pytest.mark.parametrize("spec", [GREY, RGB])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_plain_png_of_the_models_size_is_fitted_at_once_as_it_is_otherwise(spec: InputSpec, channels: int) -> None:
    levels = np.random.default_rng(3).integers(0, 256, (32, 48, channels), np.uint8)
    data = encode(levels.squeeze(2) if channels == 1 else levels, "PNG")
    pixels = fit_at_once(data, spec)
    assert pixels is not None
    assert pixels.tolist() == fit(decode(data, spec), spec).tolist()


@pytest.mark.parametrize(
    "data",
    [
        encode(np.zeros((48, 32), np.uint8), "PNG"),  # as many pixels
        encode(np.zeros((64, 48), np.uint8), "PNG"),
        encode(np.zeros((32, 48), np.uint8), "BMP"),
        encode(np.zeros((32, 48), np.uint8), "PNG")[:-1],
        b"",
    ],
)
def test_all_else_is_left_to_a_thread(data: bytes) -> None:
    assert fit_at_once(data, GREY) is None


def test_what_has_more_pixels_than_are_taken_is_left_to_a_thread_which_refuses_it() -> None:
    assert fit_at_once(encode(np.zeros((32, 48), np.uint8), "PNG"), GREY, max_pixels=32 * 48 - 1) is None
