"""Measures a model file as it is served: through `app.classifier`, without torch. The only figures that are published.

model file ─┐
folder ─────┴─decode, fit─▶ pixels ──classifier──▶ probabilities ──figures──▶ Evaluation ──▶ table, JSON
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from app.classifier import Classifier, Probabilities
from app.errors import ModelError
from app.image import Pixels
from app.spec import Figures, ModelSpec
from training.data_set import read_others, read_samples
from training.errors import InputError
from training.figures import Array, Scores, Strangers, auroc, expected_calibration_error, score, uncalibrate
from training.folder import Part
from training.pixels import Samples
from training.table import format_scores

BATCH = 64  # images; only memory and speed depend on it
N_NOISE = 128


@dataclass(frozen=True)
class Evaluation:
    """What one model file scored on one data set."""

    spec: ModelSpec
    sha256: str
    data: str
    scores: Scores
    accepted: int  # images whose top probability reaches the accept threshold; all where there is none
    accepted_right: int
    n_skipped: int
    ece_before: float  # calibration
    strangers: Sequence[Strangers] = ()

    def as_json(self) -> str:
        """All of it for programs."""
        content: dict[str, Any] = {
            "model": {"name": self.spec.name, "version": self.spec.version, "sha256": self.sha256},
            "data": self.data,
            "labels": self.spec.labels,
            **asdict(self.scores),
            "accepted": self.accepted,
            "accepted_right": self.accepted_right,
            "n_skipped": self.n_skipped,
            "ece_before_calibration": self.ece_before,
            "out_of_distribution": [one._asdict() for one in self.strangers],
        }
        return json.dumps(content, ensure_ascii=False, indent=2)

    def as_figures(self) -> Figures:
        """The part of it that the model file carries."""
        return Figures(
            data=self.data,
            n=self.scores.n,
            accuracy=self.scores.accuracy,
            macro_f1=self.scores.macro_f1,
            ece=self.scores.ece,
            log_loss=self.scores.log_loss,
            measured_by=f"python -m training evaluate, onnxruntime {ort.__version__} on the CPU",
        )


def evaluate_file(path: Path, root: Path, part: Part | Literal["all"], other: Path | None = None) -> tuple[Evaluation, Samples]:
    """Measures the model file at `path` on one part of the data set at `root`, against noise and the images of `other`.

    Raises: InputError.
    """
    classifier = open_model(path)
    samples = read_samples(root, part, classifier.spec)
    strangers = answer_strangers(classifier, read_others(other, classifier.spec.input))
    probabilities, data = classify_all(classifier, samples.pixels), f"{root.resolve().name}/{part}"
    return score_answers(classifier.spec, classifier.sha256, probabilities, samples, data, strangers), samples


def open_model(path: Path) -> Classifier:
    """Loads a model file that a person named, on all cores. Raises: InputError."""
    try:
        return Classifier.load(path, device="cpu", threads=os.cpu_count() or 1)
    except ModelError as error:
        raise InputError(str(error)) from error


def score_answers(
    spec: ModelSpec,
    sha256: str,
    probabilities: Probabilities,
    samples: Samples,
    data: str,
    strangers: Mapping[str, Array] | None = None,
) -> Evaluation:
    """Measures what a model file answered, float32 `(n, classes)`; `data` names the images, and `strangers` others."""
    threshold, confidence = spec.accept.threshold if spec.accept else 0, probabilities.max(axis=1)
    accepted = confidence >= threshold
    return Evaluation(
        spec=spec,
        sha256=sha256,
        data=data,
        scores=score(probabilities, samples.classes),
        ece_before=expected_calibration_error(uncalibrate(probabilities, spec.temperature), samples.classes),
        accepted=int(accepted.sum()),
        accepted_right=int((accepted & (probabilities.argmax(axis=1) == samples.classes)).sum()),
        n_skipped=len(samples.skipped),
        strangers=[
            Strangers(name, len(tops), auroc(confidence, tops), float((tops >= threshold).mean()))
            for name, tops in (strangers or {}).items()
        ],
    )


def answer_strangers(classifier: Classifier, others: Mapping[str, Pixels]) -> dict[str, Array]:
    """The top probabilities of noise, always the same, and of the other images."""
    noise = np.random.default_rng(0).integers(256, size=(N_NOISE, *classifier.spec.input.shape), dtype=np.uint8)
    return {name: classify_all(classifier, pixels).max(axis=1) for name, pixels in {"noise": noise, **others}.items()}


def classify_all(classifier: Classifier, pixels: Pixels) -> Probabilities:
    """The probabilities of every image, float32 `(n, classes)`, in order."""
    return np.concatenate([classifier(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])


def format_evaluation(evaluation: Evaluation) -> str:
    """All of it for people."""
    spec, scores = evaluation.spec, evaluation.scores
    lines = [f"{spec.name} {spec.version} on {evaluation.data}", format_scores(scores, spec.labels)]
    if spec.accept and evaluation.accepted:
        share, right = evaluation.accepted / scores.n, evaluation.accepted_right / evaluation.accepted
        lines.append(f"accepted     {share:.2%} (top probability ≥ {spec.accept.threshold:g}), of these right {right:.3%}")
    lines.append(f"calibration  ECE {evaluation.ece_before:.4f} before, {scores.ece:.4f} after")
    lines += [f"{one.data:<12} AUROC {one.auroc:.4f}, {one.accepted:.2%} of {one.n:,} accepted" for one in evaluation.strangers]
    return "\n".join(lines)
