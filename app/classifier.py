"""Pixels to probabilities: a model file that has proven itself, in an onnxruntime session.

    file ──session──▶ signature, spec ──goldens through decode, fit, session──▶ warm ──▶ `classifier(batch)`

Any failure on that way raises ModelError with one sentence that names the file.
"""

import hashlib
import math
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.drift import Drift, Window
from app.errors import ConvServeError, ModelError
from app.image import Pixels, decode, fit
from app.spec import Golden, ModelSpec

Probabilities = NDArray[np.float32]
Maps = NDArray[np.float32]
Ranked = list[tuple[int, float]]  # class index, probability; the most probable first
Device = Literal["auto", "cpu", "cuda"]

INPUT = "images"
OUTPUT = "probabilities"
EXPLAIN = "explain"  # optional input, false unless given: whether there are maps
MAPS = "activation_maps"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OTHER_DIGEST = "its SHA-256 is another than CONVSERVE_MODEL_SHA256 or the request says: find out why before you say this one"
# A model faster than this gains nothing from several threads: per call 0.08 instead of 0.09 ms for digits, without spinning,
# but 6.6 instead of 11.6 ms for EfficientNet-Lite0 (2 cores, Zen 3, 2026-11); and calls side by side fight for the interpreter.
QUICK_SECONDS = 0.002
# One faster than this may run on the event loop: to a thread and back takes 70 µs (digits, one client: 3,351 instead of 2,720
# requests/s; Zen 4, 2026-11). A batch of them holds the event loop for some milliseconds.
INSTANT_SECONDS = 0.0005
# What a file may make its loading take, so that a malicious one is refused and takes nothing down.
MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
LOAD_BYTES = 2**30  # and 8 times the file's size
LOAD_SECONDS = 60.0


class Classifier:
    """A loaded model. Calling it is thread-safe; it never blocks on anything but the computation.

    With `threads_alone` it has a second session that computes one call on several threads, for the moments when a single
    image is in flight and the other cores would idle.
    """

    def __init__(self, session: ort.InferenceSession, spec: ModelSpec, sha256: str) -> None:
        self._session = session
        self._session_alone = session
        self.window: Window | None = None  # of what it answered, to be compared with the spec's reference
        self.seconds = math.inf  # that one image takes, where that was measured
        self.spec = spec
        self.sha256 = sha256

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        threads: int = 1,
        threads_alone: int = 1,
        sha256: str = "",
        abandon: Callable[[], None] = lambda: None,
        drift_window: int = 0,
    ) -> Self:
        """Loads, proves and warms the model file at `path`.

        `threads` is the number that one call computes with (onnxruntime's intra-op threads, without spinning);
        `threads_alone` that of a call that is alone, if the model runs on the CPU and is slow enough to gain.
        `abandon` is called from another thread when the file cannot be stopped from computing: it may end the process.
        `drift_window` images are compared with the reference, where the file has one.
        `device` auto takes CUDA where onnxruntime offers it, else the CPU; cuda refuses to fall back.
        A file of another digest than `sha256` is refused before onnxruntime sees it.

        Raises: ModelError.
        """
        try:
            if path.stat().st_size > MAX_FILE_BYTES or not (path.is_file() or path.is_dir()):
                raise ModelError(f"it is no file of at most {MAX_FILE_BYTES:,} bytes")
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if sha256 not in ("", digest):
                raise ModelError(OTHER_DIGEST)
            options, run = _session_options(threads), ort.RunOptions()
            with _limits(LOAD_BYTES + 8 * len(content), options, run, abandon):
                session = _open_session(content, device, options)
                spec = ModelSpec.from_metadata(session.get_modelmeta().custom_metadata_map)
                _check_signature(session, spec)
                classifier = cls(session, spec, digest)
                classifier._prove(run)
                if classifier.provider == CPU:
                    classifier.seconds = classifier._measure(run)
                if threads_alone > threads and classifier.provider == CPU and not classifier.is_quick:
                    options.intra_op_num_threads = threads_alone
                    classifier._session_alone = _open_session(content, device, options)
                    classifier._prove(run, alone=True)
                if drift_window and spec.reference:
                    classifier.window = Window(spec.reference, drift_window)
        except FileNotFoundError as error:
            raise ModelError(f"model file {path} does not exist") from error
        except OSError as error:
            raise ModelError(f"model file {path} cannot be read: {error.strerror}") from error
        except (ModelError, MemoryError) as error:
            raise ModelError(f"model file {path}: {str(error) or 'it takes too much memory'}") from error
        return classifier

    @property
    def provider(self) -> str:
        """The onnxruntime execution provider that really runs the model."""
        return str(self._session.get_providers()[0])

    @property
    def is_quick(self) -> bool:
        """One image is computed within `QUICK_SECONDS`."""
        return self.seconds <= QUICK_SECONDS

    @property
    def is_instant(self) -> bool:
        """One image is computed within `INSTANT_SECONDS`."""
        return self.seconds <= INSTANT_SECONDS

    def __call__(self, batch: Pixels, *, alone: bool = False) -> Probabilities:
        """Classifies uint8 `(batch, height, width, channels)`; returns float32 `(batch, classes)`, rows summing to 1."""
        session = self._session_alone if alone else self._session
        return cast(Probabilities, session.run([OUTPUT], {INPUT: batch})[0])

    @property
    def has_maps(self) -> bool:
        """The model file can say where in the image the evidence for each class lies."""
        return MAPS in {node.name for node in self._session.get_outputs()}

    def explain(self, batch: Pixels) -> tuple[Probabilities, Maps | None]:
        """As a call, and from the same pass the class activation maps, float32 `(batch, classes, h, w)`, if it `has_maps`."""
        if not self.has_maps:
            return self(batch), None
        switch = {EXPLAIN: np.array(True)} if self._session.get_overridable_initializers() else {}
        return cast(tuple[Probabilities, Maps], tuple(self._session.run([OUTPUT, MAPS], {INPUT: batch, **switch})))

    def drift(self) -> dict[str, Drift] | None:
        """How far each feature of the last images is from the reference; None where there is nothing to compare with."""
        return self.window.drift() if self.window else None

    def _prove(self, run: ort.RunOptions, *, alone: bool = False) -> None:
        for number, golden in enumerate(self.spec.goldens, start=1):
            self._prove_golden(golden, number, alone, run)

    def _measure(self, run: ort.RunOptions) -> float:
        """How long one image takes, warm: this thread's own time, which waits for nobody who imports or computes beside it."""
        pixels = np.zeros((1, *self.spec.input.shape), np.uint8)
        begun = time.thread_time()
        self._session.run([OUTPUT], {INPUT: pixels}, run)
        return time.thread_time() - begun

    def _prove_golden(self, golden: Golden, number: int, alone: bool, run: ort.RunOptions) -> None:
        try:
            batch = fit(decode(golden.data, self.spec.input), self.spec.input)[np.newaxis]
        except (ConvServeError, ValueError) as error:
            raise ModelError(f"its golden image {number} does not decode: {error}") from error
        try:
            session = self._session_alone if alone else self._session
            row = session.run([OUTPUT], {INPUT: batch}, run)[0][0]
            worst = float(np.abs(row - np.asarray(golden.probabilities)).max())
        except Exception as error:
            raise ModelError(f"its golden image {number} cannot be computed: {_first_line(error)}") from error
        if not worst <= golden.tolerance:  # so that NaN fails too
            raise ModelError(
                f"its golden image {number} is off by {worst:.2g} (allowed: {golden.tolerance:.2g}), "
                "so this machine or version does not compute what was trained"
            )


def top_k(rows: Probabilities, k: int) -> list[Ranked]:
    """The `k` most probable classes of each row of `(batch, classes)`, most probable first, ties by index."""
    best = (-rows).argsort(axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(rows, best, axis=1)
    return [list(zip(*row, strict=True)) for row in zip(best.tolist(), values.tolist(), strict=True)]


def name_classes(best: Ranked, labels: Sequence[str]) -> list[dict[str, Any]]:
    """What `top_k` found, as it goes over the wire."""
    return [{"label": labels[index], "class_index": index, "probability": round(probability, 7)} for index, probability in best]


def _open_session(content: bytes, device: Device, options: ort.SessionOptions) -> ort.InferenceSession:
    """Opens the model on the device asked for. onnxruntime falls back to the CPU silently; this does so only for auto."""
    available = ort.get_available_providers()
    if device == "cuda" and CUDA not in available:
        raise ModelError(
            f"device cuda was asked for, but this onnxruntime offers only {', '.join(available)}: "
            "install onnxruntime-gpu, or set CONVSERVE_DEVICE=cpu"
        )
    providers = [CPU] if device == "cpu" or CUDA not in available else [CUDA, CPU]
    try:
        session = ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        raise ModelError(f"onnxruntime cannot load it: {_first_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise ModelError("device cuda was asked for, but onnxruntime could not start it: check the driver and its libraries")
    return session


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads steal the cores that decoding needs: 65 instead of 102 images/s on two cores (Zen 3, 2026-11).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights in other files are not read: none is in this folder. By default it would be the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null")
    return options


@contextmanager
def _limits(growth: int, options: ort.SessionOptions, run: ort.RunOptions, abandon: Callable[[], None]) -> Iterator[None]:
    """Stops opening and running after `LOAD_SECONDS`, abandons it after twice that; the process gets `growth` bytes more.

    The bytes where Linux counts them, no operator set a limit, and CUDA does not take its own share.
    """

    def stop() -> None:
        options.set_load_cancellation_flag(True)
        run.terminate = True

    timers = threading.Timer(LOAD_SECONDS, stop), threading.Timer(2 * LOAD_SECONDS, abandon)
    for timer in timers:
        timer.daemon = True
        timer.start()
    status, (soft, hard) = Path("/proc/self/status"), resource.getrlimit(resource.RLIMIT_DATA)
    if status.exists() and soft == resource.RLIM_INFINITY and CUDA not in ort.get_available_providers():
        taken = int(status.read_text().partition("VmData:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (taken + growth, hard))
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _check_signature(session: ort.InferenceSession, spec: ModelSpec) -> None:
    inputs = {node.name: (node.type, node.shape[1:]) for node in session.get_inputs()}
    if inputs != {INPUT: ("tensor(uint8)", list(spec.input.shape))}:
        raise ModelError(f"its input must be {INPUT}: uint8 (batch, {_join(spec.input.shape)}), but the file has {inputs}")
    outputs = {node.name: (node.type, node.shape[1:]) for node in session.get_outputs()}
    if outputs.get(OUTPUT) != ("tensor(float)", [len(spec.labels)]):
        raise ModelError(f"its output must be {OUTPUT}: float32 (batch, {len(spec.labels)}), but the file has {outputs}")
    kind, shape = outputs.get(MAPS, ("tensor(float)", [len(spec.labels), 1, 1]))
    if kind != "tensor(float)" or shape[:1] != [len(spec.labels)] or len(shape) != 3:
        raise ModelError(f"its {MAPS} must be float32 (batch, {len(spec.labels)}, h, w), but the file has {outputs}")


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
