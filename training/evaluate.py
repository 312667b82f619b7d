"""Measures a model file as it is served: through `app.classifier`, without torch. The only figures that are published.

model file ─┐
folder ─────┴─decode, fit─▶ pixels ──classifier──▶ probabilities ──▶ Measured ──▶ text, JSON, figures of the spec, report
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.classifier import Classifier, Probabilities
from app.errors import ModelError
from app.image import Pixels
from app.spec import Figures, ModelSpec
from training.data_set import read_others, read_samples
from training.errors import InputError
from training.figures import ECE_BINS, Array, ClassScore, Scores, Strangers, auroc, score, uncalibrate
from training.folder import Part
from training.pixels import Samples

BATCH = 64  # images; only memory and speed depend on it
N_NOISE = 128
MAX_CLASSES = 100  # of more, only the worst are shown
N_MISTAKES = 5  # in the text


@dataclass(frozen=True)
class Measured:
    """What a model file answered to the images of one part of a data set, and all that follows from it."""

    # A calibrated model is wrong once in twenty at 0.95; that it then gives the label almost nothing is rarer still.
    doubt_from: ClassVar[float] = 0.95  # top probability
    doubt_label_to: ClassVar[float] = 0.01  # probability of the given label

    spec: ModelSpec
    sha256: str  # of the file
    data: str  # the part's name, such as "mnist/validation"
    samples: Samples
    probabilities: Probabilities  # calibrated, as they are served
    strange: Mapping[str, Array] = field(default_factory=dict)  # top probabilities of images of other things, by their name

    @cached_property
    def scores(self) -> Scores:
        return score(self.probabilities, self.samples.classes)

    @cached_property
    def uncalibrated(self) -> "Measured":
        """The same before the logits were divided by the temperature."""
        return replace(self, probabilities=uncalibrate(self.probabilities, self.spec.temperature))

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        return np.asarray(self.probabilities.max(axis=1), np.float64)

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        return np.asarray(self.probabilities.argmax(axis=1) != self.samples.classes)

    @property
    def threshold(self) -> float:
        """From which top probability an answer is accepted: 0 where there is no rule."""
        return self.spec.accept.threshold if self.spec.accept else 0.0

    @cached_property
    def accepted(self) -> tuple[float, float]:
        """The share of images that is accepted, and the share of these that is wrong."""
        chosen = self.confidence >= self.threshold
        return float(chosen.mean()), float(self.wrong[chosen].mean()) if chosen.any() else 0.0

    @cached_property
    def bins(self) -> list[tuple[float, int, int]]:
        """The mean confidence, the images right and all images of each bin of the ECE, but for empty ones."""
        bin_of = np.minimum((self.confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        members = [bin_of == number for number in np.unique(bin_of)]
        return [(float(self.confidence[one].mean()), int((one & ~self.wrong).sum()), int(one.sum())) for one in members]

    @cached_property
    def risk(self) -> NDArray[np.float64]:
        """The share of wrong answers among the 1, 2, … n surest. Source: Geifman and El-Yaniv, 2017."""
        wrong = self.wrong[np.argsort(-self.confidence, kind="stable")]
        return np.asarray(np.cumsum(wrong) / np.arange(1, len(wrong) + 1))

    @cached_property
    def strangers(self) -> list[Strangers]:
        """How well images of other things are told apart."""
        return [
            Strangers(name, len(tops), auroc(self.confidence, tops), float((tops >= self.threshold).mean()))
            for name, tops in self.strange.items()
        ]

    def mistakes(self, *, doubtful: bool) -> list[int]:
        """The images that are called wrong, the surest first: either those with a doubtful label, or the others."""
        of_label = self.probabilities[np.arange(len(self.samples)), self.samples.classes]
        is_doubtful = (self.confidence >= self.doubt_from) & (of_label <= self.doubt_label_to)
        found = np.flatnonzero(self.wrong & (is_doubtful == doubtful))
        return sorted(map(int, found), key=lambda index: -self.confidence[index])

    def confusions(self, at_most: int) -> list[tuple[str, str, int]]:
        """The commonest mistakes: the label, what it was taken for, and how often."""
        wrong, labels = np.array(self.scores.confusion), self.spec.labels
        np.fill_diagonal(wrong, 0)
        places = np.argsort(-wrong, axis=None, kind="stable")[: min(at_most, np.count_nonzero(wrong))]
        rows, columns = np.unravel_index(places, wrong.shape)
        return [(labels[row], labels[column], int(wrong[row, column])) for row, column in zip(rows, columns, strict=True)]

    @cached_property
    def worst_classes(self) -> list[tuple[str, ClassScore]]:
        """Those with images, the worst first, at most `MAX_CLASSES`."""
        seen = [pair for pair in zip(self.spec.labels, self.scores.classes, strict=True) if pair[1].n]
        return sorted(seen, key=lambda pair: pair[1].f1)[:MAX_CLASSES]

    def as_json(self) -> str:
        """All of it for programs."""
        chosen = self.confidence >= self.threshold
        content: dict[str, Any] = {
            "model": {"name": self.spec.name, "version": self.spec.version, "sha256": self.sha256},
            "data": self.data,
            "labels": self.spec.labels,
            **asdict(self.scores),
            "accepted": int(chosen.sum()),
            "accepted_right": int((chosen & ~self.wrong).sum()),
            "n_skipped": len(self.samples.skipped),
            "ece_before_calibration": self.uncalibrated.scores.ece,
            "out_of_distribution": [one._asdict() for one in self.strangers],
        }
        return json.dumps(content, ensure_ascii=False, indent=2)

    def as_figures(self) -> Figures:
        """The part of it that the model file carries."""
        kept = {name: getattr(self.scores, name) for name in ("n", "accuracy", "macro_f1", "ece", "log_loss")}
        by = f"python -m training evaluate, onnxruntime {ort.__version__} on the CPU"
        return Figures(data=self.data, measured_by=by, **kept)

    def __str__(self) -> str:
        """All of it for people."""
        spec, scores, (low, high) = self.spec, self.scores, self.scores.interval
        shown, width = dict(self.worst_classes), max(len("class"), *map(len, spec.labels))
        lines = [
            f"{spec.name} {spec.version} on {self.data}",
            f"images       {scores.n:,}",
            f"accuracy     {scores.accuracy:.2%} (95 % interval {low:.2%} – {high:.2%}), {scores.n - scores.n_correct:,} wrong",
            f"macro-F1     {scores.macro_f1:.4f}",
            f"ECE          {scores.ece:.4f}",
            f"log loss     {scores.log_loss:.4f}",
            f"\n{'class':<{width}}  images  precision  recall      F1",
        ]
        for label, one in ((label, shown[label]) for label in spec.labels if label in shown):
            lines.append(f"{label:<{width}}  {one.n:>6}  {one.precision:>9.4f}  {one.recall:>6.4f}  {one.f1:>6.4f}")
        mistakes = [f"{label} taken for {called}: {count}" for label, called, count in self.confusions(N_MISTAKES)]
        lines += ["", *(mistakes or ["no mistakes"])]
        if spec.accept and self.accepted[0]:
            share, risk = self.accepted
            lines.append(f"accepted     {share:.2%} (top probability ≥ {self.threshold:g}), of these right {1 - risk:.3%}")
        lines.append(f"calibration  ECE {self.uncalibrated.scores.ece:.4f} before, {scores.ece:.4f} after")
        lines += [f"{one.data:<12} AUROC {one.auroc:.4f}, {one.accepted:.2%} of {one.n:,} accepted" for one in self.strangers]
        return "\n".join(lines)


def evaluate_file(path: Path, root: Path, part: Part | Literal["all"], other: Path | None = None) -> Measured:
    """Measures the model file at `path` on one part of the data set at `root`, against noise and the images of `other`.

    Raises: InputError.
    """
    classifier = open_model(path)
    samples = read_samples(root, part, classifier.spec)
    strange = answer_strangers(classifier, read_others(other, classifier.spec.input))
    return measure(classifier, f"{root.resolve().name}/{part}", samples, strange)


def open_model(path: Path) -> Classifier:
    """Loads a model file that a person named, on all cores. Raises: InputError."""
    try:
        return Classifier.load(path, device="cpu", threads=os.cpu_count() or 1)
    except ModelError as error:
        raise InputError(str(error)) from error


def measure(classifier: Classifier, data: str, samples: Samples, strange: Mapping[str, Array] | None = None) -> Measured:
    """Lets a model file answer all `samples`; `data` names them."""
    probabilities = classify_all(classifier, samples.pixels)
    return Measured(classifier.spec, classifier.sha256, data, samples, probabilities, strange or {})


def answer_strangers(classifier: Classifier, others: Mapping[str, Pixels]) -> dict[str, Array]:
    """The top probabilities of noise, always the same, and of the other images."""
    noise = np.random.default_rng(0).integers(256, size=(N_NOISE, *classifier.spec.input.shape), dtype=np.uint8)
    return {name: classify_all(classifier, pixels).max(axis=1) for name, pixels in {"noise": noise, **others}.items()}


def classify_all(classifier: Classifier, pixels: Pixels) -> Probabilities:
    """The probabilities of every image, float32 `(n, classes)`, in order."""
    return np.concatenate([classifier(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])
