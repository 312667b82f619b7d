"""A request's body to encoded images, within bounds of bytes and time; nothing here decodes an image.

`POST /predict` takes the image raw, as a multipart field `file`, or as JSON `{"image": base64}`; the content type says which.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from app.errors import BodyTimeoutError, MalformedRequestError, OverloadedError, TooLargeError, UnsupportedImageError

_HELD = "held_bytes"  # in a request's state
# What `curl --data-binary` sends when told nothing, beside what it should send.
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded", "binary/octet-stream")


@dataclass(slots=True)
class HeldBodies:
    """All bodies that are being read or wait for their answer; together they stay within `max_bytes`."""

    max_bytes: int
    estimated_wait_seconds: Callable[[], float] = lambda: 1.0
    bytes: int = 0

    def hold(self, scope: Scope, size: int) -> None:
        """Counts `size` more bytes for a request. Raises: OverloadedError when they are too many."""
        if self.bytes + size > self.max_bytes:
            detail = f"{self.bytes:,} bytes of other requests are held already"
            raise OverloadedError(detail, retry_after_seconds=self.estimated_wait_seconds())
        self.bytes += size
        scope["state"][_HELD] = scope["state"].get(_HELD, 0) + size

    def release(self, scope: Scope) -> None:
        """Gives back what a request held."""
        self.bytes -= scope["state"].pop(_HELD, 0)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much and how slow a body may be."""

    max_bytes: int
    timeout_seconds: float
    max_images: int
    held: HeldBodies = field(default_factory=lambda: HeldBodies(2**28))


class _InMemoryMultiPartParser(MultiPartParser):
    """Starlette's parser, without temporary files: the body is bounded and in memory already."""

    spool_max_size = 2**62


async def read_image(request: Request, limits: BodyLimits) -> bytes:
    """The one encoded image of a `/predict` request, by its content type.

    Raises: MalformedRequestError, TooLargeError, UnsupportedImageError, BodyTimeoutError, ClientDisconnect.
    """
    content_type = _content_type(request)
    if content_type == "multipart/form-data":
        images = await read_images(request, limits, field="file")
        if len(images) != 1:
            raise MalformedRequestError(f"/predict takes one file and got {len(images)}: send many to /predict/batch")
        return images[0]
    if content_type == "application/json":
        return _image_of_json(await read_body(request, limits))
    if is_raw(content_type):
        return await read_body(request, limits)
    raise UnsupportedImageError(
        f"content type {content_type} is not taken: send image/*, application/octet-stream, "
        "multipart/form-data or application/json"
    )


async def read_images(request: Request, limits: BodyLimits, *, field: str) -> list[bytes]:
    """The encoded images of a multipart form's fields named `field`, in order; at least one.

    Raises: MalformedRequestError, TooLargeError, UnsupportedImageError, BodyTimeoutError, ClientDisconnect.
    """
    if _content_type(request) != "multipart/form-data":
        raise UnsupportedImageError(f"send the images as multipart/form-data, each in a field named {field}")
    body = await read_body(request, limits)
    parser = _InMemoryMultiPartParser(request.headers, _once(body), max_files=limits.max_images, max_fields=limits.max_images)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise TooLargeError(f"at most {limits.max_images} images are taken in one request") from error
        raise MalformedRequestError(f"the multipart body is broken: {error.message}") from error
    images = [await part.read() for part in form.getlist(field) if isinstance(part, UploadFile)]
    if not images:
        raise MalformedRequestError(f"the form has no file in a field named {field}")
    return images


def is_raw(content_type: str) -> bool:
    """The body is the encoded image itself."""
    return content_type in _RAW_TYPES or content_type.startswith("image/")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limits: BodyLimits, *, may_be_empty: bool = False) -> bytes:
    """Collects the body and stops at the first byte too many. Raises also for an empty one."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedImageError("a compressed request body is not taken: send the image file as it is")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size > limits.max_bytes:
                    raise _too_large(limits)
                limits.held.hold(request.scope, len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {limits.timeout_seconds:g} s") from error
    if not size and not may_be_empty:
        raise MalformedRequestError("the body is empty: send an image file, for example curl --data-binary @image.jpg")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limits: BodyLimits) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limits.max_bytes:,} bytes: send a smaller image")


def _image_of_json(body: bytes) -> bytes:
    # A list of empty lists takes many times its bytes; this JSON has no commas to speak of.
    with suppress(orjson.JSONDecodeError):
        match orjson.loads(body if body.count(b",") < 10 else b""):
            case {"image": str(text), **others} if not others:
                return decode_base64(text)
    raise MalformedRequestError('the JSON must be {"image": "<base64 of the image file>"}')


def decode_base64(text: str) -> bytes:
    """The encoded image of a base64 text or a data: URL. Raises: MalformedRequestError."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        image = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequestError(f"the image is not base64: {error}") from error
    if not image:
        raise MalformedRequestError("the image is empty")
    return image


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
