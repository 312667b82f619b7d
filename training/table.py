"""Scores as plain text, so that `evaluate` needs nothing that serving does not have."""

from collections.abc import Sequence

from training.figures import Scores
from training.pixels import Skipped

MAX_CLASSES = 100  # of more, only the worst are shown
N_MISTAKES = 5
MAX_SKIPPED = 20


def format_scores(scores: Scores, labels: Sequence[str]) -> str:
    """The totals, one line per class, and the commonest mistakes."""
    return "\n".join([*_totals(scores), "", *_classes(scores, labels), "", *_mistakes(scores, labels)])


def _totals(scores: Scores) -> list[str]:
    low, high = scores.interval
    return [
        f"images       {scores.n:,}",
        f"accuracy     {scores.accuracy:.2%} (95 % interval {low:.2%} – {high:.2%}), {scores.n - scores.n_correct:,} wrong",
        f"macro-F1     {scores.macro_f1:.4f}",
        f"ECE          {scores.ece:.4f}",
        f"log loss     {scores.log_loss:.4f}",
    ]


def _classes(scores: Scores, labels: Sequence[str]) -> list[str]:
    width = max(len("class"), *(len(label) for label in labels))
    rows = sorted(zip(labels, scores.classes, strict=True), key=lambda row: row[1].f1)[:MAX_CLASSES]
    order = {label: number for number, label in enumerate(labels)}
    lines = [f"{'class':<{width}}  images  precision  recall      F1"]
    for label, of_class in sorted(rows, key=lambda row: order[row[0]]):
        values = f"{of_class.precision:>9.4f}  {of_class.recall:>6.4f}  {of_class.f1:>6.4f}"
        lines.append(f"{label:<{width}}  {of_class.n:>6}  {values}")
    return lines


def _mistakes(scores: Scores, labels: Sequence[str]) -> list[str]:
    mistakes = [
        (count, labels[truth], labels[predicted])
        for truth, row in enumerate(scores.confusion)
        for predicted, count in enumerate(row)
        if count and truth != predicted
    ]
    worst = sorted(mistakes, key=lambda mistake: -mistake[0])[:N_MISTAKES]
    return [f"{truth} taken for {predicted}: {count}" for count, truth, predicted in worst] or ["no mistakes"]


def format_skipped(skipped: Sequence[Skipped]) -> str:
    """How many files were left out, and which."""
    lines = [f"  {one.file.path}: {one.reason}" for one in skipped[:MAX_SKIPPED]]
    if len(skipped) > MAX_SKIPPED:
        lines.append(f"  … and {len(skipped) - MAX_SKIPPED} more")
    return "\n".join(
        [f"skipped {len(skipped)} {'file' if len(skipped) == 1 else 'files'} that cannot be read as images:", *lines]
    )
