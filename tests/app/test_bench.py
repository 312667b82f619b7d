"""`python -m app bench` against a real service, and its loops against a service of known speed."""

import asyncio
import re
from pathlib import Path

import pytest

from app.bench import Run, closed_loop, find_rate, open_loop
from tests.app.test_keys import line
from tests.models import png, write_colour_model
from tests.service import run_app, serve

QUICK = ("--seconds", "0.1", "--clients", "4", "--p99-ms", "5000")


class Shop:
    """Serves one at a time, each for 5 ms; refuses whoever would be the `room`-th in the queue."""

    def __init__(self, room: int = 1_000_000) -> None:
        self._counter, self._room, self._queue = asyncio.Lock(), room, 0

    async def __call__(self, image: bytes) -> int:
        if self._queue >= self._room:
            return 503
        self._queue += 1
        async with self._counter:
            await asyncio.sleep(0.005)
        self._queue -= 1
        return 200


def rate_in(output: str) -> float:
    found = re.search(r"one replica bears ([\d,.]+) images/s", output)
    assert found, output
    return float(found[1].replace(",", ""))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures" / "red"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(png((255, 0, 0)))
    (folder / "notes.txt").write_text("no image")
    return folder.parent


def test_a_running_service_is_measured_with_the_users_images(colours: Path, pictures: Path) -> None:
    with serve(model=colours, threads=2) as process:
        ended = run_app("bench", process.url, "--images", str(pictures), "--load", "1e6", "--price", "0.1", *QUICK)
        assert process.metric("convserve_images_total", outcome="classified") > 100
        assert process.metric("convserve_images_total", outcome="failed") == 0
    assert ended.returncode == 0, ended.stderr
    rate = rate_in(ended.stdout)
    assert "1 images, 0.1 kB on average" in ended.stdout
    assert "CONVSERVE_THREADS=2 " in ended.stdout
    assert f"CONVSERVE_MAX_QUEUE_SIZE={-(-rate * 5 // 1):.0f} " in ended.stdout
    assert f"replicas: {-(-1e6 // rate):.0f} " in ended.stdout
    cost = re.search(r"cost: ([\d.]+) per million", ended.stdout)
    assert cost
    assert float(cost[1]) == pytest.approx(0.1e6 / 3600 / rate, abs=0.006)


def test_the_engine_is_measured_without_http_with_the_models_own_images(colours: Path) -> None:
    ended = run_app("bench", "--in-process", *QUICK, model=colours, threads=1)
    assert ended.returncode == 0, ended.stderr
    assert "colours 1 in this process, without HTTP, 1 threads" in ended.stdout
    assert rate_in(ended.stdout) > 100


def test_an_address_where_nobody_answers_is_told_in_one_sentence(pictures: Path) -> None:
    ended = run_app("bench", "http://127.0.0.1:9", "--images", str(pictures))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch("convserve: http://127.0.0.1:9/health does not answer .*\n", ended.stderr)


def test_a_folder_without_images_is_told_in_one_sentence(tmp_path: Path) -> None:
    ended = run_app("bench", "http://127.0.0.1:9", "--images", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"convserve: {tmp_path} holds no image")


def test_images_that_are_all_refused_are_told_by_their_status(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "keys").write_text(line("shop", "secret"))
    with serve(model=write_colour_model(tmp_path / "model.onnx"), api_keys_file=tmp_path / "keys") as process:
        ended = run_app("bench", process.url, "--images", str(pictures), *QUICK)
        assert " × 401" in ended.stdout
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)


def test_a_closed_loop_finds_the_speed_of_the_shop() -> None:
    async def four_clients() -> Run:
        return await closed_loop(Shop(), [b""], 4, 0.5)

    run = asyncio.run(four_clients())
    assert 100 < run.rate <= 200
    assert run.quantile_ms(0.5) == pytest.approx(4 * 1000 / run.rate, rel=0.3)  # each of four waits for the other three


def test_an_open_loop_counts_from_when_the_image_was_due() -> None:
    async def twice_too_fast() -> Run:
        return await open_loop(Shop(), [b""], 400, 0.5)

    run = asyncio.run(twice_too_fast())
    assert len(run.latencies) == 200
    assert run.quantile_ms(1) > 400  # the last was due after 0.5 s and served after 1 s or more


def test_the_rate_found_keeps_the_target_and_is_near_what_the_shop_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    async def find() -> float:
        return await find_rate(Shop(), [b""], 190, 100, 0.3)

    assert 80 < asyncio.run(find()) < 210
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_rate_at_which_some_are_refused_does_not_count() -> None:
    async def find() -> float:
        return await find_rate(Shop(room=1), [b""], 10_000, 1000, 0.1)

    assert asyncio.run(find()) < 1000


def test_quantiles_are_of_the_nearest_rank() -> None:
    run = Run(latencies=[0.004, 0.001, 0.003, 0.002])
    assert (run.quantile_ms(0.5), run.quantile_ms(0.99)) == (2, 4)
    assert Run().quantile_ms(0.5) == float("inf")
