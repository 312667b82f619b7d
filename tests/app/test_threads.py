"""Threads follow the CPU quota that the cgroup's files state."""

import math
import os
from pathlib import Path

import pytest

from app.threads import cpu_quota, usable_threads


def write_v2(root: Path, line: str) -> Path:
    (root / "cpu.max").write_text(line)
    return root


def write_v1(root: Path, quota: str, period: str) -> Path:
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu" / "cpu.cfs_period_us").write_text(period)
    return root


@pytest.mark.parametrize(
    ("line", "quota"),
    [
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("max 100000\n", None),
        ("100000\n", None),
        ("0 100000\n", None),
        ("100000 0\n", None),
        ("", None),
        ("many few\n", None),
    ],
)
def test_the_quota_of_cgroup_v2_is_read(tmp_path: Path, line: str, quota: float | None) -> None:
    assert cpu_quota(write_v2(tmp_path, line)) == quota


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [
        ("400000\n", "100000\n", 4.0),
        ("25000\n", "50000\n", 0.5),
        ("-1\n", "100000\n", None),
        ("", "", None),
        ("1000\n", "", None),
    ],
)
def test_the_quota_of_cgroup_v1_is_read(tmp_path: Path, quota: str, period: str, cores: float | None) -> None:
    assert cpu_quota(write_v1(tmp_path, quota, period)) == cores


def test_cgroup_v2_goes_before_v1(tmp_path: Path) -> None:
    write_v1(tmp_path, "100000", "100000")
    assert cpu_quota(write_v2(tmp_path, "300000 100000")) == 3.0


def test_without_a_cgroup_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert cpu_quota(tmp_path / "missing") is None


def test_a_quota_path_that_is_a_folder_is_no_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").mkdir()
    assert cpu_quota(tmp_path) is None


def test_without_a_quota_all_cores_of_the_affinity_are_used(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_threads(tmp_path) == cores


@pytest.mark.parametrize("quota", [0.01, 0.5, 1.0])
def test_a_quota_of_at_most_one_core_gives_one_thread(tmp_path: Path, quota: float) -> None:
    assert usable_threads(write_v2(tmp_path, f"{round(quota * 100_000)} 100000")) == 1


def test_a_fraction_of_a_core_is_rounded_up(tmp_path: Path) -> None:
    cores = usable_threads(tmp_path)
    assert usable_threads(write_v2(tmp_path, "110000 100000")) == min(cores, math.ceil(1.1))


def test_a_quota_above_the_affinity_adds_no_threads(tmp_path: Path) -> None:
    cores = usable_threads(tmp_path)
    assert usable_threads(write_v2(tmp_path, f"{(cores + 5) * 100_000} 100000")) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_the_affinity_limits_the_threads(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_threads(write_v2(tmp_path, "max 100000")) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_this_machine_gives_at_least_one_thread() -> None:
    assert usable_threads() >= 1
