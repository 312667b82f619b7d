"""ConvServe against its own limit and against other servers, in one interleaved run.

    python -m benchmarks.serving --work FOLDER [--peers all] [--photo FILE] [--rounds 3] [--seconds 8]

Everything runs on this machine and nothing else should. FOLDER keeps environments, inputs, logs and the run's visits, so that a
run that was stopped goes on where it was (--resume). Needs wrk, and the network for the first installation only.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.serving.contenders import PEERS, PEERS_FOLDER, ROOT, Contender, Variables, of_model, ours
from benchmarks.serving.inputs import DIGITS, SHIPPED, make_inputs, make_plain_model, reference
from benchmarks.serving.measure import Server, press
from benchmarks.serving.table import Visit, format_tables

CELLS = {  # name: model, input, clients
    **{f"digits-{c}": ("digits", "digit", c) for c in (1, 32, 128)},
    **{f"photo-{c}": ("imagenet", "photo", c) for c in (1, 32, 128)},
    **{f"12mp-{c}": ("imagenet", "12mp", c) for c in (1, 8)},
}
PORT = 18640
WARM_UP_SECONDS = 2
TOLERANCE = 2e-3  # of a probability: numpy and onnxruntime builds differ by less


@dataclass(frozen=True)
class Plan:
    """One start of one contender, or one measuring of the limit; `setting` is empty for ours and the limit."""

    round: int
    pair: int
    contender: Contender
    setting: str
    model: str
    cells: tuple[str, ...]

    @property
    def is_limit(self) -> bool:
        return self.contender.name.startswith("limit")

    @property
    def is_ours(self) -> bool:
        return self.contender.name.startswith("ours")

    @property
    def as_shipped(self) -> bool:
        return "as shipped" in self.contender.name

    @property
    def variables(self) -> Variables:
        """Those of the setting."""
        return self.contender.settings[self.model][self.setting == "latency"] if self.setting else {}

    @property
    def head(self) -> dict[str, Any]:
        """What tells its visit from others."""
        names = {"contender": self.contender.name, "setting": self.setting, "model": self.model}
        return {"round": self.round, "pair": self.pair, **names}


def main() -> None:
    """Installs, checks, measures, writes the tables."""
    options = _parse()
    options.work.mkdir(parents=True, exist_ok=True)
    everyone = [ours(), *(peer for peer in PEERS if peer.name in options.peers)]
    for contender in everyone:
        install(contender, options.work)
    if options.install_only:
        return
    images, models = make_inputs(options.work, options.photo), {"digits": DIGITS}
    if any(CELLS[cell][0] == "imagenet" for cell in options.cells):
        models["imagenet"] = make_plain_model(options.work / "imagenet-plain.onnx")
    bench = Bench(options, images, models)
    bench.check()
    if options.check_only:
        return
    about = describe(options.work, everyone, options)
    visits = bench.run()
    out = options.out or ROOT / "benchmarks" / "results" / f"{time.strftime('%Y-%m-%d')}-{_slug(processor())}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text(f"{about}\n\n{format_tables(visits)}\n", encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps({"about": about.splitlines(), "visits": visits}, indent=1) + "\n")
    print(format_tables(visits), f"\nwritten to {out} and .json")


class Bench:
    """The run. `models` are those with the peers' pixels."""

    def __init__(self, options: argparse.Namespace, images: dict[str, bytes], models: dict[str, Path]) -> None:
        self._options, self._images, self._models = options, images, models
        self._plans = [
            plan for number in range(1, options.rounds + 1) for model in models for plan in self._plan(number, model)
        ]
        self._file = options.work / f"{options.resume or time.strftime('%Y%m%d-%H%M%S')}.jsonl"

    def _plan(self, number: int, model: str) -> Iterator[Plan]:
        """One round: contenders in twos with ours between them, so that each has ours beside it; every second one backwards."""
        cells = tuple(cell for cell in self._options.cells if CELLS[cell][0] == model)
        alone = tuple(cell for cell in cells if CELLS[cell][2] == 1)
        everyone = of_model(model, self._options.peers)
        limits = [ours(name) for name in ("limit", "limit as shipped")[: 1 + (model == "imagenet")]]
        fast = [(one, "throughput" if one.settings else "", cells) for one in (*everyone, *limits) if cells]
        patient = [(one, "latency", alone) for one in everyone if one.settings and alone]
        entries = fast + patient
        order = list(enumerate(entries[start : start + 2] for start in range(0, len(entries), 2)))
        step = 1 if number % 2 else -1
        for pair, two in order[::step]:
            beside = cells if any(one[2] == cells for one in two) else alone
            first, *rest = two[::step]
            for one, setting, wanted in (first, (ours(), "", beside), *rest):
                yield Plan(number, pair, one, setting, model, wanted)

    def check(self) -> None:
        """Each contender and setting answers every input as it must, before anything is measured."""
        firsts = {(plan.model, plan.contender.name, plan.setting): plan for plan in self._plans if not plan.is_limit}
        for title, plan in firsts.items():
            server, _ = self._start(plan)
            try:
                for name in dict.fromkeys(CELLS[cell][1] for cell in plan.cells):
                    image = self._images[name]
                    found = dict(plan.contender.read(*server.ask(*plan.contender.pack(image))))
                    wanted = reference(self._model(plan), image, as_peers=not plan.as_shipped)
                    if any(abs(found.get(index, 0) - share) > TOLERANCE for index, share in wanted if share > 0.01):
                        sys.exit(f"error: {title} answers {name} with {found}, not {wanted}")
            finally:
                server.close()
            print("checked", *title, file=sys.stderr)

    def run(self) -> list[Visit]:
        """Measures what the run's file does not have yet."""
        visits: list[Visit] = [json.loads(line) for line in self._file.read_text().splitlines()] if self._file.exists() else []
        heads = [{name: visit[name] for name in self._plans[0].head} for visit in visits]
        for count, plan in enumerate(self._plans, start=1):
            if plan.head in heads:
                continue
            visits.append(plan.head | (self._limit(plan) if plan.is_limit else self._visit(plan)))
            with self._file.open("a") as file:
                file.write(json.dumps(visits[-1]) + "\n")
            rates = ", ".join(f"{cell} {one['rate']:,.1f}" for cell, one in visits[-1]["cells"].items())
            print(
                f"{count}/{len(self._plans)}, round {plan.round}: {plan.contender.name} {plan.setting} {rates}", file=sys.stderr
            )
        print(f"visits: {self._file}", file=sys.stderr)
        return visits

    def _visit(self, plan: Plan) -> dict[str, Any]:
        server, cold = self._start(plan)
        cells, body_file = {}, self._options.work / "body"
        try:
            for cell in plan.cells:
                _, image, connections = CELLS[cell]
                headers, body = plan.contender.pack(self._images[image])
                body_file.write_bytes(body)
                press(server, headers, body_file, connections, WARM_UP_SECONDS)
                server.drain()
                cells[cell] = press(server, headers, body_file, connections, self._options.seconds)
                server.drain()
        finally:
            server.close()
        return {"cold_seconds": round(cold, 3), "cells": cells}

    def _limit(self, plan: Plan) -> dict[str, Any]:
        told: dict[str, dict[str, tuple[float, str]]] = {}
        for image in dict.fromkeys(CELLS[cell][1] for cell in plan.cells):
            command = [_python(self._options.work, "ours"), "-m", "benchmarks.serving.limit", self._model(plan)]
            ran = subprocess.run([*command, self._options.work / image], cwd=ROOT, capture_output=True, text=True, check=True)
            told[image] = json.loads(ran.stdout)
        best = {cell: told[CELLS[cell][1]]["alone" if CELLS[cell][2] == 1 else "busy"] for cell in plan.cells}
        return {"cells": {cell: {"rate": round(rate, 3), "how": how} for cell, (rate, how) in best.items()}}

    def _model(self, plan: Plan) -> Path:
        return SHIPPED if plan.as_shipped else self._models[plan.model]

    def _start(self, plan: Plan) -> tuple[Server, float]:
        """The server, and the seconds until it answered."""
        contender, work, prefix = plan.contender, self._options.work, "CONVSERVE_" if plan.is_ours else "BENCH_"
        python = _python(work, "ours" if plan.is_ours else contender.name)
        given = {name: str(value) for name, value in plan.variables.items()}
        words = {"python": str(python), "bin": str(python.parent), "port": str(PORT), "base": sys.base_prefix, **given}
        variables = {name: str(value).format(**words) for name, value in contender.variables.items()} | given
        variables |= {f"{prefix}MODEL": str(self._model(plan)), f"{prefix}PORT": str(PORT)}
        if not plan.is_ours:
            variables |= {"BENCH_WORK": str(work), "PYTHONPATH": str(PEERS_FOLDER)}
        folder, log = ROOT if plan.is_ours else PEERS_FOLDER, work / f"{contender.name.replace(' ', '-')}.log"
        command = [word.format(**words) for word in contender.command]
        server = Server(command, variables, folder, f"http://127.0.0.1:{PORT}{contender.path}", log)
        try:
            return server, server.wait_for_answer(*contender.pack(self._images[CELLS[plan.cells[0]][1]]))
        except (ChildProcessError, TimeoutError) as error:
            server.close()
            sys.exit(f"error: {contender.name} {plan.setting}: {error}: see {log}")


def install(contender: Contender, work: Path) -> None:
    """Makes the contender's own environment, unless it is there with these very requirements."""
    python = _python(work, contender.name)
    stamp, wanted = python.parents[1] / "installed", "\n".join(contender.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {contender.name} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", python.parents[1]], check=True)
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-input", *contender.requirements], check=True)
    stamp.write_text(wanted)


def describe(work: Path, everyone: Sequence[Contender], options: argparse.Namespace) -> str:
    """Machine, versions and how it was measured."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    machine = f"ConvServe {commit.stdout.strip()}, Python {platform.python_version()}, {platform.platform()}."
    how = f"{options.rounds} rounds, windows of {options.seconds} s after warm-up and drain, wrk on the same cores."
    ratios = "Ratios are within each round against the neighbouring run of ours; median (least–most)."
    lines = [f"# {time.strftime('%Y-%m-%d')}: {processor()}, {os.cpu_count()} cores", "", machine, how, ratios, ""]
    names = {"onnxruntime", "pillow", "numpy", "fastapi", "starlette", "uvicorn", "uvloop"}
    for one in everyone:
        listing = subprocess.run([_python(work, one.name), "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
        own = names | {word.partition("==")[0] for word in one.requirements}
        found = [line for line in listing.stdout.splitlines() if line.partition("==")[0].lower() in own]
        lines.append(f"- {one.name}: {', '.join(found)}")
    return "\n".join(lines)


def _python(work: Path, name: str) -> Path:
    return work / "environments" / name / "bin" / "python"


def _slug(text: str) -> str:
    return "-".join(text.lower().replace("(r)", "").split())[:40]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {peer.name.lower(): peer.name for peer in PEERS}
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--peers", default="none", help=f"all, none, or of {','.join(names)}")
    parser.add_argument("--cells", default=",".join(cell for cell in CELLS if cell != "12mp-1"), help=f"of {','.join(CELLS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of a window")
    parser.add_argument("--photo", type=Path, metavar="FILE", help="a photograph to send (default: the model's first golden)")
    parser.add_argument("--resume", metavar="NAME", help="of the run's file in FOLDER, without .jsonl; it is made if missing")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="default: benchmarks/results/<date>-<processor>.md")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--check-only", action="store_true", help="install, start each and compare its answers")
    options = parser.parse_args()
    chosen = {"all": list(names), "none": []}.get(options.peers, options.peers.lower().split(","))
    options.cells, options.work = options.cells.split(","), options.work.resolve()
    if unknown := {*chosen} - {*names} | {*options.cells} - {*CELLS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if not shutil.which("wrk"):
        parser.error("wrk is missing (Debian: apt install wrk)")
    options.peers = tuple(names[one] for one in chosen)
    return options


if __name__ == "__main__":
    main()
