"""The Open Inference Protocol V2, as raw requests: JSON and binary form both ways, and what is refused."""

import base64
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest

from app import __version__
from tests.app.test_keys import guarded  # noqa: F401 (a fixture)
from tests.conftest import MAX_BODY_BYTES, MAX_IMAGES_PER_REQUEST
from tests.models import COLOURS, colour_probabilities, png
from tests.service import ServiceProcess

MODEL = "/v2/models/colours"
TURQUOISE = (10, 220, 200)
IMAGES = [png(TURQUOISE), png((255, 0, 0), size=(30, 20))]
EXPECTED = np.array([colour_probabilities(TURQUOISE), colour_probabilities((255, 0, 0))])
PIXELS = np.array([np.full((8, 8, 3), TURQUOISE), np.full((8, 8, 3), (255, 0, 0))], np.uint8)


def in_json(images: list[bytes] = IMAGES, **more: Any) -> dict[str, Any]:
    """A request with encoded images in base64."""
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [len(images)], "data": data}], **more}


def packed(elements: list[bytes]) -> bytes:
    """BYTES in the binary form."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(tensor: dict[str, Any], content: bytes, **more: Any) -> dict[str, Any]:
    """What httpx needs to send a tensor behind the JSON."""
    described = {"name": "images", "parameters": {"binary_data_size": len(content)}, **tensor}
    head = json.dumps({"inputs": [described], **more}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return {"content": head + content, "headers": headers}


def outputs_of(response: httpx.Response) -> dict[str, dict[str, Any]]:
    """Outputs by name, those behind the JSON read from there."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    outputs = json.loads(response.content[:length])["outputs"]
    position = length
    for output in outputs:
        if "data" not in output:
            end = position + output["parameters"]["binary_data_size"]
            output["raw"], position = response.content[position:end], end
    assert position == len(response.content)
    return {output["name"]: output for output in outputs}


FORMS: dict[str, dict[str, Any]] = {
    "BYTES in JSON": {"json": in_json()},
    "BYTES in JSON, a row each": {
        "json": {
            "inputs": [
                {
                    "name": "images",
                    "datatype": "BYTES",
                    "shape": [2, 1],
                    "data": [[base64.b64encode(image).decode()] for image in IMAGES],
                    "parameters": {"content_type": "base64"},
                }
            ]
        }
    },
    "BYTES in binary": binary({"datatype": "BYTES", "shape": [2]}, packed(IMAGES)),
    "UINT8 in JSON, flat": {
        "json": {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [2, 8, 8, 3], "data": PIXELS.ravel().tolist()}]}
    },
    "UINT8 in JSON, nested": {
        "json": {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [2, 8, 8, 3], "data": PIXELS.tolist()}]}
    },
    "UINT8 in binary": binary({"datatype": "UINT8", "shape": [2, 8, 8, 3]}, PIXELS.tobytes()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_every_form_of_tensor_gives_the_same_right_answer(client: httpx.Client, form: str, path: str) -> None:
    response = client.post(f"{path}/infer", **FORMS[form])
    output = outputs_of(response)["probabilities"]
    assert (output["datatype"], output["shape"]) == ("FP32", [2, 3])
    assert np.array(output["data"]).reshape(2, 3) == pytest.approx(EXPECTED, abs=1e-5)
    answer = response.json()
    assert (answer["model_name"], answer["model_version"]) == ("colours", "1")


def test_the_requests_id_comes_back_else_ours(client: httpx.Client) -> None:
    assert client.post(f"{MODEL}/infer", json=in_json(id="42")).json()["id"] == "42"
    response = client.post(f"{MODEL}/infer", json=in_json())
    assert response.json()["id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "more",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]},
    ],
)
def test_an_output_comes_behind_the_json_when_asked_for(client: httpx.Client, more: dict[str, Any]) -> None:
    response = client.post(f"{MODEL}/infer", json=in_json(**more))
    assert response.headers["content-type"] == "application/octet-stream"
    raw = outputs_of(response)["probabilities"]["raw"]
    assert np.frombuffer(raw, "<f4").reshape(2, 3) == pytest.approx(EXPECTED, abs=1e-5)


def test_one_output_may_ask_otherwise_than_the_request(client: httpx.Client) -> None:
    asked: dict[str, Any] = {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
    }
    assert len(outputs_of(client.post(f"{MODEL}/infer", json=in_json(**asked)))["probabilities"]["data"]) == 6


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize(("classes", "answered"), [(1, 1), (2, 2), (50, 3)])
def test_the_classification_extension_names_the_top_classes(
    client: httpx.Client, classes: int, answered: int, is_binary: bool
) -> None:
    parameters = {"classification": classes, "binary_data": is_binary}
    asked = in_json(outputs=[{"name": "probabilities", "parameters": parameters}])
    output = outputs_of(client.post(f"{MODEL}/infer", json=asked))["probabilities"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, answered])
    best = [(float(row[index]), index) for row in EXPECTED for index in np.argsort(-row)[:answered]]
    strings = [f"{probability:.6f}:{index}:{COLOURS[index]}" for probability, index in best]
    given = output["raw"] if is_binary else packed([text.encode() for text in output["data"]])
    assert given == packed([text.encode() for text in strings])


def test_metadata_describe_server_and_model(client: httpx.Client) -> None:
    server = client.get("/v2").json()
    assert (server["name"], server["version"]) == ("convserve", __version__)
    assert {"binary_tensor_data", "classification"} <= set(server["extensions"])
    model = client.get(MODEL).json()
    assert model == client.get(f"{MODEL}/versions/1").json()
    assert model == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        (f"{MODEL}/ready", {"name": "colours", "ready": True}),
        (f"{MODEL}/versions/1/ready", {"name": "colours", "ready": True}),
    ],
)
def test_health_is_told_in_the_protocols_form(client: httpx.Client, path: str, answer: dict[str, Any]) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, answer)


def assert_error(response: httpx.Response, status: int, part: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert part in response.json()["error"]


@pytest.mark.parametrize(
    "path", ["/v2/models/other", "/v2/models/other/ready", f"{MODEL}/versions/2", f"{MODEL}/versions/2/ready", "/v2/nothing"]
)
def test_what_is_not_there_answers_404_in_the_protocols_form(client: httpx.Client, path: str) -> None:
    assert_error(client.get(path), 404, "there is")


@pytest.mark.parametrize("path", ["/v2/models/other/infer", f"{MODEL}/versions/2/infer"])
def test_inference_of_another_model_or_version_answers_404(client: httpx.Client, path: str) -> None:
    assert_error(client.post(path, json=in_json()), 404, "there is no")


def test_a_wrong_method_answers_405_in_the_protocols_form(client: httpx.Client) -> None:
    assert_error(client.get(f"{MODEL}/infer"), 405, "method")


def tensor(**changes: Any) -> dict[str, Any]:
    """A request in JSON whose one tensor differs."""
    return {"json": {"inputs": [in_json()["inputs"][0] | changes]}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"content": b"{"}, "JSON"),
    "JSON that is no object": ({"json": []}, "the JSON: "),
    "no inputs": ({"json": {}}, "inputs: "),
    "two inputs": ({"json": {"inputs": in_json()["inputs"] * 2}}, "inputs: "),
    "another input": (tensor(name="pixels"), "inputs.0.name: "),
    "another type": (tensor(datatype="FP32"), "inputs.0.datatype: "),
    "another output": ({"json": in_json(outputs=[{"name": "logits"}])}, "outputs.0.name: "),
    "no class at all": (
        {"json": in_json(outputs=[{"name": "probabilities", "parameters": {"classification": 0}}])},
        "classification: ",
    ),
    "no shape": (tensor(shape=[]), "the shape [] does not fit"),
    "no images": (tensor(shape=[0], data=[]), "the shape [0] does not fit"),
    "fewer than the shape says": (tensor(shape=[3]), "the shape says 3 images and the data has 2"),
    "no data": (tensor(data=None), "neither"),
    "data that are one text": (tensor(data="AAAA"), "neither"),
    "numbers for texts": (tensor(data=[1, 2]), "image 0 is not a text"),
    "no base64": (tensor(data=[in_json()["inputs"][0]["data"][0], "§"]), "image 1: "),
    "pixels of another size": (tensor(datatype="UINT8", shape=[1, 9, 8, 3]), "or UINT8 as [n, 8, 8, 3]"),
    "too few pixels": (tensor(datatype="UINT8", shape=[1, 8, 8, 3], data=[0]), "has 192 values and the data 1"),
    "pixels out of range": (tensor(datatype="UINT8", shape=[1, 8, 8, 3], data=[256] * 192), "0 to 255"),
    "pixels with fractions": (tensor(datatype="UINT8", shape=[1, 8, 8, 3], data=[0.5] * 192), "0 to 255"),
    "uneven nesting": (tensor(datatype="UINT8", shape=[1, 8, 8, 3], data=[[1], 2]), "unevenly"),
    "a header longer than the body": (
        {"content": b"{}", "headers": {"inference-header-content-length": "3"}},
        "the body has only 2 bytes",
    ),
    "fewer bytes than declared": (
        binary({"datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10**6}}, packed(IMAGES)),
        "binary_data_size is 1000000",
    ),
    "bytes that nobody declared": (binary({"datatype": "BYTES", "shape": [2], "parameters": {}}, b"more"), "4 bytes follow"),
    "an element cut off": (binary({"datatype": "BYTES", "shape": [2]}, packed(IMAGES)[:-1]), "image 1 is cut off"),
    "a length cut off": (binary({"datatype": "BYTES", "shape": [1]}, b"\0\0"), "image 0 is cut off"),
    "more elements than images": (binary({"datatype": "BYTES", "shape": [1]}, packed(IMAGES)), "says 1 images"),
    "pixels cut off": (
        binary({"datatype": "UINT8", "shape": [2, 8, 8, 3]}, PIXELS.tobytes()[1:]),
        "384 values and the data 383",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_does_not_fit_answers_400_and_says_why(client: httpx.Client, case: str) -> None:
    request, part = REFUSED[case]
    assert_error(client.post(f"{MODEL}/infer", **request), 400, part)


@pytest.mark.parametrize(
    ("bad", "status", "part"),
    [
        (b"text", 415, "image 1: the bytes are not an image"),
        (IMAGES[0][:50], 422, "image 1: the PNG image is damaged"),
        (png((255, 255, 255)), 500, "this is a bug"),
    ],
)
def test_one_bad_image_fails_the_request_and_is_named(client: httpx.Client, bad: bytes, status: int, part: str) -> None:
    assert_error(client.post(f"{MODEL}/infer", json=in_json([IMAGES[0], bad])), status, part)


def test_more_images_than_taken_in_one_request_answer_413(client: httpx.Client) -> None:
    asked = in_json([IMAGES[0]] * (MAX_IMAGES_PER_REQUEST + 1))
    assert_error(client.post(f"{MODEL}/infer", json=asked), 413, f"at most {MAX_IMAGES_PER_REQUEST} images")


def test_a_body_too_large_answers_413(client: httpx.Client) -> None:
    assert_error(client.post(f"{MODEL}/infer", content=bytes(MAX_BODY_BYTES + 1)), 413, "larger than")


def test_a_compressed_body_answers_415(client: httpx.Client) -> None:
    assert_error(client.post(f"{MODEL}/infer", content=b"x", headers={"content-encoding": "gzip"}), 415, "compressed")


def test_a_bad_header_answers_422(client: httpx.Client) -> None:
    response = client.post(f"{MODEL}/infer", content=b"{}", headers={"inference-header-content-length": "-1"})
    assert_error(response, 422, "greater than or equal to 0")


@pytest.mark.parametrize("deadline", [{"headers": {"x-request-timeout-ms": "1"}}, {"microseconds": 1000}])
def test_the_deadline_counts_as_header_and_as_parameter(slow_client: httpx.Client, deadline: dict[str, Any]) -> None:
    asked = in_json([IMAGES[0]], parameters={"timeout": deadline.pop("microseconds", 0)})
    response = slow_client.post(f"{MODEL}/infer", json=asked, **deadline)
    assert_error(response, response.status_code, "0.00")
    assert response.status_code in (503, 504)  # 503 where the engine still runs what it was asked before


def test_a_key_is_asked_for_where_the_model_answers(guarded: ServiceProcess) -> None:  # noqa: F811
    with guarded.client() as stranger:
        assert_error(stranger.post(f"{MODEL}/infer", json=in_json()), 401, "key")
        assert_error(stranger.get(MODEL), 401, "key")
        assert stranger.get("/v2/health/ready").status_code == 200
        assert stranger.get(f"{MODEL}/ready").status_code == 200
        friend = stranger.post(f"{MODEL}/infer", json=in_json(), headers={"x-api-key": "first-key"})
        assert friend.status_code == 200


def test_the_request_that_perf_analyzer_sends_is_answered(client: httpx.Client) -> None:
    """Source: triton-inference-server/client, `src/c++/library/http_client.cc`: its order of keys and its headers."""
    head = (
        b'{"id":"7","inputs":[{"name":"images","datatype":"UINT8","shape":[2,8,8,3],"parameters":{"binary_data_size":384}}],'
        b'"outputs":[{"name":"probabilities","parameters":{"binary_data":true}}]}'
    )
    headers = {
        "User-Agent": "libcurl-agent/1.0",
        "Accept": "*/*",
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    output = outputs_of(client.post(f"{MODEL}/infer", content=head + PIXELS.tobytes(), headers=headers))["probabilities"]
    assert np.frombuffer(output["raw"], "<f4").reshape(2, 3) == pytest.approx(EXPECTED, abs=1e-5)
