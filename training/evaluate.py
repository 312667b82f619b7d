"""Measures a model file as it is served: through `app.classifier`, without torch. The only figures that are published.

model file ─┐
folder ─────┴─decode, fit─▶ pixels ──classifier──▶ probabilities ──figures──▶ Evaluation ──▶ table, JSON
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from app.classifier import Classifier, Probabilities
from app.errors import ModelError
from app.image import Pixels
from app.spec import Figures, ModelSpec
from training.errors import InputError
from training.figures import Scores, score
from training.folder import Part
from training.pixels import Samples, decode_files
from training.sources import open_part
from training.table import format_scores

BATCH = 64  # images; only memory and speed depend on it


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


def evaluate_file(path: Path, root: Path, part: Part | Literal["all"]) -> tuple[Evaluation, Samples]:
    """Measures the model file at `path` on one part of the data set at `root`.

    Raises: InputError.
    """
    classifier = open_model(path)
    samples = read_samples(root, part, classifier.spec)
    return evaluate(classifier, samples, f"{root.resolve().name}/{part}"), samples


def open_model(path: Path) -> Classifier:
    """Loads a model file that a person named, on all cores. Raises: InputError."""
    try:
        return Classifier.load(path, device="cpu", threads=os.cpu_count() or 1)
    except ModelError as error:
        raise InputError(str(error)) from error


def read_samples(root: Path, part: Part | Literal["all"], spec: ModelSpec, *, limit: int | None = None) -> Samples:
    """The images of one part of a data set, as the model sees them; at most `limit`, drawn by the model's own seed.

    Raises: InputError, also when a class is none of the model's.
    """
    with open_part(root, part, seed=spec.provenance.seed) as (files, videos):
        unknown = sorted({file.label for file in files} - set(spec.labels))
        if unknown:
            raise InputError(f"{root} has classes that the model does not know: {', '.join(unknown)}")
        if limit is not None:
            chosen = np.random.default_rng(spec.provenance.seed).permutation(len(files))[:limit]
            files = tuple(files[index] for index in chosen)
        samples = decode_files(files, spec.labels, spec.input)
    return replace(samples, skipped=(*videos, *samples.skipped))


def evaluate(classifier: Classifier, samples: Samples, data: str) -> Evaluation:
    """Measures a loaded model on decoded images; `data` names them."""
    return score_answers(classifier.spec, classifier.sha256, classify_all(classifier, samples.pixels), samples, data)


def score_answers(spec: ModelSpec, sha256: str, probabilities: Probabilities, samples: Samples, data: str) -> Evaluation:
    """As `evaluate`, from what the model file already answered, float32 `(n, classes)`."""
    rule = spec.accept
    accepted = probabilities.max(axis=1) >= (rule.threshold if rule else 0)
    right = probabilities.argmax(axis=1) == samples.classes
    return Evaluation(
        spec=spec,
        sha256=sha256,
        data=data,
        scores=score(probabilities, samples.classes),
        accepted=int(accepted.sum()),
        accepted_right=int((accepted & right).sum()),
        n_skipped=len(samples.skipped),
    )


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
    return "\n".join(lines)
