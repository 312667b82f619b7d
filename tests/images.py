"""Real image files for the tests: written by Pillow where it can, byte by byte where it cannot."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.uint8]


def _picture() -> Array:
    """48 × 32 pixels of four colours: no two of its turns, mirror images or channel orders are alike."""
    picture = np.empty((32, 48, 3), np.uint8)
    picture[:16, :24], picture[:16, 24:] = (200, 40, 30), (30, 180, 60)
    picture[16:, :24], picture[16:, 24:] = (40, 60, 190), (230, 220, 210)
    return picture


PICTURE = _picture()
GREY_PICTURE = np.asarray(Image.fromarray(PICTURE).convert("L"))


def encode(pixels: Array | Image.Image, format_name: str, **options: object) -> bytes:
    """The file that Pillow writes of an array or image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def fine_jpeg(pixels: Array | Image.Image, **options: object) -> bytes:
    """A JPEG with little loss."""
    return encode(pixels, "JPEG", quality=95, subsampling=0, **options)


def fine_avif(pixels: Array | Image.Image, **options: object) -> bytes:
    """An AVIF with little loss."""
    return encode(pixels, "AVIF", quality=95, subsampling="4:4:4", speed=10, **options)


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def raw_png(width: int, height: int, depth: int, colour_type: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG of unfiltered rows, with `chunks` between header and pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def raw_tiff(tags: dict[int, int], pixels: bytes, *, order: str = "<", extra: bytes = b"") -> bytes:
    """A TIFF of one strip. `tags` are of type LONG; `extra` is one more directory entry of 12 bytes."""
    count = len(tags) + 2 + bool(extra)
    offset = 8 + 2 + 12 * count + 4
    entries = sorted((tags | {273: offset, 279: len(pixels)}).items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, count)
    directory = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    return head + directory + extra + struct.pack(order + "I", 0) + pixels


def grey_tiff(values: NDArray[np.uint16], order: str) -> bytes:
    """A 16-bit grey TIFF in either byte order."""
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 277: 1, 278: height}
    return raw_tiff(tags, values.astype(order + "u2").tobytes(), order=order)


def raw_bmp(width: int, height: int, depth: int, pixels: bytes, *, compression: int = 0, palette: bytes = b"") -> bytes:
    """A BMP; compression 1 and 2 are run lengths of 8 and 4 bits."""
    offset = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + palette + pixels


def bombs() -> dict[str, bytes]:
    """Small files of every format whose headers claim at least 10,000 × 10,000 pixels."""
    huge = 50_000
    tags = {256: huge, 257: huge, 258: 8, 259: 1, 262: 1, 277: 1, 278: huge}
    lossy = bytearray(encode(PICTURE, "WEBP"))
    lossy[26:30] = struct.pack("<HH", 16_383, 16_383)
    lossless = bytearray(encode(PICTURE, "WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 16_383 | 16_383 << 14)
    extended = bytearray(encode(PICTURE, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"))
    extended[24:30] = struct.pack("<I", huge - 1)[:3] * 2
    jpeg = fine_jpeg(PICTURE)
    size = jpeg.index(b"\xff\xc0") + 5
    avif = fine_avif(PICTURE)
    canvas = struct.pack(">II", 48, 32)
    graphic_control = b"!\xf9\x04" + bytes([2 << 2, 0, 0, 0, 0])  # "restore to background": Pillow fills a canvas for it
    gif_head = b"GIF89a" + struct.pack("<HHBBB", huge, huge, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + graphic_control
    return {
        "png": raw_png(huge, huge, 8, 2, [bytes(huge * 3)] * 2),
        "apng": raw_png(huge, huge, 8, 2, [bytes(huge * 3)] * 2, chunk(b"acTL", struct.pack(">II", 2, 0))),
        "gif": gif_head + b"," + struct.pack("<HHHHB", 0, 0, huge, huge, 0) + b"\x02\x02\x44\x01\0;",
        "webp-lossy": bytes(lossy),
        "webp-lossless": bytes(lossless),
        "webp-extended": bytes(extended),
        "tiff": raw_tiff(tags, bytes(1000)),
        "tiff-deflate": raw_tiff(tags | {259: 8}, zlib.compress(bytes(1_000_000))),
        "bmp": raw_bmp(huge, huge, 24, bytes(1000)),
        "bmp-top-down": raw_bmp(huge, -huge, 24, bytes(1000)),
        "jpeg": jpeg[:size] + struct.pack(">HH", huge, huge) + jpeg[size + 4 :],
        "avif": avif.replace(canvas, struct.pack(">II", 16_000, 16_000)),
    }
