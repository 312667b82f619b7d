"""Who runs: how each is installed, started and asked, and the settings that serve it best on a CPU."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.settings import Settings

ROOT = Path(__file__).parents[2]
PEERS_FOLDER = Path(__file__).with_name("peers")
COMMON = ("onnxruntime==1.32.0", "pillow==13.0.0", "numpy==2.4.6")
UVLOOP = ("uvloop==0.23.0", "httptools==0.9.0", "python-multipart==0.0.34")
FASTAPI = ("fastapi==0.165.0", "starlette==1.10.0", "uvicorn==0.54.0", *UVLOOP)

Headers = dict[str, str]
Variables = Mapping[str, str | int]
Top = list[tuple[int, float]]  # class index, probability; best first


@dataclass(frozen=True)
class Contender:
    """A server. `settings` are environment variables by model: for throughput, and for the latency of one client alone."""

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]  # {python}, {bin}, {port}, and each setting as {BENCH_…}
    path: str
    pack: Callable[[bytes], tuple[Headers, bytes]]
    read: Callable[[Mapping[str, str], bytes], Top]  # response headers, body
    settings: Mapping[str, tuple[Variables, Variables]]
    variables: Variables = field(default_factory=dict)


def _set(workers: int, threads: int, batch: int = 1, wait_ms: float = 0, **more: str | int) -> Variables:
    """The variables that peers/common.py reads, and a peer's own."""
    numbers: dict[str, str | int] = {
        "BENCH_WORKERS": workers,
        "BENCH_THREADS": threads,
        "BENCH_BATCH": batch,
        "BENCH_WAIT_MS": str(wait_ms),
    }
    return numbers | {f"BENCH_{name.upper()}": value for name, value in more.items()}


def media_type(image: bytes) -> str:
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


def pack_raw(image: bytes) -> tuple[Headers, bytes]:
    return {"Content-Type": media_type(image)}, image


def pack_form(name: str) -> Callable[[bytes], tuple[Headers, bytes]]:
    """As multipart/form-data, with the image in the field `name`."""

    def pack(image: bytes) -> tuple[Headers, bytes]:
        head = f'--b0undary\r\nContent-Disposition: form-data; name="{name}"; filename="image"\r\n'
        head += f"Content-Type: {media_type(image)}\r\n\r\n"
        return {"Content-Type": "multipart/form-data; boundary=b0undary"}, head.encode() + image + b"\r\n--b0undary--\r\n"

    return pack


def pack_base64(image: bytes) -> tuple[Headers, bytes]:
    """As Open Inference Protocol JSON."""
    data = [base64.b64encode(image).decode()]
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}, "data": data}
    return {"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}).encode()


def pack_triton(image: bytes) -> tuple[Headers, bytes]:
    """Triton's raw binary request: the body is the one input."""
    return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}, image


def read_ours(_: Mapping[str, str], body: bytes) -> Top:
    return [(one["class_index"], one["probability"]) for one in json.loads(body)["predictions"]]


def read_peer(_: Mapping[str, str], body: bytes) -> Top:
    answer: Any = json.loads(body)
    answer = answer[0] if isinstance(answer, list) else answer
    return list(zip(answer["classes"], answer["probabilities"], strict=True))


def read_tensor(_: Mapping[str, str], body: bytes) -> Top:
    return _top(json.loads(body)["outputs"][0]["data"])


def read_triton(headers: Mapping[str, str], body: bytes) -> Top:
    length = {name.lower(): value for name, value in headers.items()}["inference-header-content-length"]
    return _top(np.frombuffer(body[int(length) :], np.float32).tolist())


def _top(numbers: list[float]) -> Top:
    return list(zip(map(int, numbers[:5]), numbers[5:], strict=True))


UVICORN = ("{bin}/uvicorn", "tutorial:app", "--host=127.0.0.1", "--port={port}", "--workers={BENCH_WORKERS}")
V2_PATH = "/v2/models/classifier/infer"
PEERS = (
    Contender(
        name="Mosec",
        requirements=("mosec==0.9.8", *COMMON),
        command=(
            "{python}",
            "mosec_server.py",
            "--port={port}",
            "--address=127.0.0.1",
            "--timeout=60000",
            "--log-level=warning",
        ),
        path="/inference",
        pack=pack_raw,
        read=read_peer,
        settings={"imagenet": (_set(2, 1, 4, 1), _set(1, 2)), "digits": (_set(2, 1, 16, 1), _set(2, 1))},
    ),
    Contender(
        name="tutorial",
        requirements=(*FASTAPI, *COMMON),
        command=(*UVICORN, "--no-access-log", "--log-level=warning"),
        path="/predict",
        pack=pack_form("file"),
        read=read_peer,
        settings={
            "imagenet": (_set(1, 1, in_loop=0), _set(1, 0, in_loop=1)),
            "digits": (_set(2, 1, in_loop=1), _set(1, 0, in_loop=1)),
        },
    ),
    Contender(
        name="LitServe",
        requirements=("litserve==0.2.19", *FASTAPI, *COMMON),
        command=("{python}", "litserve_server.py"),
        path="/predict",
        pack=pack_form("request"),
        read=read_peer,
        settings={
            "imagenet": (_set(2, 1, 8, 5, api_servers=2), _set(1, 2, api_servers=1)),
            "digits": (_set(2, 1, 8, 5, api_servers=2), _set(1, 1, api_servers=1)),
        },
    ),
    Contender(
        name="BentoML",
        requirements=("bentoml==1.4.39", *COMMON),
        command=("{bin}/bentoml", "serve", "bentoml_service:{BENCH_SERVICE}", "--host=127.0.0.1", "--port={port}"),
        path="/predict",
        pack=pack_form("images"),
        read=read_peer,
        settings={
            "imagenet": (_set(1, 2, 4, service="Batching"), _set(1, 2, service="Single")),
            "digits": (_set(2, 1, 16, service="Batching"), _set(1, 1, service="Single")),
        },
        variables={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Contender(
        name="MLServer",
        # Newer uvloop: its workers die of "no current event loop".
        requirements=("mlserver==1.7.1", "uvloop==0.21.0", "fastapi==0.115.14", *COMMON),
        command=("{python}", "mlserver_model.py"),
        path=V2_PATH,
        pack=pack_base64,
        read=read_tensor,
        settings={"imagenet": (_set(2, 1, 8, 5), _set(0, 2)), "digits": (_set(2, 1, 8, 5), _set(0, 1))},
    ),
    Contender(
        name="PyTriton",
        requirements=("nvidia-pytriton==0.7.0", "onnxruntime==1.32.0", "pillow==13.0.0", "numpy==1.26.4"),
        command=("{python}", "pytriton_server.py"),
        path=V2_PATH,
        pack=pack_triton,
        read=read_triton,
        settings={"imagenet": (_set(2, 1, 4, 1), _set(1, 2)), "digits": (_set(1, 1, 16, 1), _set(1, 1))},
        # Its stub must find the interpreter's own libpython, not Debian's older one.
        variables={"LD_LIBRARY_PATH": "{base}/lib"},
    ),
)


def ours(name: str = "ours", **changes: str | int) -> Contender:
    """ConvServe as it is installed to serve, but for its log; `changes` are settings."""
    given = {"host": "127.0.0.1", "log_level": "warning", "drain_seconds": 0, **changes}
    return Contender(
        name=name,
        requirements=("-r", str(ROOT / "requirements" / "serve.txt")),
        command=("{python}", "-m", "app"),
        path="/predict",
        pack=pack_raw,
        read=read_ours,
        settings={},
        variables={f"CONVSERVE_{key.upper()}": value for key, value in given.items()},
    )


def of_model(model: str, peers: tuple[str, ...]) -> list[Contender]:
    """All that compare with `ours` on a model; the bundled one comes in both its forms."""
    chosen = [peer for peer in PEERS if peer.name in peers]
    if model == "imagenet":
        return [*chosen, ours("ours as shipped")]
    return [*chosen, ours("ours, 2 workers", workers=2)] if "workers" in Settings.model_fields else chosen
