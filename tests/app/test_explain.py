"""Explanations: the evidence lies where it is, in the image's own coordinates, and costs no one who did not ask for it."""

import asyncio
import base64
import io
import time
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.classifier import Classifier
from app.engine import Answer
from app.errors import DeadlineExceededError, OverloadedError
from app.explain import OVERLAY_SIDE, Explainer, draw_overlay
from app.image import fit_and_locate
from app.schemas import Explanation, PredictAnswer
from app.spec import InputSpec
from tests.engines import blocked, ends, image, running, soon
from tests.fakes import FakeClassifier
from tests.models import png
from tests.service import ROOT, assert_problem

WIDE = Image.new("RGB", (96, 48), (255, 60, 0))  # red, and on the right green, which is more
ImageDraw.Draw(WIDE).rectangle((40, 0, 95, 47), fill=(0, 255, 0))
RED_LEFT_GREEN_RIGHT = png(np.asarray(WIDE))


def explanation_of(client: httpx.Client, query: str, content: bytes = RED_LEFT_GREEN_RIGHT) -> Explanation:
    response = client.post(f"/predict?{query}", content=content)
    assert response.status_code == 200, response.text
    explanation = PredictAnswer.model_validate_json(response.content, strict=True).explanation
    assert explanation is not None
    return explanation


def opened(overlay: bytes) -> Image.Image:
    return Image.open(io.BytesIO(overlay)).convert("RGBA")


@pytest.mark.parametrize(("query", "label", "hot"), [("explain=true", "green", 7), ("class_index=0", "red", 0)])
def test_the_evidence_for_a_class_lies_where_the_image_shows_it(client: httpx.Client, query: str, label: str, hot: int) -> None:
    explanation = explanation_of(client, query)
    evidence = np.array(explanation.evidence)
    assert (explanation.label, explanation.method, explanation.passes) == (label, "occlusion", 1 + 8 * 8)
    assert evidence.shape == (8, 8)
    assert (evidence[1:-1, hot] > evidence[1:-1, 7 - hot]).all()
    assert explanation.box == [0, 0, 1, 1]
    overlay = opened(base64.b64decode(explanation.overlay, validate=True))
    assert overlay.size == (OVERLAY_SIDE, OVERLAY_SIDE // 2)  # the image's shape
    alpha = np.asarray(overlay)[:, :, 3].mean(axis=0)
    assert alpha[:40].mean() < alpha[-40:].mean() if hot else alpha[:40].mean() > alpha[-40:].mean()


def test_an_answer_is_the_same_with_its_explanation_and_tells_the_time_that_took(client: httpx.Client) -> None:
    plain, explained = (client.post("/predict", params=some, content=RED_LEFT_GREEN_RIGHT) for some in ({}, {"explain": "1"}))
    assert plain.json()["predictions"] == explained.json()["predictions"]
    assert "explanation" not in plain.json()
    assert "explain;dur=" in explained.headers["server-timing"]
    assert "explain" not in plain.headers["server-timing"]


@pytest.mark.parametrize("query", ["class_index=3", "class_index=-1", "class_index=red", "explain=perhaps"])
def test_a_class_that_is_not_there_answers_422(client: httpx.Client, query: str) -> None:
    problem = assert_problem(client.post(f"/predict?{query}", content=RED_LEFT_GREEN_RIGHT), 422, "bad_parameter")
    assert query.partition("=")[0] in problem.detail


def test_what_does_not_decode_answers_as_it_does_without_explanation(client: httpx.Client) -> None:
    assert_problem(client.post("/predict?explain=true", content=RED_LEFT_GREEN_RIGHT[:-60]), 422, "undecodable_image")


def test_the_bundled_model_explains_a_clock_in_the_pass_that_classifies_it() -> None:
    classifier = Classifier.load(ROOT / "models" / "imagenet.onnx", device="cpu")
    clock = Image.open(ROOT / "docs" / "images" / "clock.jpg")
    beside = Image.new("RGB", (2 * clock.width, clock.height), clock.getpixel((2, 2)))
    beside.paste(clock, (round(0.7 * clock.width), 0))  # right of the centre, inside what is cropped
    answer = Explainer(classifier)(png(np.asarray(beside)), lambda: None)
    assert answer.explanation is not None
    evidence = np.array(answer.explanation["evidence"])
    assert answer.explanation["method"] == "class_activation_map"
    assert (answer.explanation["label"], answer.explanation["passes"], evidence.shape) == ("analog clock", 1, (7, 7))
    assert evidence[:, 4:].sum() > 2 * evidence[:, :3].clip(0).sum()
    left, top, right, bottom = answer.explanation["box"]
    assert (left, top) == pytest.approx((1 - right, 1 - bottom), abs=1e-4)
    assert (right - left) * 2 == pytest.approx(bottom - top, abs=1e-4) == pytest.approx(0.875, abs=1e-4)
    hot = np.asarray(opened(base64.b64decode(answer.explanation["overlay"])))[:, :, 3].astype(float)
    centre = hot.sum(axis=0) @ (np.arange(OVERLAY_SIDE) + 0.5) / hot.sum() / OVERLAY_SIDE
    assert centre == pytest.approx(0.6, abs=0.05)  # of the clock: (0.7 + 0.5) / 2


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad", "ink"])
@pytest.mark.parametrize("size", [(400, 300), (150, 380), (28, 28)])
def test_the_box_leads_from_the_models_pixels_back_to_the_image(resize: str, size: tuple[int, int]) -> None:
    spec = InputSpec.model_validate({"height": 28, "width": 28, "channels": 1, "resize": resize, "crop_fraction": 0.9})
    spec = spec.model_copy(update={"background": (0, 0, 0)})
    at = (size[0] * 0.42, size[1] * 0.6)
    drawn = Image.new("L", size, 0)
    radius = min(size) / 7
    ImageDraw.Draw(drawn).rectangle((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=255)
    pixels, box = fit_and_locate(drawn, spec)
    mass = pixels[:, :, 0].astype(float)
    across, down = (mass.sum(axis=axis) @ (np.arange(28) + 0.5) / mass.sum() / 28 for axis in (0, 1))
    found = (box[0] + across * (box[2] - box[0]), box[1] + down * (box[3] - box[1]))
    assert found == pytest.approx((0.42, 0.6), abs=0.025)


def test_an_overlay_is_hot_inside_its_box_and_clear_outside() -> None:
    overlay = np.asarray(opened(draw_overlay(np.ones((7, 7), np.float32), (0.25, 0.0, 0.5, 1.0), (400, 200))))
    assert overlay.shape == (OVERLAY_SIDE // 2, OVERLAY_SIDE, 4)
    assert (overlay[:, 41:79, 3] > 200).all()
    assert (overlay[:, :39, 3] == 0).all()
    assert (overlay[:, 81:, 3] == 0).all()


def test_nothing_that_speaks_for_a_class_gives_a_clear_overlay() -> None:
    overlay = np.asarray(opened(draw_overlay(np.full((2, 2), -1, np.float32), (0, 0, 1, 1), (9, 9))))
    assert (overlay[:, :, 3] == 0).all()


def run_for(seconds: float, ran: list[str]) -> Callable[[bytes, Callable[[], None]], Answer]:
    """What stands in for an explainer: looks up every 10 ms whether it should go on."""

    def run(_: bytes, check: Callable[[], None]) -> Answer:
        ran.append("begun")
        for _step in range(round(seconds * 100)):
            check()
            time.sleep(0.01)
        ran.append("ended")
        return Answer(FakeClassifier(), np.zeros(3, np.float32), 0, 0, seconds, 1)

    return run


def test_an_explanation_stops_when_its_deadline_passes() -> None:
    ran: list[str] = []

    async def scenario() -> list[Answer | BaseException]:
        async with running(FakeClassifier()) as engine:
            return await ends(engine.submit([image(0)], deadline=soon(0.1), run=run_for(5, ran), passes=1))

    [outcome] = asyncio.run(scenario())
    assert isinstance(outcome, DeadlineExceededError)
    assert ran == ["begun"]


def test_an_explanation_runs_alone_and_holds_up_no_image_queued_before_it() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        async with blocked(max_batch_size=4) as (engine, fake):
            before = engine.submit([image(2), image(3)], deadline=soon())
            explained = engine.submit([image(4)], deadline=soon(), run=run_for(0.05, []), passes=5)
            after = engine.submit([image(5)], deadline=soon())
            fake.gate.set()
            await ends([*before, *explained, *after])
            return fake.seen, fake.batches

    seen, batches = asyncio.run(scenario())
    assert seen[-3:] == [2, 3, 5]
    assert batches[-2:] == [2, 1]


def test_the_passes_of_an_explanation_count_in_the_wait() -> None:
    async def scenario() -> tuple[float, float, float]:
        fake = FakeClassifier(seconds_per_image=0.02)
        async with running(fake) as engine:
            idle = engine.estimated_wait_seconds()
            first = engine.submit([image(0)], deadline=soon(), run=run_for(0.2, []), passes=10)
            busy = engine.estimated_wait_seconds()
            with pytest.raises(OverloadedError):
                engine.submit([image(0)], deadline=soon(0.1), run=run_for(0.2, []), passes=10)
            await ends(first)
            return idle, busy, engine.estimated_wait_seconds()

    idle, busy, after = asyncio.run(scenario())
    assert busy == pytest.approx(11 * idle)
    assert after == pytest.approx(idle, rel=0.5)
