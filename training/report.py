"""The page that a training leaves beside its model file: how sure its figures are, where it errs, which labels look wrong.

RunReport ──▶ charts, thumbnails ──report.html──▶ <model>.html: one file that loads nothing and runs nothing
"""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from app.image import Pixels
from training.charts import Axis, Series, chart, percent
from training.evaluate import Measured
from training.figures import wilson_interval
from training.files import write_whole
from training.run_report import Epoch, RunReport

TEMPLATE = Path(__file__).with_name("report.html")
MAX_GRID_CLASSES = 30  # of more, as many confusions are a list
MAX_EXAMPLES = 10  # of a finding
MAX_SIDE = 112  # pixels of a thumbnail
SMALL_SIDE = 64  # images up to here are lossless, and enlarged without smoothing: as the network sees them


def write_report(report: RunReport, model: Path) -> Path:
    """Writes the page beside the model file, `models/digits.onnx` → `models/digits.html`, in one step; returns its path.

    Raises: InputError when nothing can be written there.
    """
    out = model.with_suffix(".html") if model.suffix == ".onnx" else model.with_name(f"{model.name}.html")
    # The name of a file need not be UTF-8; what cannot be written becomes "?".
    write_whole(out, render(report).encode("utf-8", errors="replace"))
    return out


def render(report: RunReport) -> str:
    """The page; the template escapes every text."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"as": format, "thumbnail": thumbnail}
    judged = report.parts[-1]
    doubtful = [(part, index) for part in report.parts for index in part.mistakes(doubtful=True)]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        judged=judged,
        scores=judged.scores,
        spec=judged.spec,
        labels=judged.spec.labels,
        figures=[_figures(part) for part in report.parts],
        classes=[(label, *astuple(one)) for label, one in judged.worst_classes],
        confusions=judged.confusions(MAX_GRID_CLASSES) if len(judged.spec.labels) > MAX_GRID_CLASSES else None,
        doubtful=sorted(doubtful, key=lambda one: -one[0].confidence[one[1]]),
        mistakes=[(judged, index) for index in judged.mistakes(doubtful=False)],
        findings=[(*kind, f"{len(found):,}", "\n".join(found[:MAX_EXAMPLES])) for kind, found in (report.audit or {}).items()],
        curves=_curves(report.history),
        reliability=_reliability(judged),
        risk=_risk(judged),
    )


def thumbnail(pixels: Pixels) -> str:
    """uint8 `(height, width, channels)` as a data: URL of at most 17 KB."""
    image = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "png" if max(pixels.shape) <= SMALL_SIDE else "jpeg"
    image.save(encoded := io.BytesIO(), kind, quality=60)
    return f"data:image/{kind};base64,{b64encode(encoded.getvalue()).decode()}"


def _figures(part: Measured) -> tuple[object, ...]:
    scores, (low, high), (share, risk) = part.scores, part.scores.interval, part.accepted
    totals = (f"{scores.n:,}", f"{scores.accuracy:.2%}", f"{low:.2%} – {high:.2%}")
    return part.data, *totals, scores.macro_f1, scores.log_loss, scores.ece, f"{share:.2%}", f"{risk:.2%}"


def _curves(history: Sequence[Epoch]) -> list[str]:
    if not history:
        return []
    best = max(history, key=lambda epoch: (epoch.accuracy, -epoch.validation_loss))
    epochs = Axis("epoch", "{:g}".format, least_step=1)
    train_loss = Series("training", [(one.number, one.train_loss) for one in history], "line b")
    loss = Series("validation", [(one.number, one.validation_loss) for one in history])
    accuracy = Series("", [(one.number, one.accuracy) for one in history])
    kept = Series(f"kept: epoch {best.number}", [(best.number, best.accuracy)], "point a")
    return [
        chart(epochs, Axis("Loss (nats)"), [train_loss, loss]),
        chart(epochs, Axis("Accuracy on validation", percent), [accuracy, kept]),
        chart(epochs, Axis("Learning rate"), [Series("", [(one.number, one.learning_rate) for one in history])]),
    ]


def _reliability(judged: Measured) -> str:
    intervals = [(sure, wilson_interval(right, n)) for sure, right, n in judged.bins]
    series = (
        Series("", [(0, 0), (1, 1)], "line diagonal"),
        Series("before", [(sure, right / n) for sure, right, n in judged.uncalibrated.bins], "point b"),
        *(Series("", [(sure, low), (sure, high)]) for sure, (low, high) in intervals),
        Series("as served, with 95 % interval", [(sure, right / n) for sure, right, n in judged.bins], "point a"),
    )
    return chart(Axis("confidence (top probability)", percent), Axis("Right", percent), series)


def _risk(judged: Measured) -> str:
    n, at, rule = len(judged.risk), judged.accepted, judged.spec.accept
    series = (
        # Among the very first answers one mistake is a large share: they would squeeze everything else.
        Series("", [((i + 1) / n, float(judged.risk[i])) for i in range(n // 20, n)]),
        Series("", [(at[0], 0), (at[0], float(judged.risk[-1]))], "line mark"),
        Series(f"{f'threshold {rule.threshold:.3g}' if rule else 'no threshold'}: {at[0]:.1%} accepted", [at], "point a"),
    )
    return chart(Axis("accepted images, the surest first", percent), Axis("Wrong among accepted", percent), series)
