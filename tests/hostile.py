"""Files made to cost their reader the most: many pixels, many pieces, long ways; each as small or large as asked for."""

import io
import struct
import zlib
from itertools import cycle, islice

import numpy as np
from PIL import Image

from tests.images import PICTURE, chunk, encode, fine_jpeg, raw_bmp, raw_png, raw_tiff


def largest_images(pixels: int) -> dict[str, bytes]:
    """Images of `pixels` pixels in the kind of each format that takes the most memory; too narrow to be reduced."""
    width = 400
    height = pixels // width
    levels = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
    clear = Image.fromarray(np.stack([levels, levels.T.reshape(levels.shape), levels + 7, levels], axis=2), "RGBA")
    ink = Image.merge("CMYK", clear.split())
    palette = Image.fromarray(levels).convert("P")
    tags = {256: width, 257: height, 258: 16, 259: 8, 262: 1, 277: 1, 278: height}
    deep = levels.astype("<u2") * 257
    return {
        "jpeg-cmyk": encode(ink, "JPEG", subsampling=0),
        "jpeg-cmyk-progressive": encode(ink, "JPEG", subsampling=0, progressive=True),
        "jpeg-rgb-progressive": encode(clear.convert("RGB"), "JPEG", subsampling=0, progressive=True),
        "png-rgba": encode(clear, "PNG"),
        "png-rgba-16-interlaced": interlaced_png(width, height),
        "png-palette-clear": encode(palette, "PNG", transparency=bytes(range(256))),
        "png-grey-16": encode(Image.fromarray(deep), "PNG"),
        "webp-lossless": encode(clear, "WEBP", lossless=True, method=0),
        "webp-lossy": encode(clear, "WEBP", method=0),
        "webp-animated": encode(
            clear, "WEBP", save_all=True, append_images=[clear.transpose(Image.Transpose.ROTATE_180)], method=0
        ),
        "gif-clear": encode(palette, "GIF", transparency=3, disposal=2),
        "bmp-rgba": encode(clear, "BMP"),
        "tiff-rgba": encode(clear, "TIFF", compression="tiff_lzw"),
        "tiff-cmyk": encode(ink, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-one-strip": raw_tiff(tags, zlib.compress(deep.tobytes(), 1)),
        "tiff-jpeg": encode(clear.convert("RGB"), "TIFF", compression="jpeg"),
        "avif-rgba": encode(clear, "AVIF", subsampling="4:4:4", speed=10),
    }


def interlaced_png(width: int, height: int) -> bytes:
    """16-bit RGBA in Adam7's seven passes."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x, y, across, down in passes:
        columns, lines = len(range(x, width, across)), len(range(y, height, down))
        rows += (b"\0" + bytes(islice(cycle(range(256)), columns * 8))) * lines if columns else b""
    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def files_in_pieces(size: int) -> dict[str, bytes]:
    """Files of about `size` bytes that hold one small picture among as many pieces as the format allows."""
    jpeg = fine_jpeg(PICTURE)
    grey = [bytes([7]) * 8] * 8
    png = raw_png(8, 8, 8, 0, grey)
    text = b"".join(chunk(b"tEXt", b"k%d\0v" % number) for number in range(size // 20))
    pixels = zlib.compress(b"".join(b"\0" + row for row in grey), 0)
    stored = b"".join(chunk(b"IDAT", bytes([one])) for one in pixels) + chunk(b"IDAT", b"") * (size // 12)
    gif = encode(Image.new("L", (8, 8), 7), "GIF")
    gif_head = 13 + 3 * 2 ** ((gif[10] & 7) + 1) if gif[10] & 128 else 13
    strips = {256: 8, 257: size // 4, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    exif = b"\xff\xe1\xff\xffExif\0\0" + bytes(65533 - 6)
    return {
        "jpeg-segments": jpeg[:2] + b"\xff\xe0\0\2" * (size // 4) + jpeg[2:],
        "jpeg-comments": jpeg[:2] + b"\xff\xfe\0\2" * (size // 4) + jpeg[2:],
        "jpeg-junk": jpeg[:2] + b"\xff\xe0\0\2" + bytes(size) + jpeg[2:],
        "jpeg-fill": jpeg[:2] + b"\xff" * size + jpeg[2:],
        "jpeg-exif": jpeg[:2] + exif * (size // 2**17) + b"\xff\xe1\0\x09Exif\0\0\0" * (size // 22) + jpeg[2:],
        "png-chunks": png[:33] + chunk(b"aaAa", b"") * (size // 12) + png[33:],
        "png-chunks-behind": png[:-12] + chunk(b"aaAa", b"") * (size // 12) + png[-12:],
        "png-texts": png[:33] + text + png[33:],
        "png-idats": png[:33] + stored + png[-12:],
        "gif-comment": gif[:gif_head] + b"!\xfe" + b"\1a" * (size // 2) + b"\0" + gif[gif_head:],
        "gif-comments": gif[:gif_head] + b"!\xfe\1a\0" * (size // 5) + gif[gif_head:],
        "gif-junk": gif[:gif_head] + bytes(size) + gif[gif_head:],
        "tiff-strips": many_strips(strips, size // 4),
        "tiff-directories": many_directories(size // 18),
        "bigtiff-entries": big_directory(size // 20),
    }


def many_strips(tags: dict[int, int], count: int) -> bytes:
    """A TIFF of `count` strips, all at the same place."""
    places = struct.pack("<I", 8) * count
    data = raw_tiff(tags, places)
    entry = struct.pack("<HHII", 273, 4, 1, 8 + 2 + 12 * 9 + 4)
    assert data.count(entry) == 1
    return data.replace(entry, struct.pack("<HHII", 273, 4, count, 8 + 2 + 12 * 9 + 4))


def many_directories(count: int) -> bytes:
    """A TIFF of one picture and a chain of `count` more directories."""
    data = raw_tiff({256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 8}, bytes([7]) * 64)
    end = 8 + 2 + 12 * 9
    entry = struct.pack("<HHHII", 1, 256, 4, 1, 8)
    chain = b"".join(entry + struct.pack("<I", len(data) + 18 * (number + 1)) for number in range(count))
    return data[:end] + struct.pack("<I", len(data)) + data[end + 4 :] + chain


def big_directory(count: int) -> bytes:
    """A BigTIFF of one picture whose directory has `count` entries more."""
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 8, 279: 64}
    offset = 16 + 8 + 20 * (9 + count) + 8
    known = sorted((entries | {273: offset}).items())
    rows = b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in known)
    more = b"".join(struct.pack("<HHQQ", 1000 + number % 60000, 4, 1, 0) for number in range(count))
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 9 + count) + rows + more + bytes(8) + bytes([7]) * 64


def polyglots() -> dict[str, bytes]:
    """One red picture that is something else too."""
    red = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(red, "PNG")
    png, jpeg = red.getvalue(), fine_jpeg(Image.new("RGB", (8, 8), (255, 0, 0)))
    script = b"<html><script>alert(1)</script><?php system('id'); ?>"
    return {
        "png-zip": png + b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18),
        "png-html": png[:33] + chunk(b"tEXt", b"Comment\0" + script) + png[33:],
        "jpeg-html": jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(script) + 2) + script + jpeg[2:],
        "jpeg-pdf": jpeg + b"%PDF-1.7\n1 0 obj\n",
        "jpeg-png": jpeg + png,
    }


def odd_metadata() -> dict[str, bytes]:
    """One red picture each, with metadata that no reader should trust."""
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    huge = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x010E, 2, 2**32 - 1, 8) + bytes(4)
    long = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 0x010E, 2, 60000, 8) * 5000
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><!DOCTYPE a [<!ENTITY b "' + b"&a;" * 1000 + b'">]></x:xmpmeta>'
    files = {}
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        options: dict[str, object] = {"quality": 95} if kind != "PNG" else {}
        for name, block in {"loop": loop, "huge": huge, "long": long}.items():
            files[f"{kind.lower()}-exif-{name}"] = encode(red, kind, exif=block, **options)
        files[f"{kind.lower()}-icc"] = encode(red, kind, icc_profile=b"\xff" * 60_000, **options)
    for kind in ("JPEG", "WEBP", "AVIF"):
        files[f"{kind.lower()}-xmp"] = encode(red, kind, xmp=xmp * 15, quality=95)
    files["bmp-palette"] = raw_bmp(8, 8, 24, bytes([0, 0, 255]) * 64, palette=bytes(4) * 256)
    return files
