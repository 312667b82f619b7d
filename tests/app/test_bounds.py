"""What a request may cost, whatever its bytes: memory by a formula of the settings (docs/security.md), and little time."""

import base64
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.errors import UndecodableImageError
from app.image import decode, fit
from app.spec import InputSpec
from benchmarks.faults.proc import status_of
from tests.hostile import files_in_pieces, largest_images, odd_metadata, polyglots
from tests.images import raw_tiff
from tests.models import png
from tests.service import ROOT, serve

pytestmark = [
    pytest.mark.filterwarnings("ignore:::PIL"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc"),
]

MAX_PIXELS = 2_000_000
MAX_BYTES = 32 * 2**20
SPEC = InputSpec(height=224, width=224, channels=3)
RED = png((255, 0, 0))
BYTES_PER_PIXEL = 32  # docs/security.md
BYTES_PER_BODY_BYTE = 20
# Each file in a process of its own, forked when all is loaded: what one leaves behind hides nothing of the next.
MEASURE = """
import json, os, pathlib, re, sys, time
from app.errors import ConvServeError
from app.image import decode, fit
from app.spec import InputSpec
spec = InputSpec(height=224, width=224, channels=3)
kilobytes = lambda name: int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    if os.fork():
        os.wait()
        continue
    before, begun = kilobytes("VmRSS"), time.process_time()
    try:
        fit(decode(data, spec), spec)
        status = 200
    except ConvServeError as error:
        status = error.status
    seconds = time.process_time() - begun
    print(json.dumps([path.name, status, 1024 * (kilobytes("VmHWM") - before), seconds]), flush=True)
    os._exit(0)
"""


def costs(folder: Path, files: dict[str, bytes]) -> dict[str, tuple[int, int, float]]:
    """Of each file: the status it ends with, the peak of memory beside its bytes, the seconds of processor time."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(folder)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: (status, grown, seconds) for name, status, grown, seconds in map(json.loads, lines)}


def test_the_largest_image_of_each_kind_stays_within_the_bytes_per_pixel(tmp_path: Path) -> None:
    found = costs(tmp_path, largest_images(MAX_PIXELS))
    print({name: round(grown / MAX_PIXELS, 1) for name, (_, grown, _) in found.items()})
    assert {status for status, *_ in found.values()} == {200}
    assert found.keys() == largest_images(1600).keys()
    for name, (_, grown, _) in found.items():
        assert grown < BYTES_PER_PIXEL * MAX_PIXELS, f"{name}: {grown / MAX_PIXELS:.1f} bytes per pixel"


def test_a_file_of_countless_pieces_takes_little_time_and_memory(tmp_path: Path) -> None:
    found = costs(tmp_path, files_in_pieces(MAX_BYTES))
    print(found)
    assert found.keys() == files_in_pieces(1000).keys()
    for name, (status, grown, seconds) in found.items():
        assert status in (200, 422), name
        assert seconds < 2, f"{name}: {seconds:.1f} s"
        assert grown < 3 * MAX_BYTES, f"{name}: {grown:,} bytes"


def test_a_tile_larger_than_an_image_may_be_is_refused() -> None:
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000}
    with pytest.raises(UndecodableImageError, match="too large"):
        decode(raw_tiff(tags, bytes(64)), SPEC)


@pytest.mark.parametrize("kind", files_in_pieces(1000))
def test_as_many_pieces_as_files_really_have_are_taken(kind: str) -> None:
    fit(decode(files_in_pieces(1200)[kind], SPEC), SPEC)


@pytest.mark.parametrize("kind", polyglots() | odd_metadata())
def test_a_picture_that_is_something_else_too_or_lies_about_itself_is_a_picture(client: httpx.Client, kind: str) -> None:
    answer = client.post("/predict", content=(polyglots() | odd_metadata())[kind])
    assert answer.json()["predictions"][0]["label"] == "red"


def part(name: str, content: bytes) -> bytes:
    return f'--cut\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode() + content + b"\r\n"


FORM = {"content-type": "multipart/form-data; boundary=cut"}
JSON = {"content-type": "application/json"}
INFER = "/v2/models/colours/infer"


def infer(data: bytes) -> bytes:
    return b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,8,8,3],"data":' + data + b"}]}"


def largest_bodies(size: int) -> dict[str, tuple[str, dict[str, str], bytes]]:
    """Path, headers and body of the requests that take the most memory for their `size` bytes."""
    tiny = part("files", b"x")
    return {
        "raw": ("/predict", {}, RED.ljust(size, b"\0")),
        "form": ("/predict", FORM, part("file", RED.ljust(size - 200, b"\0")) + b"--cut--\r\n"),
        "form of tiny parts": ("/predict/batch", FORM, tiny * (size // len(tiny) - 1) + b"--cut--\r\n"),
        "form of line ends": ("/predict", FORM, part("file", b"\r\n--cu" * ((size - 200) // 6)) + b"--cut--\r\n"),
        "form of part headers": ("/predict", FORM, b"--cut\r\n" + b"a:b\r\n" * (size // 5 - 10)),
        "JSON": ("/predict", JSON, b'{"image":"' + base64.b64encode(RED.ljust(size // 4 * 3 - 60, b"\0")) + b'"}'),
        "JSON of lists": ("/predict", JSON, b'{"image":[' + b"[]," * (size // 3 - 10) + b"[]]}"),
        "JSON of objects": ("/predict", JSON, b'{"image":[' + b"{}," * (size // 3 - 10) + b"{}]}"),
        "V2 numbers": (INFER, JSON, infer(b"[" + b"1," * (size // 2 - 100) + b"1]")),
        "V2 fractions": (INFER, JSON, infer(b"[" + b".5e1,".replace(b".", b"1.") * (size // 6 - 100) + b"1]")),
        "V2 lists": (INFER, JSON, infer(b"[" + b"[]," * (size // 3 - 100) + b"1]")),
        "V2 objects": (INFER, JSON, infer(b"[" + b"{}," * (size // 3 - 100) + b"1]")),
    }


def test_a_body_of_any_form_takes_a_small_multiple_of_its_bytes(colours: Path) -> None:
    size = 8 * 2**20
    with serve(model=colours, threads=1, max_body_bytes=size) as process, process.client() as client:
        client.post("/predict", content=RED)
        for kind, (path, headers, body) in largest_bodies(size).items():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak starts anew
            before = status_of(process.pid, "VmHWM")
            status = client.post(path, headers=headers, content=body).status_code
            factor = (status_of(process.pid, "VmHWM") - before) / size
            print(kind, status, round(factor, 1))
            assert status in (200, 400, 413, 415), kind
            assert factor < BYTES_PER_BODY_BYTE, kind


def test_a_service_under_the_worst_images_stays_within_the_formula(colours: Path) -> None:
    threads, max_body_bytes, max_queue_bytes = 2, 2**20, 4 * 2**20
    image = largest_images(MAX_PIXELS)["webp-lossless"]
    with serve(
        model=colours, threads=threads, max_pixels=MAX_PIXELS, max_body_bytes=max_body_bytes, max_queue_bytes=max_queue_bytes
    ) as process:
        with process.client() as client:
            client.post("/predict", content=RED)
            before = status_of(process.pid, "VmHWM")
            with ThreadPoolExecutor(8) as pool:
                statuses = set(pool.map(lambda _: client.post("/predict", content=image).status_code, range(24)))
        assert statuses <= {200, 503}
        assert 200 in statuses
        bound = threads * BYTES_PER_PIXEL * MAX_PIXELS + max_queue_bytes + BYTES_PER_BODY_BYTE * max_body_bytes
        assert status_of(process.pid, "VmHWM") - before < bound
