"""Visits to tables: medians, and ratios within each round against the neighbouring run of ours."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

Visit = dict[str, Any]  # round, pair, contender, setting, model, cold_seconds, cells: {cell: {rate, p50_ms, …}}


def spread(values: Iterable[float], digits: int) -> str:
    """Median, least and most."""
    found = list(values)
    return f"{median(found):,.{digits}f} ({min(found):,.{digits}f}–{max(found):,.{digits}f})"


def format_tables(visits: Sequence[Visit]) -> str:
    """All tables of one run as Markdown."""
    cells = dict.fromkeys((visit["model"], cell) for visit in visits for cell in visit["cells"])
    parts = [
        _cell_table([visit for visit in visits if visit["model"] == model], cell, base)
        for model, cell in cells
        for base in ("ours", "ours as shipped")
        if any(visit["contender"] == base and cell in visit["cells"] for visit in visits)
    ]
    return "\n\n".join([*parts, _start_table(visits)])


def _cell_table(visits: Sequence[Visit], cell: str, base: str) -> str:
    """One cell, the fastest first. `base` says against which of ours; the other of ours is left out."""
    rows = {
        key: mine
        for key, mine in _by_setting(visits, cell).items()
        if ("as shipped" not in key[0] if base == "ours" else key[0] not in ("ours", "limit"))
    }
    best: dict[str, tuple[str, list[Visit]]] = {}
    for (name, setting), mine in rows.items():
        if name not in best or _rate(mine, cell) > _rate(best[name][1], cell):
            best[name] = (setting, mine)
    what = "the peers' pixels" if base == "ours" else "our own decode rule and model, as shipped; the peers serve fp32"
    lines = [
        f"### {cell}: {what}",
        "",
        f"| | req/s | p50 ms | p99 ms | errors | server cores | wrk cores | PSS MB | {base} ÷ it |",
    ]
    lines.append("|---" * 9 + "|")
    for name, (setting, mine) in sorted(best.items(), key=lambda item: -_rate(item[1][1], cell)):
        title = f"{name} ({setting})" if setting else name
        ratios = _ratios(visits, mine, cell, base)
        lines.append(f"| {title} | {_columns([visit['cells'][cell] for visit in mine])} | {ratios} |")
    return "\n".join(lines)


def _by_setting(visits: Sequence[Visit], cell: str) -> dict[tuple[str, str], list[Visit]]:
    rows: dict[tuple[str, str], list[Visit]] = {}
    for visit in visits:
        if cell in visit["cells"]:
            rows.setdefault((visit["contender"], visit["setting"]), []).append(visit)
    return rows


def _rate(visits: Sequence[Visit], cell: str) -> float:
    return float(median(visit["cells"][cell]["rate"] for visit in visits))


def _columns(loads: Sequence[dict[str, float]]) -> str:
    def column(name: str, digits: int, pick: Callable[[list[float]], float] = median) -> str:
        values = [load[name] for load in loads if name in load]
        return f"{pick(values):,.{digits}f}" if values else ""

    rate = spread((load["rate"] for load in loads), 1 if loads[0]["rate"] < 1000 else 0)
    columns = [rate, column("p50_ms", 1), column("p99_ms", 1), column("errors", 0, sum)]
    return " | ".join([*columns, column("server_cores", 2), column("wrk_cores", 2), column("pss_mb", 0, max)])


def _ratios(visits: Sequence[Visit], mine: Sequence[Visit], cell: str, base: str) -> str:
    """Through the neighbouring run of ours: what drifts between rounds, and within one, cancels out."""
    ours = {(visit["round"], visit["pair"]): visit["cells"] for visit in visits if visit["contender"] == "ours"}

    def against_ours(visit: Visit) -> float | None:
        beside = ours.get((visit["round"], visit["pair"]), {})
        return beside[cell]["rate"] / visit["cells"][cell]["rate"] if cell in beside and visit["cells"][cell]["rate"] else None

    bases = {visit["round"]: against_ours(visit) for visit in visits if visit["contender"] == base and cell in visit["cells"]}
    ratios = [
        theirs / ours_beside
        for visit in mine
        if visit["contender"] != base and (ours_beside := bases.get(visit["round"])) and (theirs := against_ours(visit))
    ]
    return spread(ratios, 2) if ratios else ""


def _start_table(visits: Sequence[Visit]) -> str:
    lines = ["### Start and memory", "", "| | cold start to the first 200, s | peak PSS MB |", "|---|---|---|"]
    rows: dict[str, list[Visit]] = {}
    for visit in visits:
        if visit.get("cold_seconds"):
            rows.setdefault(f"{visit['model']}: {visit['contender']} {visit['setting']}".strip(), []).append(visit)
    for name, mine in rows.items():
        peak = max((cell["pss_mb"] for visit in mine for cell in visit["cells"].values()), default=0)
        lines.append(f"| {name} | {spread((visit['cold_seconds'] for visit in mine), 2)} | {peak:,.0f} |")
    return "\n".join(lines)
