"""Run in .venv-mlserver: asks a service by MLServer's types and codecs, prints what they understood. Arguments: URL, image."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import (
    InferenceErrorResponse,
    InferenceRequest,
    InferenceResponse,
    MetadataModelErrorResponse,
    MetadataModelResponse,
    MetadataServerResponse,
    Parameters,
)

url, path = sys.argv[1:]
image = Path(path).read_bytes()


def fetch(path: str, body: str | None = None) -> bytes:
    """What comes, whatever its status."""
    asked = urllib.request.Request(url + path, body.encode() if body else None, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


def ask(request: InferenceRequest) -> bytes:
    return fetch("/v2/models/colours/infer", request.model_dump_json())


def understand(request: InferenceRequest) -> list[Any]:
    answer = InferenceResponse.model_validate_json(ask(request))
    return [answer.id, answer.model_name, NumpyCodec.decode_output(answer.outputs[0]).tolist()]


encoded = Base64Codec.encode_input("images", [image, image], use_bytes=False)
pixels = NumpyCodec.encode_input("images", np.full((2, 8, 8, 3), (60, 200, 30), np.uint8))
requests = [
    InferenceRequest(id="42", inputs=[encoded]),
    InferenceRequest(id="42", inputs=[pixels]),
    InferenceRequest(id="42", inputs=[encoded], parameters=Parameters(content_type="np")),
]
broken = Base64Codec.encode_input("images", [b"text"], use_bytes=False)
model = MetadataModelResponse.model_validate_json(fetch("/v2/models/colours"))
print(
    json.dumps(
        {
            "server": MetadataServerResponse.model_validate_json(fetch("/v2")).name,
            "model": model.model_dump(exclude_none=True),
            "answers": [understand(one) for one in requests],
            "errors": [
                InferenceErrorResponse.model_validate_json(ask(InferenceRequest(inputs=[broken]))).error,
                MetadataModelErrorResponse.model_validate_json(fetch("/v2/models/other")).error,
            ],
        }
    )
)
