"""Run in .venv-clients: asks a service by Triton's Python client and prints what it understood. Arguments: host:port, image."""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

address, image = sys.argv[1:]
with triton.InferenceServerClient(address) as client:
    metadata = client.get_model_metadata("colours", "1")
    encoded = triton.InferInput("images", [1, 1], "BYTES")
    encoded.set_data_from_numpy(np.array([[Path(image).read_bytes()]], np.object_))
    pixels = triton.InferInput("images", [2, 8, 8, 3], "UINT8")
    pixels.set_data_from_numpy(np.full((2, 8, 8, 3), (60, 200, 30), np.uint8))
    in_json = triton.InferInput("images", [2, 8, 8, 3], "UINT8")
    in_json.set_data_from_numpy(np.full((2, 8, 8, 3), (60, 200, 30), np.uint8), binary_data=False)
    output = triton.InferRequestedOutput("probabilities", binary_data=False)
    classes = triton.InferRequestedOutput("probabilities", class_count=2)
    asynchronous = client.async_infer("colours", [encoded]).get_result()
    broken = triton.InferInput("images", [1], "BYTES")
    broken.set_data_from_numpy(np.array([b"text"], np.object_))
    errors = []
    for model, tensor in (("colours", broken), ("other", encoded)):
        try:
            client.infer(model, [tensor])
        except triton.InferenceServerException as error:
            errors.append([error.status(), error.message()])
    print(
        json.dumps(
            {
                "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("colours")],
                "not_ready": client.is_model_ready("other"),
                "server": client.get_server_metadata()["name"],
                "inputs": metadata["inputs"],
                "id": client.infer("colours", [encoded], request_id="42").get_response()["id"],
                "probabilities": [
                    client.infer("colours", [encoded], model_version="1").as_numpy("probabilities").tolist(),
                    client.infer("colours", [pixels]).as_numpy("probabilities").tolist(),
                    client.infer("colours", [in_json], outputs=[output]).as_numpy("probabilities").tolist(),
                    asynchronous.as_numpy("probabilities").tolist(),
                ],
                "classes": [
                    text.decode()
                    for text in client.infer("colours", [encoded], outputs=[classes]).as_numpy("probabilities").ravel()
                ],
                "errors": errors,
            }
        )
    )
