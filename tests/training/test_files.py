"""Files on a disk that is full, and in places that are none."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.training.test_report import REPORT
from training.__main__ import main
from training.checkpoint import Checkpoint
from training.errors import InputError, TrainingError
from training.files import write_whole
from training.report import write_report

OLD = b"what was there before"


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 100 bytes: not even what pytest prints to, so keep the block short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.json", lambda out: write_whole(out, bytes(1000))),
        ("m.html", lambda out: write_report(REPORT, out.with_suffix(".onnx"))),
        ("m.onnx.checkpoint", lambda out: Checkpoint(out, "settings").save({"weights": torch.zeros(1000)})),
    ],
)
def test_what_does_not_fit_on_the_disk_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    (tmp_path / name).write_bytes(OLD)
    with full_disk(), pytest.raises(TrainingError, match=r"cannot be written: File too large$") as caught:
        write(tmp_path / name)
    assert caught.value.exit_code == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, OLD)]


def test_a_file_is_not_put_in_the_place_of_a_folder_or_a_device(tmp_path: Path) -> None:
    for place, kind in ((tmp_path, "folder"), (Path("/dev/full"), "device")):
        with pytest.raises(InputError, match=f"is a {kind}: name a file to write"):
            write_whole(place, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_json_can_be_written_to_a_device_and_its_failure_is_one_sentence(
    digits: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), str(digits), "--json", "/dev/full"]) == 1
    assert capsys.readouterr().err == "error: /dev/full cannot be written: No space left on device\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_folder_that_nobody_can_write_to_is_refused(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(digits), "--recipe", "digits", "--out", "/proc/m.onnx"]) == 2
    assert "error: /proc cannot be written to" in capsys.readouterr().err
