"""Run in .venv-mlserver: asks a service by MLServer's types and codecs, prints what they understood. Arguments: URL, image."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
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
infer = f"{url}/v2/models/colours/infer"


def ask(request: InferenceRequest) -> httpx.Response:
    return httpx.post(infer, content=request.model_dump_json(), headers={"content-type": "application/json"}, trust_env=False)


def understand(request: InferenceRequest) -> list[Any]:
    answer = InferenceResponse.model_validate_json(ask(request).content)
    return [answer.id, answer.model_name, NumpyCodec.decode_output(answer.outputs[0]).tolist()]


encoded = Base64Codec.encode_input("images", [image, image], use_bytes=False)
pixels = NumpyCodec.encode_input("images", np.full((2, 8, 8, 3), (60, 200, 30), np.uint8))
requests = [
    InferenceRequest(id="42", inputs=[encoded]),
    InferenceRequest(id="42", inputs=[pixels]),
    InferenceRequest(id="42", inputs=[encoded], parameters=Parameters(content_type="np")),
]
broken = Base64Codec.encode_input("images", [b"text"], use_bytes=False)
model = MetadataModelResponse.model_validate_json(httpx.get(f"{url}/v2/models/colours", trust_env=False).content)
print(
    json.dumps(
        {
            "server": MetadataServerResponse.model_validate_json(httpx.get(f"{url}/v2", trust_env=False).content).name,
            "model": model.model_dump(exclude_none=True),
            "answers": [understand(one) for one in requests],
            "errors": [
                InferenceErrorResponse.model_validate_json(ask(InferenceRequest(inputs=[broken])).content).error,
                MetadataModelErrorResponse.model_validate_json(
                    httpx.get(f"{url}/v2/models/other", trust_env=False).content
                ).error,
            ],
        }
    )
)
