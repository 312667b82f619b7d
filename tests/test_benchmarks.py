"""The benchmark against other servers: its table on known visits, and its measuring of a real service."""

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.serving.contenders import pack_raw, read_ours
from benchmarks.serving.measure import Server, press
from benchmarks.serving.table import Visit, format_tables
from tests.models import png
from tests.service import ROOT, environment

RED = png((255, 0, 0))


def visit(number: int, pair: int, contender: str, rate: float, setting: str = "") -> Visit:
    load = {"rate": rate, "p50_ms": 1.0, "p99_ms": 2.0, "errors": 0, "server_cores": 1.5, "wrk_cores": 0.1, "pss_mb": 100.0}
    cells = {"photo-32": load}
    return {
        "round": number,
        "pair": pair,
        "contender": contender,
        "setting": setting,
        "model": "imagenet",
        "cold_seconds": 0.5,
        "cells": cells,
    }


# In the second round the machine is half as fast, and within the first it slows down between the pairs.
VISITS = [
    visit(1, 0, "Mosec", 100, "throughput"),
    visit(1, 0, "ours", 110),
    visit(1, 1, "Mosec", 40, "latency"),
    visit(1, 1, "ours", 88),
    visit(1, 2, "ours as shipped", 120),
    visit(1, 2, "ours", 80),
    visit(2, 0, "Mosec", 50, "throughput"),
    visit(2, 0, "ours", 60),
    visit(2, 1, "Mosec", 20, "latency"),
    visit(2, 1, "ours", 40),
    visit(2, 2, "ours as shipped", 60),
    visit(2, 2, "ours", 40),
]


def row(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_peer_counts_with_its_better_setting_against_the_neighbouring_run_of_ours() -> None:
    equal, _, _ = format_tables(VISITS).split("###")[1:]
    assert row(equal, "Mosec")[0] == "Mosec (throughput)"
    assert row(equal, "Mosec")[1] == "75.0 (50.0–100.0)"
    assert row(equal, "Mosec")[-1] == "1.15 (1.10–1.20)"
    assert "latency" not in equal
    assert "as shipped" not in equal


def test_what_is_shipped_is_compared_apart_and_through_the_neighbours() -> None:
    _, shipped, _ = format_tables(VISITS).split("###")[1:]
    # Round 1: 1.5 × ours beside it, and Mosec is 1 / 1.1 of ours beside it; round 2: 1.5 × 1.2.
    assert row(shipped, "Mosec")[-1] == "1.73 (1.65–1.80)"
    assert "| ours |" not in shipped


def test_a_server_that_answered_nothing_is_shown_without_a_ratio() -> None:
    equal = format_tables([visit(1, 0, "Mosec", 0, "throughput"), visit(1, 0, "ours", 110)])
    assert row(equal, "Mosec")[1:2] + row(equal, "Mosec")[-1:] == ["0.0 (0.0–0.0)", ""]


@pytest.fixture
def server(colours: Path, tmp_path: Path) -> Server:
    port = 18630
    variables = {
        name: value
        for name, value in environment(model=colours, host="127.0.0.1", port=port, drain_seconds=0).items()
        if name.startswith("CONVSERVE_")
    }
    return Server([sys.executable, "-m", "app"], variables, ROOT, f"http://127.0.0.1:{port}/predict", tmp_path / "log")


def test_a_real_service_is_started_pressed_and_ended(server: Server, tmp_path: Path) -> None:
    headers, body = pack_raw(RED)
    (tmp_path / "body").write_bytes(body)
    try:
        assert 0.1 < server.wait_for_answer(headers, body) < 60
        assert read_ours(*server.ask(headers, body))[0][0] == 0
        assert server.pss_mb() > 20
        if not shutil.which("wrk"):
            pytest.skip("wrk is not installed")
        load = press(server, headers, tmp_path / "body", 4, 1)
        server.drain()
    finally:
        server.close()
    assert load["rate"] > 50
    assert load["errors"] == 0
    assert 0 < load["p50_ms"] <= load["p99_ms"] <= load["max_ms"]
    assert load["server_cores"] > 0
    assert load["wrk_cores"] > 0
    assert load["pss_mb"] > 20
    with pytest.raises(OSError, match="refused"):
        server.ask(headers, body)
