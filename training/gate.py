"""Whether an int8 model is worth having: as right as the fp32 one, and faster on this machine. If not, it is not kept.

fp32 file ──quantize_graph (unlabelled training images)──▶ int8 file beside ──validation images, clock──▶ verdict ──▶ out
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from app.classifier import INPUT, OUTPUT, Classifier, Probabilities
from app.image import Pixels
from app.spec import ModelSpec
from training.data_set import read_samples
from training.errors import InputError
from training.evaluate import Evaluation, classify_all, open_model, score_answers
from training.figures import Indices
from training.files import put_in_place, unfinished_beside
from training.model_file import make_goldens, open_session, write_model
from training.pixels import Samples
from training.quantize import quantize_graph
from training.report import write_report
from training.run_report import Measured, RunReport

DEFAULT_GATE = 0.5  # points of accuracy
DEFAULT_IMAGES = 32
MIN_IMAGES, MAX_IMAGES = 8, 256  # more only take time and memory
# Sums are the same on every processor, their rounding to uint8 need not be: one step of one activation moves a probability.
GOLDEN_TOLERANCE = 0.03
ROUNDS = 31  # pairs of measurements
MIN_SECONDS = 0.02  # of one measurement


@dataclass(frozen=True)
class SpeedRatio:
    """Images/s of one model over another's, one image at a time on one thread: median and quartiles of paired measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class QuantizeVerdict:
    """What quantising did to one model, on `n` validation images."""

    n: int
    accuracy_before: float
    accuracy_after: float
    drop_points: float  # of accuracy, in percent of images
    drop_error: float  # standard error of the paired difference, in the same points
    agreement: float  # share of images with the same first class
    speed: SpeedRatio
    bytes_before: int
    bytes_after: int
    gate_points: float
    kept: bool
    reason: str

    def as_json(self) -> str:
        """All of it for programs."""
        return json.dumps(asdict(self), indent=2)

    def rows(self) -> list[tuple[str, str]]:
        """All of it for people, by name."""
        speed = self.speed
        return [
            ("accuracy", f"{self.accuracy_before:.2%} → {self.accuracy_after:.2%}"),
            ("drop", f"{self.drop_points:+.2f} ± {self.drop_error:.2f} points (allowed: {self.gate_points:g})"),
            ("agreement", f"{self.agreement:.2%} of {self.n:,} images"),
            ("speed", f"× {speed.median:.2f} ({speed.low:.2f} – {speed.high:.2f}), one thread, one image at a time"),
            ("file", f"{self.bytes_before / 1000:,.0f} kB → {self.bytes_after / 1000:,.0f} kB"),
            ("verdict", f"{'kept' if self.kept else 'not kept'}: {self.reason}"),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:<12} {value}" for name, value in self.rows())


def judge(
    before: Probabilities,
    after: Probabilities,
    truth: Indices,
    *,
    speed: SpeedRatio,
    sizes: tuple[int, int],
    gate_points: float = DEFAULT_GATE,
) -> QuantizeVerdict:
    """Compares two models' probabilities `(n, classes)` on the same images; `sizes` are of their files, in bytes."""
    first_before, first_after = before.argmax(axis=1), after.argmax(axis=1)
    lost = (first_before == truth).astype(np.float64) - (first_after == truth)
    drop, error = 100 * float(lost.mean()), 100 * float(lost.std()) / len(lost) ** 0.5
    accurate, faster = drop <= gate_points, speed.low > 1
    reason = "as accurate, and faster" if accurate else f"it loses {drop:.2f} points, and {gate_points:g} are allowed"
    if accurate and not faster:
        reason = "it is not measurably faster on this machine"
    return QuantizeVerdict(
        n=len(truth),
        accuracy_before=float((first_before == truth).mean()),
        accuracy_after=float((first_after == truth).mean()),
        drop_points=drop,
        drop_error=error,
        agreement=float((first_before == first_after).mean()),
        speed=speed,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        gate_points=gate_points,
        kept=accurate and faster,
        reason=reason,
    )


def compare_speed(
    before: onnx.ModelProto, after: onnx.ModelProto, pixels: Pixels, *, threads: int = 1, rounds: int = ROUNDS
) -> SpeedRatio:
    """How much faster `after` classifies `pixels` `(height, width, channels)`; the two take turns."""
    batch = pixels[np.newaxis]
    calls = [_timed_call(model, batch, threads) for model in (before, after)]
    repeats = max(1, round(MIN_SECONDS / min(call(3) for call in calls)))
    ratios = []
    for number in range(rounds):
        # Who is first changes, so that what the clock does over a pair cancels.
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {which: calls[which](repeats) for which in order}
        ratios.append(seconds[0] / seconds[1])
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return SpeedRatio(median, low, high)


def _timed_call(model: onnx.ModelProto, batch: Pixels, threads: int) -> Callable[[int], float]:
    session = open_session(model, threads)
    # One thread's own time is blind to what else the machine does; of several threads only the clock knows.
    clock = time.thread_time if threads == 1 else time.perf_counter

    def seconds_per_call(repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            session.run([OUTPUT], {INPUT: batch})
        return (clock() - start) / repeats

    return seconds_per_call


def quantize_file(
    source: Path, root: Path, out: Path, *, gate_points: float = DEFAULT_GATE, n_images: int = DEFAULT_IMAGES
) -> QuantizeVerdict:
    """Quantises the model file `source` with training images of `root` and judges it on the validation images.

    `out` is written only if the verdict keeps it.

    Raises: InputError, TrainingError.
    """
    if not MIN_IMAGES <= n_images <= MAX_IMAGES:
        raise InputError(f"--images must be between {MIN_IMAGES} and {MAX_IMAGES}, not {n_images}")
    spec = open_model(source).spec
    calibration = read_samples(root, "train", spec, limit=n_images)
    validation = read_samples(root, "validation", spec)
    return quantize_samples(source, out, calibration.pixels, validation, f"{root.resolve().name}/validation", gate_points)


def quantize_samples(
    source: Path, out: Path, calibration: Pixels, validation: Samples, data: str, gate_points: float = DEFAULT_GATE
) -> QuantizeVerdict:
    """As `quantize_file`, with unlabelled images `(n, height, width, channels)`; `data` names the validation images."""
    threads = os.cpu_count() or 1
    before_file, before = onnx.load(source), Classifier.load(source, device="cpu", threads=threads)
    with unfinished_beside(out) as unfinished:
        after_file = quantize_graph(before_file, calibration, threads=threads)
        goldens = make_goldens(after_file, before.spec.input, [golden.data for golden in before.spec.goldens], GOLDEN_TOLERANCE)
        spec = before.spec.model_copy(update={"goldens": goldens})
        after = write_model(after_file, spec, unfinished, threads=threads)
        answers = classify_all(after, validation.pixels)
        verdict = judge(
            classify_all(before, validation.pixels),
            answers,
            validation.classes,
            speed=compare_speed(before_file, after_file, validation.pixels[0]),
            sizes=(source.stat().st_size, unfinished.stat().st_size),
            gate_points=gate_points,
        )
        if verdict.kept:
            measured = score_answers(after.spec, after.sha256, answers, validation, data)
            after = write_model(after_file, _describe(measured, verdict, len(calibration)), unfinished, threads=threads)
            put_in_place(unfinished, out)
            rows = [{"against fp32": name, "": value} for name, value in verdict.rows()]
            write_report(RunReport(after.spec, after.sha256, Measured(data, answers, validation), verdict=rows), out)
    return verdict


def _describe(measured: Evaluation, verdict: QuantizeVerdict, n_calibration: int) -> ModelSpec:
    """The spec with what is true of the int8 model alone: its own figures, and how it was made."""
    spec = measured.spec
    note = (
        f"int8 by training.quantize on {n_calibration} images; against fp32, on {measured.data} and the machine that made it: "
        + "; ".join(f"{name} {value}" for name, value in verdict.rows())
    )
    measured_by = f"python -m training quantize, onnxruntime {ort.__version__} on the CPU"
    figures = measured.as_figures().model_copy(update={"measured_by": measured_by})
    provenance = spec.provenance.model_copy(update={"note": "; ".join(filter(None, [spec.provenance.note, note]))})
    return spec.model_copy(update={"figures": (figures,), "provenance": provenance})
