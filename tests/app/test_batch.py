"""`POST /predict/batch`: one result or one problem per image, in order, and all or nothing at the door."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.schemas import BatchAnswer, Problem
from tests.conftest import MAX_IMAGES_PER_REQUEST
from tests.models import colour_probabilities, png
from tests.service import ServiceProcess, assert_problem

REDS = [png((red, 0, 0)) for red in range(0, 256, 51)]
GOOD = png((0, 0, 250))
Upload = tuple[str, tuple[str, bytes, str]]


def files(*images: bytes, field: str = "files") -> list[Upload]:
    return [(field, (f"{number}.png", image, "image/png")) for number, image in enumerate(images)]


def answer_of(response: httpx.Response) -> BatchAnswer:
    assert response.status_code == 200, response.text
    answer = BatchAnswer.model_validate_json(response.content, strict=True)
    assert answer.request_id == response.headers["x-request-id"]
    return answer


def test_results_come_in_the_order_of_the_images(client: httpx.Client) -> None:
    answer = answer_of(client.post("/predict/batch", files=files(*REDS)))
    given = [{one.label: one.probability for one in result.predictions or []}["red"] for result in answer.results]
    assert given == pytest.approx([colour_probabilities((red, 0, 0))[0] for red in range(0, 256, 51)], abs=1e-6)
    assert [result.accepted for result in answer.results] == [False, True, True, True, True, True]


def test_a_batch_answers_each_image_as_it_is_answered_alone(client: httpx.Client) -> None:
    alone = [client.post("/predict", content=image).json()["predictions"] for image in REDS]
    together = client.post("/predict/batch", files=files(*REDS)).json()["results"]
    for one, other in zip(alone, together, strict=True):
        assert [p["class_index"] for p in one] == [p["class_index"] for p in other["predictions"]]
        assert [p["probability"] for p in one] == pytest.approx([p["probability"] for p in other["predictions"]], abs=1e-5)


def test_top_k_counts_for_each_image(client: httpx.Client) -> None:
    answer = answer_of(client.post("/predict/batch?top_k=1", files=files(*REDS)))
    assert [len(result.predictions or []) for result in answer.results] == [1] * len(REDS)


@pytest.mark.parametrize(
    ("bad", "status", "reason"),
    [
        (b"text", 415, "unsupported_image"),
        (b"", 415, "unsupported_image"),
        (GOOD[:50], 422, "undecodable_image"),
        (png((255, 255, 255)), 500, "internal"),
    ],
)
def test_one_bad_image_has_a_problem_of_its_own(client: httpx.Client, bad: bytes, status: int, reason: str) -> None:
    answer = answer_of(client.post("/predict/batch", files=files(GOOD, bad, GOOD)))
    first, second, third = answer.results
    assert first == third
    assert first.predictions is not None
    assert first.predictions[0].label == "blue"
    assert second.predictions is None
    assert second.accepted is None
    assert isinstance(second.problem, Problem)
    assert (second.problem.status, second.problem.reason) == (status, reason)
    assert second.problem.request_id == answer.request_id


def test_as_many_images_as_allowed_are_taken_and_one_more_answers_413(client: httpx.Client) -> None:
    images = [GOOD] * MAX_IMAGES_PER_REQUEST
    assert len(answer_of(client.post("/predict/batch", files=files(*images))).results) == MAX_IMAGES_PER_REQUEST
    assert_problem(client.post("/predict/batch", files=files(*images, GOOD)), 413, "too_large")


def test_no_image_answers_400(client: httpx.Client) -> None:
    problem = assert_problem(client.post("/predict/batch", files=files(GOOD, field="file")), 400, "malformed_request")
    assert "files" in problem.detail


@pytest.mark.parametrize("content_type", ["image/png", "application/json", ""])
def test_what_is_no_form_answers_415(client: httpx.Client, content_type: str) -> None:
    response = client.post("/predict/batch", content=GOOD, headers={"content-type": content_type})
    assert "multipart/form-data" in assert_problem(response, 415, "unsupported_image").detail


def test_a_batch_that_the_queue_cannot_take_now_is_refused_as_a_whole(
    slow_service: ServiceProcess, slow_client: httpx.Client
) -> None:
    before = slow_service.metric("convserve_images_total", outcome="classified")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{slow_service.url}/predict", content=REDS[0], timeout=30, trust_env=False)
        while httpx.get(f"{slow_service.url}/health", trust_env=False).json()["queue"]["in_progress"] == 0:
            assert not running.done()
        response = slow_client.post("/predict/batch", files=files(*REDS[:2]))  # the queue takes two, and one is running
        assert running.result().status_code == 200
    assert_problem(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1
    assert len(answer_of(slow_client.post("/predict/batch", files=files(*REDS[:2]))).results) == 2
    assert slow_service.metric("convserve_images_total", outcome="classified") == before + 3


def test_more_images_than_the_queue_ever_takes_are_too_many(slow_client: httpx.Client) -> None:
    assert (
        "at most 2 images"
        in assert_problem(slow_client.post("/predict/batch", files=files(*REDS[:3])), 413, "too_large").detail
    )
