"""Bytes to pixels: the only place that decodes or resizes, for serving and for training alike.

    bytes ──decode──▶ Image (L or RGB, upright) ──fit──▶ Pixels, uint8 (height, width, channels)

`decode` raises UnsupportedImageError (415), UndecodableImageError (422) or TooLargeError (413); `fit` never fails.
The type is found from the content, never from what the client calls it. Colour profiles are not applied: sRGB is assumed.
"""

import io
import math
import re
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from app.errors import ConvServeError, OverloadedError, TooLargeError, UndecodableImageError, UnsupportedImageError
from app.ink import WHOLE, Box, frame_ink, light_on_dark, locate_frame
from app.spec import InputSpec

Pixels = NDArray[np.uint8]

DEFAULT_MAX_PIXELS = 50_000_000
MAX_RLE_PIXELS = 4_000_000  # Pillow reads run-length encoded BMPs in Python: 49 million pixels of 28 kB took 5 s
MAX_SCANS = 100  # a progressive JPEG has about 10; each costs a pass over all pixels, 45 ms for 100 bytes at 49 million
DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow reads what surrounds the pixels in Python: 32 MB of JPEG segments of 4 bytes took it 19 s.
MAX_READS = 50_000  # and one for each 512 bytes
MAX_EXIFS = 64  # blocks of one JPEG, which are joined one by one
MAX_NUMBERS_BYTES = 2**19  # of a TIFF's tag: each strip or tile becomes several Python objects
PngImagePlugin.MAX_TEXT_MEMORY = 2**23
NO_RANGE_MODES = {
    "I": "32-bit pixels have no stated range",
    "F": "32-bit pixels have no stated range",
    "LAB": "CIELAB is not read",
}

# Pillow warns of damaged metadata. The pixels are good or `decode` raises, so the warning would only be noise in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")
# One image, one thread: the engine's threads already fill the cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class _Pieces(io.BytesIO):
    """A file that can be asked for so many pieces only."""

    left = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it is cut into too many pieces, save it anew")
        return super().read(size)


class _TiffImageFile(TiffImagePlugin.TiffImageFile):
    def _setup(self) -> None:
        numbers = (self.tag_v2._tagdata.get(tag, b"") for tag in (258, 273, 320, 324, 338, 339))
        tile = float(self.tag_v2.get(322, 0)) * float(self.tag_v2.get(323, 0))
        if max(map(len, numbers)) > MAX_NUMBERS_BYTES or tile > (Image.MAX_IMAGE_PIXELS or 0):
            raise ValueError("its strips or tiles are too many or too large, save it anew")
        super()._setup()


_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # reads the first picture of an MPO too
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": _TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
FORMATS = tuple(_READERS)
# A marker that is neither stuffing, fill, restart nor another one without a length. Source: ITU-T T.81, table B.1.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# An 8-bit grey or RGB picture, not interlaced, in one IDAT and nothing else. Source: PNG, third edition, 5.3 and 11.2.
_PLAIN_PNG = re.compile(
    rb"\x89PNG\r\n\x1a\n\0\0\0\x0d(IHDR(.{4})(.{4})\x08([\0\x02])\0\0\0)(.{4}).{4}(IDAT(.*))(.{4})\0\0\0\0IEND\xae\x42\x60\x82",
    re.DOTALL,
)
_PLAIN_PNG_BYTES = 2**16  # Pillow decodes in blocks of this size; one call with more would hold the interpreter for long
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What brings a PNG's transparent colour, which Pillow leaves in the file's bit depth, to the 8 bits of the pixels.
_COLOUR_KEY_SCALE = {"L;2": 85, "L;4": 17, "I;16B": 1 / 256, "RGB;16B": 1 / 256}


def sniff(data: bytes) -> str:
    """The image format of `data` by its first bytes, one of `FORMATS`.

    Raises: UnsupportedImageError for anything else.
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and any(brand in data[8:64] for brand in (b"avif", b"avis")):
        return "AVIF"
    raise UnsupportedImageError(f"the bytes are not an image of a type taken here: send {', '.join(FORMATS)}")


def decode(data: bytes, spec: InputSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes an encoded image, upright, in mode L (`spec.channels` 1) or RGB (3).

    JPEGs are reduced while decoding as `spec.decode_oversampling` allows; of an animation the first frame is taken;
    transparent pixels show `spec.background`. `max_pixels` is checked against the header, before pixels are decoded.

    Raises: UnsupportedImageError, UndecodableImageError, TooLargeError.
    """
    # Pillow's limit as well, since its GIF and WebP readers make room for the canvas before it can be checked here.
    Image.MAX_IMAGE_PIXELS = max_pixels
    if (plain := _decode_plain_png(data, max_pixels)) is not None:
        return _to_mode(plain, spec)
    name = sniff(data)
    try:
        pieces = _Pieces(data)
        pieces.left = MAX_READS + len(data) // 512
        if name == "JPEG" and data.count(b"Exif\0\0") > MAX_EXIFS:
            raise ValueError(f"it has more than {MAX_EXIFS} EXIF blocks, save it anew")
        image = _READERS[name](pieces)
        _check_cost(image, data, max_pixels)
        _reduce_while_decoding(image, spec)
        _scale_colour_key(image)
        image.load()
        return _to_mode(_upright(image), spec)
    except ConvServeError:
        raise
    except MemoryError as error:
        raise OverloadedError("there is no memory left to decode the image", retry_after_seconds=1) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(f"the image has more than the {max_pixels:,} pixels that are taken: send a smaller one") from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        reason = str(error) or type(error).__name__
        raise UndecodableImageError(f"the {name} image is damaged or truncated: {reason}") from error


def fit(image: Image.Image, spec: InputSpec) -> Pixels:
    """Brings a decoded image (mode L or RGB) to the model's size by the model's own rule.

    Returns uint8 `(height, width, channels)`.
    """
    return fit_and_locate(image, spec)[0]


def fit_and_locate(image: Image.Image, spec: InputSpec) -> tuple[Pixels, Box]:
    """As `fit`, with where in the image the model looks, in shares of its sides; where it is padded, beyond 0 and 1."""
    box = WHOLE
    if spec.polarity == "light_on_dark":
        image = light_on_dark(image)
    if image.size != (spec.width, spec.height):
        image, box = _resize(image, spec)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(spec.shape), box


def fit_at_once(data: bytes, spec: InputSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels | None:
    """As `decode` and `fit`, for plain PNGs that have the model's size: microseconds. None for all others."""
    plain = _decode_plain_png(data, min(max_pixels, spec.height * spec.width))
    return fit(_to_mode(plain, spec), spec) if plain is not None and plain.size == (spec.width, spec.height) else None


def _decode_plain_png(data: bytes, max_pixels: int) -> Image.Image | None:
    """Spares small plain PNGs Pillow's reader: 15 instead of 44 µs for 28 × 28 pixels (Zen 3, 2026-11).

    None for all others, also for damaged ones: the reader says what is wrong with them.
    """
    found = _PLAIN_PNG.fullmatch(data) if len(data) <= _PLAIN_PNG_BYTES else None
    if found is None:
        return None
    header, width, height, colour, header_check, body, pixels, check = found.groups()
    size = int.from_bytes(width), int.from_bytes(height)
    whole = int.from_bytes(data[33:37]) == len(pixels)
    if not whole or not 0 < size[0] * size[1] <= max_pixels:
        return None
    if zlib.crc32(header) != int.from_bytes(header_check) or zlib.crc32(body) != int.from_bytes(check):
        return None
    mode = "RGB" if colour == b"\x02" else "L"
    try:
        return Image.frombytes(mode, size, pixels, "zip", mode)
    except ValueError:
        return None


def _check_cost(image: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
    """Refuses, by the header, what would take too much memory or time to decode."""
    if any(tile.codec_name == "bmp_rle" for tile in image.tile):
        max_pixels = min(max_pixels, MAX_RLE_PIXELS)
    if image.width * image.height > max_pixels:
        raise TooLargeError(
            f"the image is {image.width} × {image.height} pixels and at most {max_pixels:,} are taken: send a smaller one"
        )
    if "progressive" in image.info and _has_too_many_scans(data):
        raise UndecodableImageError(f"the JPEG image has more than {MAX_SCANS} scans: save it anew")


def _has_too_many_scans(data: bytes) -> bool:
    scans, position = 0, 2
    for _ in range(10 * MAX_SCANS):  # segments of any kind
        marker = _JPEG_MARKER.search(data, position)
        if marker is None or marker[1] == b"\xd9":  # end of image
            return False
        scans += marker[1] == b"\xda"  # start of scan
        if scans > MAX_SCANS:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return True


def _reduce_while_decoding(image: ImageFile.ImageFile, spec: InputSpec) -> None:
    """Lets libjpeg decode at 1/2, 1/4 or 1/8 scale, and only the luma for grey models. Other formats ignore it."""
    side = math.ceil(spec.decode_side)
    image.draft("L" if spec.channels == 1 else "RGB", (side, side))


def _scale_colour_key(image: ImageFile.ImageFile) -> None:
    key, depth = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if image.format == "PNG" and key is not None and isinstance(depth, str) and depth in _COLOUR_KEY_SCALE:
        scale = _COLOUR_KEY_SCALE[depth]
        image.info["transparency"] = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF: the pixels are good, their orientation is unknown
        return image
    return image if turn is None else image.transpose(turn)


def _to_mode(image: Image.Image, spec: InputSpec) -> Image.Image:
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode in NO_RANGE_MODES:
        raise UndecodableImageError(f"{NO_RANGE_MODES[image.mode]}: convert the image to 8 or 16 bits per channel, grey or RGB")
    if image.mode in DEEP_GREY_MODES:
        key = image.info.get("transparency")
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        image.info |= {} if key is None else {"transparency": key}
    if image.has_transparency_data:
        image = _flatten(image, spec.background)
    return image if image.mode == mode else image.convert(mode)


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _resize(image: Image.Image, spec: InputSpec) -> tuple[Image.Image, Box]:
    size = (spec.width, spec.height)
    resample = Image.Resampling[spec.filter.upper()]
    if spec.resize == "ink":
        return frame_ink(image, *size, resample)
    if spec.resize == "pad":
        return _pad(image, spec, resample)
    if spec.resize == "crop":
        box = _centred_box(image, spec)
        return image.resize(size, resample, box=box), locate_frame(size, size, (0, 0), box, image.size)
    return image.resize(size, resample), WHOLE


def _pad(image: Image.Image, spec: InputSpec, resample: Image.Resampling) -> tuple[Image.Image, Box]:
    scale = min(spec.width / image.width, spec.height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    padded = Image.new(image.mode, (spec.width, spec.height), _background(spec))
    corner = (round((spec.width - size[0]) / 2), round((spec.height - size[1]) / 2))
    padded.paste(image.resize(size, resample), corner)
    return padded, locate_frame(padded.size, size, corner, (0, 0, *image.size), image.size)


def _background(spec: InputSpec) -> int | tuple[int, int, int]:
    """The background in the model's mode; grey by ITU-R 601, rounded as Pillow converts."""
    red, green, blue = spec.background
    return spec.background if spec.channels == 3 else (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _centred_box(image: Image.Image, spec: InputSpec) -> Box:
    """The largest centred box of the target's shape, times `crop_fraction`, in source pixels."""
    scale = min(image.width / spec.width, image.height / spec.height) * spec.crop_fraction
    width, height = spec.width * scale, spec.height * scale
    # Rounding of floats must not put the box outside the image by a billionth of a pixel: Pillow refuses that.
    left, top = max(0.0, (image.width - width) / 2), max(0.0, (image.height - height) / 2)
    return left, top, min(left + width, image.width), min(top + height, image.height)
