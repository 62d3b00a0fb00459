"""Draw what pretraining gains, by share of labels: one line for each row of ablate.py.

    python examples/gains.py gains.png results/flowers-64-scratch.json [MORE.json ...] [--over mae-equal-time]

The files are ablation.json of ``ablate.py``; more of them add rows, or seeds to the same rows. All rows are compared
with training from scratch, or with the row that ``--over`` names, draw by draw of the labels. Where several files have
``scratch`` with a draw, the first one counts. A point is the mean of the paired differences over the draws that both
rows have, a bar their standard deviation. The figures are printed too, with the number of draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure
from reference.evaluation import mean_spread, written

TITLES = {
    "groups": "GMML, groups",
    "tokens": "GMML, single patches",
    "pixel-targets": "GMML, groups, targets in pixels",
    "tokens-pixel-targets": "GMML, single patches, in pixels",
    "mae-equal-time": "MAE, as many seconds",
    "simmim-equal-time": "SimMIM, as many seconds",
}


def gains(files: list[Path], over: str) -> dict[str, dict[float, list[float]]]:
    """Return for each row and share of labels, in percent, the gains over a row in points."""
    accuracies: dict[str, dict[tuple[float, int], float]] = {over: {}}  # of each share and draw
    for path in files:
        table = json.loads(path.read_text())
        draws = [seed * table["draws"] + number for seed in table["seeds"] for number in range(table["draws"])]
        for row, figures in table["rows"].items():
            each = accuracies.setdefault(row, {})
            for percent in table["labels"]:
                for draw, value in zip(draws, figures[f"fine-tuned, {percent:g} %"]["each"], strict=True):
                    if each.setdefault((percent, draw), value) != value and row != "scratch":
                        raise SystemExit(f"{path} has other figures of {row} than a file before it, with the same draw")
    base = accuracies.pop(over)
    found: dict[str, dict[float, list[float]]] = {}
    for row, each in accuracies.items():
        for percent in sorted({percent for percent, _ in each}):
            shared = [value - base[key] for key, value in each.items() if key[0] == percent and key in base]
            if not shared:
                raise SystemExit(f"{row} and {over} share no draw of {percent:g} % of the labels in these files")
            found.setdefault(row, {})[percent] = shared
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("picture", type=Path, help="where to draw")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="ablation.json of ablate.py")
    parser.add_argument("--over", default="scratch", metavar="ROW", help="what all rows are compared with")
    args = parser.parse_args()
    found = gains(args.files, args.over)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for place, (row, each) in enumerate(found.items()):
        spreads = {percent: mean_spread(values) for percent, values in each.items()}
        said = (f"{p:>8g} %: {written(spreads[p], '+')} ({len(each[p])} draws)" for p in each)
        print(f"{row:<20}" + "".join(said))
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
    base = "training from scratch" if args.over == "scratch" else TITLES.get(args.over, args.over)
    axis.set_ylabel(f"points gained over {base}")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(args.picture, dpi=130)
    print(f"drew {args.picture}")


if __name__ == "__main__":
    main()
