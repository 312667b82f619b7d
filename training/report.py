"""The page that a training leaves beside its model file: how sure its figures are, where it errs, which labels look wrong.

RunReport ──▶ texts, tables, charts, galleries ──report.html──▶ <model>.html: one file that loads nothing and runs nothing
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.spec import AcceptRule
from training.charts import Axis, Series, chart, percent
from training.figures import Scores, wilson_interval
from training.files import write_whole
from training.gallery import gallery
from training.run_report import Epoch, Measured, RunReport
from training.table import MAX_CLASSES

TEMPLATE = Path(__file__).with_name("report.html")
MAX_GRID_CLASSES = 30  # of more, as many confusions are a list
MAX_EXAMPLES = 10  # of a finding


class Cell(NamedTuple):
    """A table's cell with a share from 0 to 1, which the page draws as a bar or a tint."""

    text: str
    share: float
    kind: str = ""  # a class of the page


def write_report(report: RunReport, model: Path) -> Path:
    """Writes the page beside the model file, `models/digits.onnx` → `models/digits.html`, in one step; returns its path.

    Raises: InputError when nothing can be written there.
    """
    out = model.with_suffix(".html") if model.suffix == ".onnx" else model.with_name(f"{model.name}.html")
    # The name of a file need not be UTF-8; what cannot be written becomes "?".
    write_whole(out, render(report).encode("utf-8", errors="replace"))
    return out


def render(report: RunReport) -> str:
    """The page: in report.html `$name` becomes markup, and `${name.attribute:format}` a text, which is escaped."""
    slots = _slots(report)

    def fill(slot: re.Match[str]) -> str:
        return str(slots[slot["name"]]) if slot["name"] else escape(f"{{{slot['text']}}}".format(**slots))

    return re.sub(r"\$(?:\{(?P<text>.+?)\}|(?P<name>\w+))", fill, TEMPLATE.read_text(encoding="utf-8"))


def table(caption: str, rows: Sequence[Mapping[str, object]], otherwise: str = "There are none.", kind: str = "") -> str:
    """Rows by heading, each with its first cell as its own heading, in a box that scrolls by itself. Escapes everything."""
    if not rows:
        return f"<p>{escape(otherwise)}</p>"
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    head = "".join(f'<th scope="col"><span>{escape(heading)}</span></th>' for heading in headings)
    body = "".join(f"<tr>{''.join(_cell(row.get(heading, '–')) for heading in headings)}</tr>" for row in rows)
    return (
        f'<div class="box" role="region" aria-label="{escape(caption)}" tabindex="0"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: object) -> str:
    if isinstance(cell, float):
        cell = Cell(f"{cell:.4f}", cell)
    if not isinstance(cell, Cell):
        return f'<td title="{escape(str(cell))}">{escape(str(cell))}</td>'
    return f'<td class="{cell.kind}" style="--share:{cell.share:.2f}">{escape(cell.text)}</td>'


def _slots(report: RunReport) -> dict[str, object]:
    spec, judged, labels, libraries = report.spec, report.parts[-1], report.spec.labels, report.spec.provenance.libraries
    doubtful = [(part, index) for part in report.parts for index in part.mistakes(doubtful=True)]
    doubtful.sort(key=lambda one: -one[0].confidence[one[1]])
    audit = [
        {"": severity, "finding": kind, "count": f"{len(found):,}", "examples": "\n".join(found[:MAX_EXAMPLES])}
        for (severity, kind), found in (report.audit or {}).items()
    ]
    return {
        "report": report,
        "judged": judged,
        "before": judged.uncalibrated(spec.temperature).scores,
        "accepted": judged.accepted(spec.accept),
        "threshold": f"{spec.accept.threshold:.4g}, chosen on {spec.accept.chosen_on}" if spec.accept else "none",
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())),
        "figures": table("All figures", [_figures(part, spec.accept) for part in report.parts]),
        "curves": _curves(report.history) if report.history else "<p>This model was not trained here.</p>",
        "confusion": _confusion(judged.scores, labels),
        "classes": _classes(judged.scores, labels),
        "reliability": _reliability(judged, spec.temperature),
        "risk": _risk(judged, spec.accept),
        "strangers": table("Images of other things", [one._asdict() for one in report.strangers], "None were tried."),
        "doubtful": gallery(doubtful, labels),
        "mistakes": gallery([(judged, index) for index in judged.mistakes(doubtful=False)], labels),
        "audit": table(
            "Findings", audit, "The images were not audited." if report.audit is None else "Nothing was found.", "text"
        ),
        "verdict": table("Variants", report.verdict or (), "No smaller variant of this model was measured.", "text"),
    }


def _figures(part: Measured, rule: AcceptRule | None) -> dict[str, object]:
    scores, (low, high), (share, risk) = part.scores, part.scores.interval, part.accepted(rule)
    return {
        "data": part.data,
        "images": f"{scores.n:,}",
        "accuracy": f"{scores.accuracy:.2%}",
        "95 % interval": f"{low:.2%} – {high:.2%}",
        "macro-F1": scores.macro_f1,
        "log loss": scores.log_loss,
        "ECE": scores.ece,
        "accepted": f"{share:.2%}",
        "of these wrong": f"{risk:.2%}",
    }


def _curves(history: Sequence[Epoch]) -> str:
    best = max(history, key=lambda epoch: (epoch.accuracy, -epoch.validation_loss))
    epochs = Axis("epoch", "{:g}".format, least_step=1)
    train_loss = Series("training", [(one.number, one.train_loss) for one in history], "line b")
    loss = Series("validation", [(one.number, one.validation_loss) for one in history])
    accuracy = Series("", [(one.number, one.accuracy) for one in history])
    kept = Series(f"kept: epoch {best.number}", [(best.number, best.accuracy)], "point a")
    return (
        chart(epochs, Axis("Loss (nats)"), [train_loss, loss])
        + chart(epochs, Axis("Accuracy on validation", percent), [accuracy, kept])
        + chart(epochs, Axis("Learning rate"), [Series("", [(one.number, one.learning_rate) for one in history])])
    )


def _confusion(scores: Scores, labels: Sequence[str]) -> str:
    wrong = np.array(scores.confusion)
    np.fill_diagonal(wrong, 0)
    if len(labels) <= MAX_GRID_CLASSES:
        grid = [{"": label, **dict(zip(labels, _tinted(scores, i), strict=True))} for i, label in enumerate(labels)]
        return table("Images of each label (rows) by what they were called (columns)", grid, kind="grid")
    commonest = np.argsort(-wrong, axis=None, kind="stable")[: min(MAX_GRID_CLASSES, np.count_nonzero(wrong))]
    pairs = [divmod(int(place), len(labels)) for place in commonest]
    rows = [{"label": labels[label], "called": labels[called], "images": wrong[label, called]} for label, called in pairs]
    return table("The commonest confusions", rows)


def _tinted(scores: Scores, label: int) -> Iterable[Cell]:
    for called, count in enumerate(scores.confusion[label]):
        share = count / max(scores.classes[label].n, 1)
        # The square root keeps single mistakes visible beside common ones.
        yield Cell(str(count or "·"), share**0.5, "hit" if called == label else "miss" if count else "")


def _classes(scores: Scores, labels: Sequence[str]) -> str:
    seen = [pair for pair in zip(labels, scores.classes, strict=True) if pair[1].n]
    worst = sorted(seen, key=lambda pair: pair[1].f1)[:MAX_CLASSES]
    rows = [{"class": label, "images": c.n, "precision": c.precision, "recall": c.recall, "F1": c.f1} for label, c in worst]
    return table(f"{len(rows)} of {len(labels):,} classes, worst first", rows, kind="bars")


def _reliability(judged: Measured, temperature: float) -> str:
    intervals = [(sure, wilson_interval(right, n)) for sure, right, n in judged.bins]
    series = (
        Series("", [(0, 0), (1, 1)], "line diagonal"),
        Series("before", [(sure, right / n) for sure, right, n in judged.uncalibrated(temperature).bins], "point b"),
        *(Series("", [(sure, low), (sure, high)]) for sure, (low, high) in intervals),
        Series("as served, with 95 % interval", [(sure, right / n) for sure, right, n in judged.bins], "point a"),
    )
    return chart(Axis("confidence (top probability)", percent), Axis("Right", percent), series)


def _risk(judged: Measured, rule: AcceptRule | None) -> str:
    n, at = len(judged.risk), judged.accepted(rule)
    series = (
        # Among the very first answers one mistake is a large share: they would squeeze everything else.
        Series("", [((i + 1) / n, float(judged.risk[i])) for i in range(n // 20, n)]),
        Series("", [(at[0], 0), (at[0], float(judged.risk[-1]))], "line mark"),
        Series(f"{f'threshold {rule.threshold:.3g}' if rule else 'no threshold'}: {at[0]:.1%} accepted", [at], "point a"),
    )
    return chart(Axis("accepted images, the surest first", percent), Axis("Wrong among accepted", percent), series)
