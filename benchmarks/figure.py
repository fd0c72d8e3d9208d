"""README's figure: accuracy against the share that is kept, with random and everything beside it.

python benchmarks/figure.py --to docs/images/accuracy.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
PANELS = {
    "Digits: models are right on 98 % of what they never saw": "digits_choice_cpu.json",
    "CIFAR-10, 20,000 images: right on 48 %": "cifar10_20k_choice_cpu.json",
}
LINES = {  # colours of Okabe and Ito, which the colour-blind tell apart
    "random": ("random subset", "#777777", "o"),
    "auto": ("chosen by policy auto", "#0072B2", "s"),
    "drawn anew": ("KeptSampler: drawn anew in each epoch", "#D55E00", "^"),
}


def draw(axes: Axes, title: str, report: dict[str, Any]) -> None:
    for method, (label, colour, marker) in LINES.items():
        rows = sorted((row["keep"], row["mean"], row["std"]) for row in report["rows"] if row["method"] == method)
        keeps, means, stds = zip(*rows, strict=True)
        ends = [std / len(report["suite"]["seeds"]) ** 0.5 for std in stds]
        axes.errorbar(
            keeps, means, ends, label=label, color=colour, marker=marker, markersize=5, capsize=2, linewidth=1.6
        )
    full = report["full"]["mean"]
    axes.axhline(full, color="black", linestyle=":", linewidth=1.2, label="everything")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("share of the samples in an epoch")
    axes.set_xticks([0.1, 0.3, 0.5, 0.7, 0.9])
    axes.grid(alpha=0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    mpl.rcParams.update({"svg.hashsalt": "unseen_ray", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (title, name) in zip(panels, PANELS.items(), strict=True):
        draw(axes, title, json.loads((RESULTS / name).read_text()))
    panels[0].set_ylabel("accuracy on unseen images")
    panels[0].legend(loc="lower right", fontsize=8)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.to, metadata={"Date": None})


if __name__ == "__main__":
    main()
