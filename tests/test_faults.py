"""Each fault of `make faults` in its short form: the service keeps what benchmarks/faults promises of it."""

import sys
from importlib import import_module

import pytest

from benchmarks.faults.__main__ import FAULTS
from benchmarks.faults.proc import SkippedError
from tests.service import ROOT

ELSEWHERE = {"worker_killed", "session_raises"}  # tests/app/test_workers.py, tests/app/test_engine.py

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="breaks the service by means of Linux")


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ELSEWHERE])
def test_the_service_bears(name: str) -> None:
    try:
        import_module(f"benchmarks.faults.{name}").run(short=True)
    except SkippedError as reason:
        pytest.skip(str(reason))


def test_every_fault_has_its_file() -> None:
    files = {path.stem for path in (ROOT / "benchmarks" / "faults").glob("*.py")}
    assert files >= {*FAULTS, "__main__", "shared", "fragile", "skewed"}
