"""The charts of the report: numbers in, inline SVG out. Colours and strokes are classes of report.html."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 250  # units of the chart; its text stays readable from 340 to 480 pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 384, 12, 206  # of the plot itself
MAX_POINTS = 300  # of a line; more cannot be seen


@dataclass(frozen=True)
class Axis:
    name: str
    show: Callable[[float], str] = "{:.3g}".format
    least_step: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points of a chart; those that are not finite are left out."""

    name: str  # in the legend, unless empty
    points: Sequence[tuple[float, float]]
    style: str = "line a"  # classes of the page; "point" makes dots


def chart(x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A figure with the name of `y` and the legend above it; the axes reach around all points."""
    columns = _ticks((at for one in series for at, _ in one.points), x.least_step)
    rows = _ticks((at for one in series for _, at in one.points), y.least_step)

    def place(at: tuple[float, float]) -> tuple[float, float]:
        right, up = (at[0] - columns[0]) / (columns[-1] - columns[0]), (at[1] - rows[0]) / (rows[-1] - rows[0])
        return LEFT + right * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    keys = "".join(f' <span class="key {one.style}">{escape(one.name)}</span>' for one in series if one.name)
    parts = [f'<text x="{place((tick, 0))[0]:.1f}" y="{BOTTOM + 18}">{x.show(tick)}</text>' for tick in columns]
    for tick in rows:
        height = place((0, tick))[1]
        parts.append(f'<path class="rule" d="M{LEFT},{height:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 7}" y="{height + 4:.1f}">{y.show(tick)}</text>')
    parts += [_draw([place(at) for at in one.points if math.isfinite(at[1])], one.style) for one in series]
    return (
        f'<figure><figcaption><b>{escape(y.name)}</b>{keys}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(y.name)} by {escape(x.name)}">{"".join(parts)}'
        f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 38}">{escape(x.name)}</text></svg></figure>'
    )


def percent(value: float) -> str:
    """0.9915 as 99.15%, with the decimals it needs."""
    return f"{100 * value:.4g}%"


def _draw(places: Sequence[tuple[float, float]], style: str) -> str:
    if style.startswith("point"):
        return "".join(f'<circle class="{style}" cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>' for a, b in places)
    shown = [*places[:: len(places) // MAX_POINTS + 1], *places[-1:]]  # the last again: a lone point becomes a dot
    return f'<polyline class="{style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in shown)}"/>'


def _ticks(values: Iterable[float], least_step: float) -> list[float]:
    """About five round numbers, around all that are finite."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    wanted = max((high - low) / 5, least_step) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(wanted))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= wanted * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
