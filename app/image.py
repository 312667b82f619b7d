"""Bytes to pixels: the only place that decodes or resizes, for serving and for training alike.

    bytes ──decode──▶ Image (L or RGB, upright) ──fit──▶ Pixels, uint8 (height, width, channels)

`decode` raises UnsupportedImageError (415), UndecodableImageError (422) or TooLargeError (413); `fit` never fails.
The type is found from the content, never from what the client calls it. Colour profiles are not applied: sRGB is assumed.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from app.errors import ConvServeError, TooLargeError, UndecodableImageError, UnsupportedImageError
from app.ink import frame_ink, light_on_dark
from app.spec import InputSpec

Pixels = NDArray[np.uint8]

DEFAULT_MAX_PIXELS = 50_000_000
DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# The limit of `decode` replaces Pillow's, which is a warning at half its value and known only to the process.
Image.MAX_IMAGE_PIXELS = None
# One image, one thread: the engine's threads already fill the cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_FACTORIES = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
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
FORMATS = tuple(_FACTORIES)


def sniff(data: bytes) -> str:
    """The image format of `data` by its first bytes, one of `FORMATS`.

    Raises: UnsupportedImageError for anything else.
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "AVIF"
    raise UnsupportedImageError(f"the bytes are not an image of a type taken here: send {', '.join(FORMATS)}")


def decode(data: bytes, spec: InputSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes an encoded image, upright, in mode L (`spec.channels` 1) or RGB (3).

    JPEGs are reduced while decoding as `spec.decode_oversampling` allows; of an animation the first frame is taken;
    transparent pixels show `spec.background`. `max_pixels` is checked against the header, before pixels are decoded.

    Raises: UnsupportedImageError, UndecodableImageError, TooLargeError.
    """
    name = sniff(data)
    try:
        image: Image.Image = _FACTORIES[name](io.BytesIO(data))
        _check_size(image, max_pixels)
        _reduce_while_decoding(image, spec)
        image.load()
        return _to_mode(_upright(image), spec)
    except ConvServeError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        raise UndecodableImageError(f"the {name} image is damaged or truncated: {error}") from error


def fit(image: Image.Image, spec: InputSpec) -> Pixels:
    """Brings a decoded image (mode L or RGB) to the model's size by the model's own rule.

    Returns uint8 `(height, width, channels)`.
    """
    if spec.polarity == "light_on_dark":
        image = light_on_dark(image)
    if image.size != (spec.width, spec.height):
        image = _resize(image, spec)
    return np.asarray(image).reshape(spec.shape)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise TooLargeError(
            f"the image is {image.width} × {image.height} pixels and at most {max_pixels:,} are taken: send a smaller one"
        )


def _reduce_while_decoding(image: Image.Image, spec: InputSpec) -> None:
    """Lets libjpeg decode at 1/2, 1/4 or 1/8 scale, and only the luma for grey models. Other formats ignore it."""
    side = math.ceil(spec.decode_side)
    image.draft("L" if spec.channels == 1 else "RGB", (side, side))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are good, their orientation is unknown
        return image


def _to_mode(image: Image.Image, spec: InputSpec) -> Image.Image:
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in DEEP_GREY_MODES:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UndecodableImageError("32-bit pixels have no stated range: convert the image to 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = _flatten(image, spec.background)
    return image.convert(mode)


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _resize(image: Image.Image, spec: InputSpec) -> Image.Image:
    size = (spec.width, spec.height)
    resample = Image.Resampling[spec.filter.upper()]
    if spec.resize == "ink":
        return frame_ink(image, *size, resample)
    if spec.resize == "pad":
        return ImageOps.pad(image, size, resample, color=_background(spec))
    if spec.resize == "crop":
        return image.resize(size, resample, box=_centred_box(image, spec))
    return image.resize(size, resample)


def _background(spec: InputSpec) -> int | tuple[int, int, int]:
    """The background in the model's mode; grey by ITU-R 601, as Pillow converts."""
    red, green, blue = spec.background
    return spec.background if spec.channels == 3 else (red * 299 + green * 587 + blue * 114) // 1000


def _centred_box(image: Image.Image, spec: InputSpec) -> tuple[float, float, float, float]:
    """The largest centred box of the target's shape, times `crop_fraction`, in source pixels."""
    scale = min(image.width / spec.width, image.height / spec.height) * spec.crop_fraction
    width, height = spec.width * scale, spec.height * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return left, top, left + width, top + height
