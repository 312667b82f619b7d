"""`POST /predict`: what comes back for an image, however it was sent."""

import base64
import re
from typing import Any

import httpx
import pytest

from app.routes import MAX_TOP_K
from app.schemas import PredictAnswer
from tests.models import COLOURS, colour_probabilities, png
from tests.service import ServiceProcess, assert_problem

COLOUR = (60, 200, 30)
PICTURE = png(COLOUR)
ENCODED = base64.b64encode(PICTURE).decode()
BROKEN_LINES = "\r\n".join(ENCODED[start : start + 20] for start in range(0, len(ENCODED), 20))

FORMS: dict[str, dict[str, Any]] = {
    "an image type": {"content": PICTURE, "headers": {"content-type": "image/png"}},
    "the wrong image type": {"content": PICTURE, "headers": {"content-type": "image/jpeg"}},
    "an octet stream": {"content": PICTURE, "headers": {"content-type": "application/octet-stream"}},
    "no content type": {"content": PICTURE},
    "what curl says by default": {"content": PICTURE, "headers": {"content-type": "application/x-www-form-urlencoded"}},
    "a form": {"files": {"file": ("picture.png", PICTURE, "image/png")}},
    "a form with other fields": {"files": {"file": ("picture", PICTURE)}, "data": {"title": "file"}},
    "JSON": {"json": {"image": ENCODED}},
    "JSON with a charset": {
        "content": f'{{"image":"{ENCODED}"}}',
        "headers": {"content-type": "Application/JSON; charset=utf-8"},
    },
    "JSON with a data URL": {"json": {"image": f"data:image/png;base64,{ENCODED}"}},
    "JSON with base64 in lines": {"json": {"image": BROKEN_LINES}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_body_gives_the_same_right_answer(client: httpx.Client, form: str) -> None:
    response = client.post("/predict", **FORMS[form])
    assert response.status_code == 200, response.text
    answer = PredictAnswer.model_validate_json(response.content, strict=True)
    expected = dict(zip(COLOURS, colour_probabilities(COLOUR), strict=True))
    assert [one.label for one in answer.predictions] == ["green", "red", "blue"]
    assert {one.label: one.probability for one in answer.predictions} == pytest.approx(expected, abs=1e-6)
    assert all(COLOURS[one.class_index] == one.label for one in answer.predictions)
    assert (answer.model.name, answer.model.version) == ("colours", "1")


def test_an_answer_is_json_that_nobody_stores(client: httpx.Client) -> None:
    response = client.post("/predict", content=PICTURE)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert "server" not in response.headers


def test_an_answer_says_how_long_each_stage_took(client: httpx.Client) -> None:
    timing = client.post("/predict", content=PICTURE).headers["server-timing"].split(", ")
    matches = [re.fullmatch(r"(\w+);dur=(\d+\.\d+)", stage) for stage in timing]
    assert [match[1] for match in matches if match] == ["decode", "queue", "infer"]
    assert all(0 <= float(match[2]) < 10_000 for match in matches if match)


@pytest.mark.parametrize(("query", "classes"), [("?top_k=1", 1), ("?top_k=2", 2), ("", 3), (f"?top_k={MAX_TOP_K}", 3)])
def test_top_k_classes_come_back_and_never_more_than_there_are(client: httpx.Client, query: str, classes: int) -> None:
    answer = PredictAnswer.model_validate_json(client.post(f"/predict{query}", content=PICTURE).content)
    probabilities = [one.probability for one in answer.predictions]
    assert len(probabilities) == classes
    assert probabilities == sorted(probabilities, reverse=True)
    assert answer.predictions[0].label == "green"


@pytest.mark.parametrize(("red", "accepted"), [(35, False), (36, True), (255, True), (0, False)])  # p = 0.5999, 0.6075
def test_an_answer_is_accepted_from_the_threshold_on(client: httpx.Client, red: int, accepted: bool) -> None:
    answer = client.post("/predict", content=png((red, 0, 0))).json()
    assert answer["accepted"] is accepted
    assert (answer["predictions"][0]["probability"] >= 0.6) is accepted


@pytest.mark.parametrize("value", ["0", "-1", str(MAX_TOP_K + 1), "9999", "abc", "", "1.5", "nan"])
def test_a_top_k_out_of_range_answers_422_and_says_why(client: httpx.Client, value: str) -> None:
    problem = assert_problem(client.post("/predict", params={"top_k": value}, content=PICTURE), 422, "bad_parameter")
    assert problem.errors is not None
    assert [error["parameter"] for error in problem.errors] == ["top_k"]
    assert all(error["message"] in problem.detail for error in problem.errors)


@pytest.mark.parametrize("value", ["0", "-5", "soon", "nan", "inf", ""])
def test_a_bad_deadline_answers_422(client: httpx.Client, value: str) -> None:
    response = client.post("/predict", content=PICTURE, headers={"x-request-timeout-ms": value})
    problem = assert_problem(response, 422, "bad_parameter")
    assert problem.errors is not None
    assert problem.errors[0]["parameter"].lower() == "x-request-timeout-ms"


def test_a_deadline_longer_than_the_services_is_shortened_not_refused(client: httpx.Client) -> None:
    response = client.post("/predict", content=PICTURE, headers={"x-request-timeout-ms": "1e12"})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/predict/more", "/predict%00", "/metrics/../secret", "/%ff"])
def test_an_unknown_path_answers_404(client: httpx.Client, path: str) -> None:
    assert_problem(client.post(path, content=PICTURE), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/predict", "POST"), ("PUT", "/predict/batch", "POST"), ("POST", "/health", "GET"), ("DELETE", "/model", "GET")],
)
def test_a_wrong_method_answers_405_and_says_which_are_right(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


def test_a_bug_answers_500_without_its_detail_and_logs_the_traceback(service: ServiceProcess, client: httpx.Client) -> None:
    response = client.post("/predict", content=png((255, 255, 255)), headers={"x-request-id": "white"})
    problem = assert_problem(response, 500, "internal")
    assert "ONNXRuntime" not in response.text
    assert "white" in problem.detail
    line = service.wait_for_line(message="bug: request white failed")
    assert line["level"] == "error"
    assert "InvalidArgument" in line["traceback"]
