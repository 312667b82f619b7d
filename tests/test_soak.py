"""The soak in its short form, and its arithmetic on known numbers."""

from pathlib import Path

import numpy as np
import pytest

from app.bench import HttpTarget
from benchmarks.soak import Ask, Sender, run, slope
from tests.service import ROOT


def test_a_short_soak_loses_no_answer_and_mixes_none_up(tmp_path: Path) -> None:
    told = run(ROOT / "models" / "digits.onnx", 0.2, tmp_path)
    assert (told["lost"], told["wrong"]) == (0, {})
    assert told["sent"].keys() == {"one", "batch", "leaves", "empty", "text", "truncated", "bomb"}
    assert told["sent"]["one"] > 100
    assert len(told["slices"]) == 6
    assert (tmp_path / "soak.json").exists()
    assert (tmp_path / "soak.svg").read_text().count("<polyline") == 5


@pytest.mark.parametrize("per_hour", [0.0, 30.0])
def test_the_slope_of_a_leak_is_found_within_its_interval(per_hour: float) -> None:
    random = np.random.default_rng(3)
    samples = [(second, 100 + per_hour * second / 3600 + float(random.normal())) for second in np.arange(0.0, 3600.0, 5.0)]
    rate, low, high = slope(samples)
    assert low < per_hour < high
    assert rate == pytest.approx(per_hour, abs=1)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (
            b'{"request_id":"a","predictions":[{"class_index":1,"probability":0.700001},{"class_index":0,"probability":0.3}]}',
            "",
        ),
        (b'{"request_id":"b","predictions":[{"class_index":1,"probability":0.7}]}', "another request's answer"),
        (b'{"request_id":"a","predictions":[{"class_index":0,"probability":0.3}]}', "not the answer that the image gets alone"),
        (
            b'{"request_id":"a","predictions":[{"class_index":1,"probability":0.6999}]}',
            "not the answer that the image gets alone",
        ),
    ],
)
def test_a_wrong_answer_is_seen(answer: bytes, fault: str) -> None:
    sender = Sender(HttpTarget("http://127.0.0.1:9"), [], np.array([[0.3, 0.7]]))
    assert sender._fault(Ask("one", b"", pictures=(0,)), 200, answer, "a") == fault
