"""Why deeper plain networks get worse and deeper residual networks do not: the table and curves of docs/training.md.

    python -m benchmarks.depth CIFAR10 --images 20000 --epochs 6 --out docs/plots/depth.svg

Trains both kinds at 8, 20 and 32 layers on the same images, in the same order, with the same schedule: only the shortcuts
differ. CIFAR10 is a folder of class folders under train/ and test/. Source: He et al., 2015, figure 6.
"""

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path

import torch

from training.batches import Batches
from training.charts import Axis, Series, chart
from training.data_set import read_data_set
from training.loop import Training
from training.memory import keep_freed_memory
from training.networks import ResidualNet
from training.progress import Progress
from training.recipes import RESIDUAL
from training.run_report import Epoch

BLOCKS = (1, 3, 5)  # per stage: 8, 20 and 32 layers
STYLES = ("#9a9a9a", "#d97706", "#1d4ed8")  # one for each depth
STYLE = (
    "text{font:13px sans-serif;fill:#666;text-anchor:middle}.end{text-anchor:end}.rule{stroke:#8884;fill:none}"
    "polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
) + "".join(f".d{2 * 3 * blocks + 2}{{stroke:{colour}}}" for blocks, colour in zip(BLOCKS, STYLES, strict=True))


def main() -> None:
    """Trains, prints the table and writes the curves."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__)
    parser.add_argument("data", type=Path, metavar="CIFAR10")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True, metavar="SVG")
    options = parser.parse_args()
    keep_freed_memory()
    data = read_data_set(options.data, RESIDUAL.input, seed=0)
    whole, validation = Batches.of(data.train), Batches.of(data.validation)
    train = whole[:: max(1, len(whole) // options.images)]
    print(f"{len(train):,} images, {options.epochs} epochs, {len(validation):,} to validate, {torch.get_num_threads()} threads")
    curves = {
        (kind, 6 * blocks + 2): fit(kind == "residual", blocks, options.epochs, train, validation)
        for kind in ("plain", "residual")
        for blocks in BLOCKS
    }
    options.out.write_text(draw(curves), encoding="utf-8")


def fit(shortcuts: bool, blocks: int, epochs: int, train: Batches, validation: Batches) -> list[Epoch]:
    """The epochs of one network, trained as the paper did: SGD, mirrored and shifted images, no smoothing."""
    network = ResidualNet((16, 32, 64), blocks, shortcuts=shortcuts)
    recipe = replace(
        RESIDUAL, network=network, optimizer="sgd", peak_learning_rate=0.1, label_smoothing=0, average_decay=0.9, epochs=epochs
    )
    training, begun = Training(recipe, 10, seed=0), time.monotonic()
    with Progress(epochs, train.steps(recipe.batch_size)) as progress:
        while not training.is_over:
            training.run_epoch(train, validation, progress)
    last = training.history[-1]
    print(
        f"| {'residual' if shortcuts else 'plain'} | {6 * blocks + 2} | {last.train_loss:.3f} | {last.accuracy:.1%} "
        f"| {time.monotonic() - begun:.0f} s |",
        flush=True,
    )
    return training.history


def draw(curves: dict[tuple[str, int], list[Epoch]]) -> str:
    """The training loss of both kinds, side by side, as one picture."""
    losses = [one.train_loss for curve in curves.values() for one in curve]
    panels = []
    for place, kind in enumerate(("plain", "residual")):
        lines = [
            Series("", [(one.number, one.train_loss) for one in curve], f"d{depth}")
            for (of, depth), curve in curves.items()
            if of == kind
        ]
        scale = Series("", [(1, min(losses)), (1, max(losses))], "d0")  # the same axis on both sides
        [svg] = re.findall(
            r"<svg.*</svg>", chart(Axis(f"{kind}: epoch", "{:g}".format, 1), Axis("Training loss"), [*lines, scale])
        )
        panels.append(svg.replace("<svg ", f'<svg x="{place * 420}" width="400" height="250" ', 1))
    key = "".join(
        f'<text x="{300 + 110 * place}" y="270" style="fill:{colour}">{6 * blocks + 2} layers</text>'
        for place, (blocks, colour) in enumerate(zip(BLOCKS, STYLES, strict=True))
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 280"><style>{STYLE}</style>{"".join(panels)}{key}</svg>\n'


if __name__ == "__main__":
    main()
