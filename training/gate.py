"""Whether an int8 model is worth having: as right as the fp32 one, and faster on this machine. If not, it is not kept.

fp32 file ──quantize_graph (unlabelled training images)──▶ int8 file beside ──validation images, clock──▶ verdict ──▶ out
"""

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from app.classifier import Classifier, Probabilities
from app.image import Pixels
from training.data_set import read_samples
from training.errors import InputError
from training.evaluate import classify_all, measure, open_model
from training.figures import Indices
from training.files import unfinished_beside
from training.model_file import make_goldens, write_model
from training.pixels import Samples
from training.quantize import quantize_graph
from training.reference import describe
from training.report import write_report
from training.run_report import RunReport

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

    def __str__(self) -> str:
        return f"× {self.median:.2f} ({self.low:.2f} – {self.high:.2f})"


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
        return [
            ("accuracy", f"{self.accuracy_before:.2%} → {self.accuracy_after:.2%}"),
            ("drop", f"{self.drop_points:+.2f} ± {self.drop_error:.2f} points (allowed: {self.gate_points:g})"),
            ("agreement", f"{self.agreement:.2%} of {self.n:,} images"),
            ("speed", f"{self.speed}, one thread, one image at a time"),
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
    drop = 100 * float(lost.mean())
    slow = "" if speed.low > 1 else "it is not measurably faster on this machine"
    fault = slow if drop <= gate_points else f"it loses {drop:.2f} points, and {gate_points:g} are allowed"
    return QuantizeVerdict(
        n=len(truth),
        accuracy_before=float((first_before == truth).mean()),
        accuracy_after=float((first_after == truth).mean()),
        drop_points=drop,
        drop_error=100 * float(lost.std()) / len(lost) ** 0.5,
        agreement=float((first_before == first_after).mean()),
        speed=speed,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        gate_points=gate_points,
        kept=not fault,
        reason=fault or "as accurate, and faster",
    )


def compare_speed(before: Path, after: Path, pixels: Pixels, *, threads: int = 1, rounds: int = ROUNDS) -> SpeedRatio:
    """How much faster the model file `after` classifies `pixels` `(height, width, channels)`; the two take turns."""
    classifiers = [Classifier.load(file, device="cpu", threads=threads) for file in (before, after)]
    # One thread's own time is blind to what else the machine does; of several threads only the clock knows.
    clock = time.thread_time if threads == 1 else time.perf_counter

    def seconds(which: int, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            classifiers[which](pixels[np.newaxis])
        return (clock() - start) / repeats

    repeats = max(1, round(MIN_SECONDS / min(seconds(0, 3), seconds(1, 3))))
    ratios = []
    for number in range(rounds):
        # Who is first changes, so that what the clock does over a pair cancels.
        pair = {which: seconds(which, repeats) for which in ((0, 1) if number % 2 else (1, 0))}
        ratios.append(pair[0] / pair[1])
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return SpeedRatio(median, low, high)


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
    threads, before = os.cpu_count() or 1, open_model(source)
    with unfinished_beside(out) as unfinished:
        graph, spec = quantize_graph(onnx.load(source), calibration), before.spec
        goldens = make_goldens(graph, spec.input, (golden.data for golden in spec.goldens), GOLDEN_TOLERANCE)
        after = write_model(graph, spec.model_copy(update={"goldens": goldens}), unfinished, threads=threads)
        measured = measure(after, data, validation)
        verdict = judge(
            classify_all(before, validation.pixels),
            measured.probabilities,
            validation.classes,
            speed=compare_speed(source, unfinished, validation.pixels[0]),
            sizes=(source.stat().st_size, unfinished.stat().st_size),
            gate_points=gate_points,
        )
        if verdict.kept:
            made = f"int8 by training.quantize on {len(calibration)} images"
            rows = "; ".join(f"{name} {value}" for name, value in verdict.rows())
            against = f"against fp32, on {data} and the machine that made it: {rows}"
            notes = "; ".join(filter(None, [spec.provenance.note, made, against]))
            own = {
                "figures": (measured.as_figures(),),
                "reference": describe(data, validation, measured.probabilities),
                "provenance": spec.provenance.model_copy(update={"note": notes}),
            }
            after = write_model(graph, after.spec.model_copy(update=own), unfinished, threads=threads)
            unfinished.replace(out)
            measured = replace(measured, spec=after.spec, sha256=after.sha256)
            write_report(RunReport([measured], verdict=verdict.rows()), out)
    return verdict
