"""The tensors of the Open Inference Protocol V2: a request's body to images, probabilities to the outputs asked for.

    body ──read_request──▶ InferRequest, bytes behind the JSON ──images_of──▶ encoded images or pixels
    probabilities ──outputs_of──▶ JSON object and bytes that follow the JSON, for each output

Source: kserve/open-inference-protocol, `inference_rest.md`; Triton's `extension_binary_data.md`, `extension_classification.md`.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from app.body import decode_base64
from app.classifier import INPUT, OUTPUT, Probabilities, top_k
from app.engine import Source
from app.errors import MalformedRequestError, TooLargeError
from app.spec import InputSpec

TensorData = Annotated[Any, WithJsonSchema({"type": "array", "items": {}})]


class _Part(BaseModel):
    """Base of what is read: unknown keys are other servers' extensions, and ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Parameters(_Part):
    """Of a request, a tensor or an output; each is read where the protocol puts it."""

    binary_data_size: int | None = Field(default=None, ge=0, description="tensor: its bytes, which follow the JSON")
    binary_data: bool | None = Field(default=None, description="output: send it behind the JSON")
    classification: int | None = Field(default=None, ge=1, description='output: top classes as "probability:index:label"')
    binary_data_output: bool = Field(default=False, description="request: send every output behind the JSON")
    timeout: int = Field(default=0, ge=0, description="request: deadline in microseconds; 0 = the service's own")


class Tensor(_Part):
    """An input or output, described (-1 is the free size of a batch) or sent."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: TensorData = Field(default=None, description="flat or nested; BYTES in base64. Left out in the binary form")


class ImagesTensor(Tensor):
    """The one input."""

    name: Literal["images"]
    datatype: Literal["BYTES", "UINT8"] = Field(description="BYTES: encoded image files; UINT8: pixels of the model's own size")
    shape: list[int] = Field(description="BYTES: [n] or [n, 1]; UINT8: [n, height, width, channels]")


class RequestedOutput(_Part):
    """One output asked for."""

    name: Literal["probabilities"]
    parameters: Parameters | None = None


class InferRequest(_Part):
    """Body of `infer`, or the JSON part of it."""

    id: str | None = Field(default=None, description="comes back in the answer")
    parameters: Parameters | None = None
    inputs: list[ImagesTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = None

    def timeout_seconds(self, longest: float) -> float:
        """The request's own deadline, at most `longest`."""
        microseconds = self.parameters.timeout if self.parameters else 0
        return min(microseconds / 1e6, longest) if microseconds else longest


class InferAnswer(_Part):
    """Answer of `infer`, or the JSON part of it."""

    model_name: str
    model_version: str
    id: str
    outputs: list[Tensor]


def read_request(body: bytes, json_bytes: int | None, *, max_lists: int) -> tuple[InferRequest, memoryview]:
    """The JSON, which is the first `json_bytes` of the body (None: all of it), and the bytes behind it.

    Raises: MalformedRequestError.
    """
    size = len(body) if json_bytes is None else json_bytes
    if size > len(body):
        raise MalformedRequestError(f"Inference-Header-Content-Length is {size} and the body has only {len(body)} bytes")
    if body.count(b"[", 0, size) + body.count(b"{", 0, size) > max_lists:  # each takes 25 times its bytes
        raise MalformedRequestError("the JSON has more lists than images of the model's size: send pixels in the binary form")
    view = memoryview(body)
    try:
        return InferRequest.model_validate(orjson.loads(view[:size])), view[size:]
    except orjson.JSONDecodeError as error:
        raise MalformedRequestError(f"the JSON cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the JSON"
        raise MalformedRequestError(f"{where}: {first['msg']}") from error


def images_of(tensor: ImagesTensor, binary: memoryview, spec: InputSpec, *, max_images: int) -> list[Source]:
    """The images of a tensor: encoded (BYTES), or pixels that skip decoding and fitting (UINT8).

    Raises: MalformedRequestError, TooLargeError.
    """
    images, *rest = tensor.shape or [0]
    fitting = [list(spec.shape)] if tensor.datatype == "UINT8" else [[], [1]]
    if images < 1 or rest not in fitting:
        pixels = ", ".join(map(str, spec.shape))
        raise MalformedRequestError(f"the shape {tensor.shape} does not fit: send BYTES as [n], or UINT8 as [n, {pixels}]")
    if images > max_images:
        raise TooLargeError(f"at most {max_images} images are taken in one request")
    declared = tensor.parameters.binary_data_size if tensor.parameters else None
    if (declared or 0) != len(binary):
        raise MalformedRequestError(f"binary_data_size is {declared or 0}, but {len(binary)} bytes follow the JSON")
    if tensor.datatype == "UINT8":
        return list(_pixels(tensor.data if declared is None else binary, tensor.shape))
    encoded = _unpack(binary, at_most=images + 1) if declared is not None else _flatten(tensor.data)
    if len(encoded) != images:
        raise MalformedRequestError(f"the shape says {images} images and the data has {len(encoded)}")
    return [one if isinstance(one, bytes) else _decode(index, one) for index, one in enumerate(encoded)]


def outputs_of(asked: InferRequest, rows: Probabilities, labels: Sequence[str]) -> list[tuple[dict[str, Any], bytes]]:
    """Each output asked for (by default all): its JSON object, and its bytes, which are empty in the JSON form."""
    binary = asked.parameters is not None and asked.parameters.binary_data_output
    wanted = asked.outputs or [RequestedOutput(name="probabilities")]
    return [_output(one.parameters or Parameters(), rows, labels, binary=binary) for one in wanted]


def _output(
    parameters: Parameters, rows: Probabilities, labels: Sequence[str], *, binary: bool
) -> tuple[dict[str, Any], bytes]:
    data: Any = rows.ravel()
    tensor = {"name": OUTPUT, "datatype": "FP32", "shape": list(rows.shape)}
    if parameters.classification is not None:
        best = top_k(rows, parameters.classification)
        data = [f"{probability:.6f}:{index}:{labels[index]}" for row in best for index, probability in row]
        tensor |= {"datatype": "BYTES", "shape": [len(best), len(best[0])]}
    if not (binary if parameters.binary_data is None else parameters.binary_data):
        return tensor | {"data": data}, b""
    if isinstance(data, list):
        packed = b"".join(len(one).to_bytes(4, "little") + one for one in map(str.encode, data))
    else:
        packed = data.astype("<f4").tobytes()
    return tensor | {"parameters": {"binary_data_size": len(packed)}}, packed


def _flatten(data: Any) -> list[Any]:
    try:
        while isinstance(data, list) and data and isinstance(data[0], list):
            data = list(chain.from_iterable(data))
    except TypeError as error:
        raise MalformedRequestError("the data is nested unevenly") from error
    if not isinstance(data, list):
        raise MalformedRequestError(f"the input {INPUT} has neither a list as data nor a binary_data_size")
    return data


def _pixels(data: Any, shape: Sequence[int]) -> Any:
    try:
        levels = data if isinstance(data, memoryview) else bytes(_flatten(data))
    except (TypeError, ValueError) as error:
        raise MalformedRequestError("UINT8 data are whole numbers from 0 to 255") from error
    if len(levels) != math.prod(shape):
        raise MalformedRequestError(f"the shape {shape} has {math.prod(shape)} values and the data {len(levels)}")
    return np.frombuffer(levels, np.uint8).reshape(shape)


def _decode(index: int, text: Any) -> bytes:
    if not isinstance(text, str):
        raise MalformedRequestError(f"image {index} is not a text: send the image file in base64")
    try:
        return decode_base64(text)
    except MalformedRequestError as error:
        raise MalformedRequestError(f"image {index}: {error}") from error


def _unpack(binary: memoryview, *, at_most: int) -> list[bytes]:
    """BYTES in the binary form: each element behind its length, 4 bytes, little-endian."""
    images: list[bytes] = []
    position = 0
    while position < len(binary) and len(images) < at_most:
        start = position + 4
        position = start + int.from_bytes(binary[position:start], "little")
        if position > len(binary):
            raise MalformedRequestError(
                f"image {len(images)} is cut off: each element is its length in 4 bytes, then its bytes"
            )
        images.append(bytes(binary[start:position]))
    return images
