"""What is fuzzed: every reader of bytes that strangers send, and of what a model file says of itself.

Each target takes any bytes and returns, or raises what it must never raise.
"""

import asyncio
import re
import struct
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from starlette.requests import Request

from app.body import BodyLimits, read_image, read_images
from app.errors import ConvServeError, ModelError
from app.image import FORMATS, decode, fit
from app.spec import SPEC_KEY, InputSpec, ModelSpec
from app.tensors import images_of, outputs_of, read_request
from tests.images import PICTURE, bombs, chunk, encode, fine_jpeg, raw_bmp, raw_png, raw_tiff

MAX_PIXELS = 100_000
MAX_SECONDS = 5.0  # for one input, of processor time: a bound of "hang", not of speed
SPECS = (
    InputSpec(height=8, width=8, channels=3),
    InputSpec(height=28, width=28, channels=1, resize="ink", polarity="light_on_dark"),
    InputSpec(height=16, width=16, channels=3, resize="crop", crop_fraction=0.875),
    InputSpec(height=16, width=9, channels=1, resize="pad"),
)
CONTENT_TYPES = ("multipart/form-data; boundary=cut", "application/json", "image/png", "multipart/form-data")
# What an answer must not tell: where things lie in memory or on disk.
_LEAK = re.compile(r"0x[0-9a-f]{6}|Traceback|site-packages|\.py\b")


def image(data: bytes) -> None:
    """The first byte chooses the model's rule, the rest is the file."""
    spec = SPECS[data[0] % len(SPECS)] if data else SPECS[0]
    with _Expected():
        assert fit(decode(data[1:], spec, max_pixels=MAX_PIXELS), spec).shape == spec.shape


def body(data: bytes) -> None:
    """The first byte chooses the content type, the rest is the body."""
    content_type = CONTENT_TYPES[data[0] % len(CONTENT_TYPES)] if data else ""
    scope = {"type": "http", "headers": [(b"content-type", content_type.encode())], "state": {}}

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": data[1:], "more_body": False}

    limits = BodyLimits(max_bytes=2**20, timeout_seconds=60, max_images=8)
    for read in (read_image, lambda request, limits: read_images(request, limits, field="files")):
        with _Expected():
            assert _runner().run(read(Request(scope, receive), limits))


def tensors(data: bytes) -> None:
    """The first two bytes say how long the JSON is (0: all of it), the rest is the body."""
    size = int.from_bytes(data[:2], "little") or None
    with _Expected():
        asked, binary = read_request(data[2:], size, max_lists=1000)
        images = images_of(asked.inputs[0], binary, SPECS[0], max_images=8)
        assert 1 <= len(images) <= 8
        rows = np.full((len(images), 3), 1 / 3, np.float32)
        assert outputs_of(asked, rows, ("a", "b", "c"))


def spec(data: bytes) -> None:
    """What a model file says of itself, and its goldens."""
    with _Expected(ModelError):
        found = ModelSpec.from_metadata({SPEC_KEY: data.decode("utf-8", "replace")})
        for golden in found.goldens:
            try:
                encoded = golden.data
            except ValueError:  # no base64: Classifier.load says so
                continue
            decode(encoded, found.input, max_pixels=MAX_PIXELS)


TARGETS: dict[str, Callable[[bytes], None]] = {"image": image, "body": body, "tensors": tensors, "spec": spec}


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


class _Expected:
    """Lets the errors pass that a client is told of, and holds their sentence and the time against what is promised."""

    def __init__(self, *more: type[Exception]) -> None:
        self._allowed = more

    def __enter__(self) -> None:
        self._begun = time.thread_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        seconds = time.thread_time() - self._begun
        assert seconds < MAX_SECONDS, f"took {seconds:.1f} s"
        if isinstance(error, ConvServeError) and (error.status != 500 or isinstance(error, self._allowed)):
            assert isinstance(error, ModelError) or not _LEAK.search(str(error)), str(error)  # that names the file's own keys
            assert str(error).strip()
            return True
        return False


def seeds(target: str) -> list[bytes]:
    """Sound inputs, from which the fuzzer starts."""
    return list({"image": _images, "body": _bodies, "tensors": _tensors, "spec": _specs}[target]())


def _images() -> Iterator[bytes]:
    grey, palette = PICTURE[:, :, 0], Image.fromarray(PICTURE).quantize(16)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + bytes(4)
    files = [
        fine_jpeg(PICTURE, exif=exif),
        fine_jpeg(PICTURE, progressive=True, restart_marker_blocks=2),
        encode(palette.convert("CMYK"), "JPEG"),
        encode(PICTURE, "PNG", exif=exif),
        encode(palette, "PNG", transparency=b"\0\x80"),
        raw_png(8, 8, 16, 6, [bytes(range(64))] * 8, chunk(b"iCCP", b"k\0\0abc"), chunk(b"zTXt", b"k\0\0abc")),
        raw_png(48, 32, 1, 0, [bytes(6)] * 32, chunk(b"tRNS", b"\0\1"), chunk(b"acTL", struct.pack(">II", 2, 0))),
        encode(PICTURE, "WEBP", lossless=True, exif=exif),
        encode(PICTURE, "WEBP", xmp=b"<x/>", icc_profile=bytes(128)),
        encode(palette, "WEBP", save_all=True, append_images=[palette.rotate(90)]),
        encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)], transparency=1, disposal=2, comment=b"c"),
        encode(PICTURE, "GIF", interlace=1),
        encode(PICTURE, "BMP"),
        encode(palette, "BMP"),
        raw_bmp(4, 2, 8, b"\4\1\0\0\0\4abcd\0\1", compression=1, palette=bytes(range(256)) * 4),
        encode(PICTURE, "AVIF", speed=10, exif=exif),
        encode(palette.convert("RGBA"), "AVIF", speed=10),
        *[encode(PICTURE, "TIFF", compression=one) for one in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
        encode(grey, "TIFF", big_tiff=True),
        encode(palette.convert("1"), "TIFF", compression="group4"),
        encode(palette.convert("CMYK"), "TIFF"),
        raw_tiff({256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}, bytes(64), order=">"),
        *bombs().values(),
    ]
    assert len(FORMATS) == 7
    yield from (bytes([number % len(SPECS)]) + one for number, one in enumerate(files))


def _bodies() -> Iterator[bytes]:
    png = encode(PICTURE[:4, :4], "PNG")
    part = b'--cut\r\nContent-Disposition: form-data; name="%b"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n%b\r\n'
    star = b"--cut\r\nContent-Disposition: form-data; name=\"file\"; filename*=UTF-8''%e2%82%ac.png\r\n\r\nabc\r\n"
    for number in range(len(CONTENT_TYPES)):
        yield bytes([number]) + part % (b"file", png) + b"--cut--\r\n"
        yield bytes([number]) + part % (b"files", png) + part % (b"files", png) + star + b"--cut--\r\n"
        yield bytes([number]) + b'{"image": "data:image/png;base64,aGVsbG8="}'


def _tensors() -> Iterator[bytes]:
    head = b'{"id":"1","parameters":{"timeout":5},"inputs":[{"name":"images","datatype":"%b","shape":%b,%b}],"outputs":'
    outputs = b'[{"name":"probabilities","parameters":{"classification":2,"binary_data":true}}]}'
    whole = head % (b"BYTES", b"[2]", b'"data":["aGVsbG8=","aGVsbG8="]') + outputs
    yield b"\0\0" + whole
    yield b"\0\0" + head % (b"UINT8", b"[1,8,8,3]", b'"data":[' + b"7," * 191 + b"7]") + outputs
    yield b"\0\0" + head % (b"UINT8", b"[1,8,8,3]", b'"data":[' + b"[[" * 3 + b"7" + b"]]" * 3 + b"]") + outputs
    for kind, shape, raw in ((b"BYTES", b"[2]", b"\5\0\0\0hello" * 2), (b"UINT8", b"[1,8,8,3]", bytes(192))):
        json = head % (kind, shape, b'"parameters":{"binary_data_size":%d}' % len(raw)) + outputs
        yield len(json).to_bytes(2, "little") + json + raw


def _specs() -> Iterator[bytes]:
    for path in sorted((Path(__file__).parents[2] / "models").glob("*.onnx")):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = ModelSpec.from_metadata(session.get_modelmeta().custom_metadata_map)
        yield found.model_copy(update={"labels": found.labels[:3], "goldens": found.goldens[:1]}).model_dump_json().encode()
