"""Run in .venv-clients: asks a service by KServe's Python client and prints what it understood. Arguments: URL, image."""

import asyncio
import base64
import json
import sys
from pathlib import Path

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main() -> None:
    url, image = sys.argv[1], Path(sys.argv[2]).read_bytes()
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    in_json = InferInput("images", [1], "BYTES", data=[base64.b64encode(image).decode()])
    encoded = InferInput("images", [1], "BYTES")
    encoded.set_data_from_numpy(np.array([image], np.object_))
    pixels = InferInput("images", [2, 8, 8, 3], "UINT8")
    pixels.set_data_from_numpy(np.full((2, 8, 8, 3), (60, 200, 30), np.uint8))
    answers = []
    for tensor, parameters in ((in_json, None), (encoded, None), (pixels, {"binary_data_output": True})):
        asked = InferRequest("colours", [tensor], request_id="42", parameters=parameters)
        answer = await client.infer(url, asked, model_name="colours")
        answers.append([answer.id, answer.model_name, answer.outputs[0].as_numpy().tolist()])
    error = None
    try:
        broken = InferInput("images", [1], "BYTES", data=[base64.b64encode(b"text").decode()])
        await client.infer(url, InferRequest("colours", [broken]), model_name="colours")
    except httpx.HTTPStatusError as caught:
        error = str(caught)
    ready = [await client.is_server_live(url), await client.is_server_ready(url), await client.is_model_ready(url, "colours")]
    print(json.dumps({"ready": ready, "answers": answers, "error": error}))


asyncio.run(main())
