"""Draw what pretraining gains over training from scratch, by share of labels: one line for each row of ablate.py.

    python examples/gains.py gains.png results/flowers-64-scratch.json [MORE.json ...]

The files are ablation.json of ``ablate.py``; more of them add rows, or seeds to the same rows. The row ``scratch`` of
the first one is what all others are compared with, draw by draw of the labels. A point is the mean of the paired
differences over all seeds and draws of the labels, a bar their standard deviation. The figures are printed too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

TITLES = {
    "groups": "GMML, groups, targets in pixels",
    "normalised-targets": "GMML, groups, normalised targets",
    "tokens": "GMML, single patches, in pixels",
    "mae-equal-time": "MAE, as many seconds",
    "simmim-equal-time": "SimMIM, as many seconds",
}


def gains(files: list[Path]) -> dict[str, dict[float, list[float]]]:
    """Return for each row and share of labels, in percent, the gains in points."""
    accuracies: dict[str, dict[tuple[float, int], float]] = {}  # of each share and draw
    for path in files:
        table = json.loads(path.read_text())
        draws = [seed * table["draws"] + number for seed in table["seeds"] for number in range(table["draws"])]
        for row, figures in table["rows"].items():
            if row == "scratch" and path != files[0]:
                continue
            each = accuracies.setdefault(row, {})
            for percent in table["labels"]:
                for draw, value in zip(draws, figures[f"fine-tuned, {percent:g} %"]["each"], strict=True):
                    if each.setdefault((percent, draw), value) != value:
                        raise SystemExit(f"{path} has other figures of {row} than a file before it, with the same draw")
    scratch = accuracies.pop("scratch", {})
    found: dict[str, dict[float, list[float]]] = {}
    for row, each in accuracies.items():
        for (percent, draw), value in each.items():
            if (percent, draw) not in scratch:
                raise SystemExit(
                    f"{row} has draw {draw} of {percent:g} % of the labels, and {files[0]} has no row scratch with it"
                )
            found.setdefault(row, {}).setdefault(percent, []).append(value - scratch[percent, draw])
    return found


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(f"{__doc__}\ngains.py takes a picture's path and one or more files; got {sys.argv[1:]}")
    from reference.evaluation import mean_spread, written

    picture, *files = map(Path, sys.argv[1:])
    found = gains(files)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for place, (row, each) in enumerate(found.items()):
        spreads = {percent: mean_spread(values) for percent, values in sorted(each.items())}
        print(f"{row:<20}" + "".join(f"{percent:>8g} %: {written(spread, '+')}" for percent, spread in spreads.items()))
        axis.errorbar(
            [percent * 1.04 ** (place - len(found) / 2) for percent in spreads],  # side by side
            [spread["mean"] for spread in spreads.values()],
            [spread["std"] or 0 for spread in spreads.values()],
            marker="o",
            capsize=3,
            label=TITLES.get(row, row),
        )
    shares = sorted({percent for each in found.values() for percent in each})
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:g} %" for share in shares])
    axis.minorticks_off()
    axis.axhline(0, color="grey", linewidth=1)
    axis.set_xlabel("share of the labels")
    axis.set_ylabel("points gained over training from scratch")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(picture, dpi=130)
    print(f"drew {picture}")


if __name__ == "__main__":
    main()
