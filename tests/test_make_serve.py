"""README's first command, as a newcomer runs it: a fresh copy of the repository, `make serve`, one picture."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
MAX_MEGABYTES = 230


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git would commit, and nothing else."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, folder / name)
    return folder


@contextmanager
def make_serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Runs `make serve` on a free port; yields the service's address and what was printed before it served."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONVSERVE_", "MAKE", "MFLAGS"))}
    environment |= {"CONVSERVE_PORT": "0", "CONVSERVE_DRAIN_SECONDS": "0", "CONVSERVE_HOST": "127.0.0.1"}
    command = ["make", "serve", f"PYTHON={sys.executable}"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        printed: list[str] = []
        try:
            for line in process.stdout:
                if line.startswith("{") and "address" in (fields := json.loads(line)):
                    yield f"http://{fields['address']}", printed
                    break
                printed.append(line)
            else:
                pytest.fail("make serve did not serve:\n" + "".join(printed))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.stdout.read()


@pytest.mark.timeout(600)
def test_make_serve_on_a_fresh_clone_answers_a_photograph(clone: Path) -> None:
    with make_serve(clone) as (address, printed):
        picture = (clone / "docs" / "images" / "clock.jpg").read_bytes()
        answer = httpx.post(f"{address}/predict", content=picture, timeout=30)
        assert answer.json()["predictions"][0]["label"] == "analog clock"
        assert any("Installing" in line for line in printed)

    installed = [file for file in (clone / ".venv").rglob("*") if file.is_file() and not file.is_symlink()]
    assert sum(file.stat().st_blocks * 512 for file in installed) < MAX_MEGABYTES * 2**20
    assert not any(file.name.startswith("torch") for file in (clone / ".venv" / "lib").glob("python*/site-packages/*"))


@pytest.mark.timeout(600)
def test_the_second_make_serve_installs_nothing(clone: Path) -> None:
    with make_serve(clone):
        pass
    with make_serve(clone) as (_, printed):
        assert not any("Installing" in line for line in printed)


def test_make_serve_says_what_is_missing_where_the_python_is_too_old(clone: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)
    outcome = subprocess.run(["make", "serve", "-B", f"PYTHON={old}"], cwd=clone, capture_output=True, text=True, check=False)
    assert outcome.returncode != 0
    assert "Python 3.11 or newer is needed" in outcome.stderr
