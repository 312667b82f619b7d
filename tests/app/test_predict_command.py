"""`python -m app predict`: lines for a folder of images, by a model file and by a service, killed and resumed."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.lines import one_line
from tests.models import colour_probabilities, colour_spec, png, write_colour_model
from tests.service import ROOT, ServiceProcess, environment, run_app


def folder_of(path: Path, images: int = 40) -> Path:
    """A folder of folders of reds, one for each level."""
    for red in range(images):
        child = path / f"{red % 3}"
        child.mkdir(parents=True, exist_ok=True)
        (child / f"{red}.png").write_bytes(png((red % 256, 0, 0)))
    return path


def predict(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = run_app("predict", *map(str, arguments))
    assert ended.returncode == code, ended.stderr
    return ended


def rows(text: str) -> dict[str, dict[str, Any]]:
    """JSON lines by path; no path twice."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({line["path"] for line in lines}) == len(lines)
    return {line["path"]: line for line in lines}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("images"))


@pytest.fixture(params=["a model file", "a service"])
def source(request: pytest.FixtureRequest, colours: Path, service: ServiceProcess) -> str:
    return str(colours) if request.param == "a model file" else service.url


def test_every_image_of_a_folder_gets_its_line(source: str, images: Path) -> None:
    found = rows(predict(source, images, "--top-k", "3").stdout)
    assert set(found) == {str(path) for path in images.rglob("*.png")}
    for path, line in found.items():
        expected = colour_probabilities((int(Path(path).stem), 0, 0))
        given = {one["label"]: one["probability"] for one in line["predictions"]}
        assert [given[label] for label in ("red", "green", "blue")] == pytest.approx(expected, abs=1e-5)
        assert line["accepted"] is (max(expected) >= 0.6)
        assert line["model"] == "colours 1"


def test_csv_has_a_header_and_a_row_for_each_image(colours: Path, images: Path) -> None:
    table = list(csv.DictReader(io.StringIO(predict(colours, images, "--csv", "--top-k", "2").stdout)))
    assert len(table) == 40
    row = next(row for row in table if row["path"].endswith("/39.png"))
    assert (row["model"], row["accepted"], row["error"], row["label_1"]) == ("colours 1", "true", "", "red")
    assert float(row["probability_1"]) == pytest.approx(colour_probabilities((39, 0, 0))[0], abs=1e-5)
    assert row["label_2"] in ("green", "blue")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_images_that_fail_are_listed_and_the_exit_code_says_so(source: str, tmp_path: Path, form: str) -> None:
    (tmp_path / "good.png").write_bytes(png((255, 0, 0)))
    (tmp_path / "cut.png").write_bytes(png((255, 0, 0))[:50])
    (tmp_path / "text\n.jpg").write_text("no image, and a line break in its name")
    (tmp_path / ".hidden").write_text("not looked at")
    missing = tmp_path / "missing.png"
    ended = predict(source, tmp_path, missing, form, code=3)
    table = csv.DictReader(io.StringIO(ended.stdout))
    found = rows(ended.stdout) if form == "--json" else {row["path"]: row for row in table}
    errors = {Path(path).name: line["error"] for path, line in found.items() if line.get("error")}
    assert set(errors) == {"cut.png", "text\\n.jpg", "missing.png"}
    assert "damaged" in errors["cut.png"]
    assert "not an image" in errors["text\\n.jpg"]
    assert errors["missing.png"] == "No such file or directory"
    assert "3 failed" in ended.stderr


def test_an_image_that_the_model_fails_on_costs_no_other_its_answer(colours: Path, tmp_path: Path) -> None:
    folder_of(tmp_path, images=5)
    (tmp_path / "white.png").write_bytes(png((255, 255, 255)))
    found = rows(predict(colours, tmp_path, code=3).stdout)
    assert [path for path, line in found.items() if "error" in line] == [str(tmp_path / "white.png")]
    assert "the model fails on it" in found[str(tmp_path / "white.png")]["error"]


def test_a_name_that_is_no_utf8_is_written_as_escapes(colours: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes(png((255, 0, 0)))
    assert list(rows(predict(colours, tmp_path).stdout)) == [f"{tmp_path}/\\udcff.png"]
    assert one_line(os.fsdecode(name)).isprintable()


def slow_model(path: Path) -> Path:
    """About 10 ms an image, so that there is time to be killed."""
    return write_colour_model(path / "slow.onnx", repeats=4)


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_killed_and_resumed_it_loses_nothing_and_repeats_nothing(tmp_path: Path, form: str) -> None:
    model, folder, out = slow_model(tmp_path), folder_of(tmp_path / "images", 400), tmp_path / "images" / "out"
    command = [sys.executable, "-m", "app", "predict", str(model), str(folder), form, "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") > 60):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    left = out.read_bytes()
    assert 60 < left.count(b"\n") < 400
    out.write_bytes(left + left.splitlines()[-1][:-9])  # as if killed within a write
    (folder / "new.png").write_bytes(png((0, 0, 255)))
    predict(model, folder, form, "--out", out, "--resume")
    assert out.read_bytes().startswith(left)
    text = out.read_text()
    lines = [row["path"] for row in csv.DictReader(io.StringIO(text))] if form == "--csv" else list(rows(text))
    assert len(lines) == 401
    assert set(lines) == {str(path) for path in folder.rglob("*.png")}
    finished = out.read_bytes()
    predict(model, folder, form, "--out", out, "--resume")
    assert out.read_bytes() == finished


def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    model, folder, out = slow_model(tmp_path), folder_of(tmp_path / "images", 300), tmp_path / "out"
    command = [sys.executable, "-m", "app", "predict", str(model), str(folder), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    while not (out.exists() and out.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    # Every process of the run holds its standard error: that it ends says that they are gone.
    process.communicate(timeout=30)


def test_a_file_that_exists_is_not_touched_without_resume(colours: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    ended = predict(colours, images, "--out", out, code=1)
    assert "out.jsonl exists: remove it, or add --resume" in ended.stderr
    assert out.read_text() == "mine\n"
    ended = predict(colours, images, "--out", out, "--resume", code=1)
    assert "line 1 is not of this command" in ended.stderr
    assert out.read_text() == "mine\n"


def test_another_models_file_is_not_resumed(colours: Path, images: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out.jsonl", write_colour_model(tmp_path / "other.onnx", colour_spec(version="2"))
    predict(colours, images, "--out", out)
    assert "line 1 is of colours 1, not of colours 2" in predict(other, images, "--out", out, "--resume", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere.onnx", "docs"], 1, "convserve: model file nowhere.onnx does not exist\n"),
        (["http://127.0.0.1:9", "docs"], 1, "convserve: no answer: "),
        (["models/digits.onnx", "docs", "--resume"], 2, "--resume needs --out"),
        (["models/digits.onnx", "docs", "--top-k", "0"], 2, "invalid"),
        (["models/digits.onnx"], 2, "required: paths"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(arguments: list[str], code: int, sentence: str) -> None:
    ended = predict(*arguments, code=code)
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
