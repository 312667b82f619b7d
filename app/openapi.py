"""Completes the OpenAPI document with what is the same for all endpoints: headers, and examples, which are real answers.

`examples.json` holds what the bundled digits model answers; tests/app/test_examples.py asks it, and writes the file anew.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from app.access import DEFAULT_HEADERS
from app.problem import MEDIA_TYPE as PROBLEM_JSON

EXAMPLES = Path(__file__).parent / "examples.json"
EVERY_ANSWER = {"X-Request-ID": "as it was sent, or a new one; the log has it too"} | {
    name.decode().title(): value.decode() for name, value in DEFAULT_HEADERS
}
OF_PATH = {"/predict": {"200": {"Server-Timing": "milliseconds by stage: decode, queue, infer, and explain where asked for"}}}
OF_STATUS = {"401": {"WWW-Authenticate": "Bearer; X-API-Key is taken as well"}}


def complete(document: dict[str, Any]) -> None:
    """Adds statuses, headers and examples to the document that FastAPI made."""
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    problems, errors = (
        deepcopy(document["paths"][path]["post"]["responses"]) for path in ("/predict", "/v2/models/{name}/infer")
    )
    too_large_head = problems["400"] | {"description": "The head has more than 64 KiB or 128 headers."}
    for path, operations in document["paths"].items():
        ours = errors if path.startswith("/v2") else problems
        for method, operation in operations.items():
            own = examples.get(f"{method} {path.replace('/versions/{version}', '')}", {})
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            body |= {"example": own["request"]} if "request" in own else {}
            answers = {"401": ours["401"], "431": too_large_head, "500": ours["500"]} | operation["responses"]
            operation["responses"] = {status: deepcopy(answer) for status, answer in sorted(answers.items())}
            for status, answer in operation["responses"].items():
                texts = EVERY_ANSWER | OF_PATH.get(path, {}).get(status, {}) | OF_STATUS.get(status, {})
                told = {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}
                answer["headers"] = told | answer.get("headers", {})
                for media_type, content in answer.get("content", {}).items():
                    is_error = content.get("schema", {}).get("$ref", "").endswith("/V2Error")
                    shared = examples["errors"] if is_error else examples["problems"] if media_type == PROBLEM_JSON else own
                    if status in shared and media_type.endswith("json"):
                        content["example"] = shared[status]
