"""The table, the chart and the verdict of an evaluation."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from scipy.stats import ttest_1samp

from .checkpoint import save_text
from .config import Config
from .draws import draw
from .evaluation import SIDES, Evaluation, finetune_both, judge_frozen, made_by, mean_spread, planned, written
from .finetuning import labels_of
from .report import write_report

mpl.use("Agg")
from matplotlib import pyplot as plt


def compare(evaluation: Evaluation, config: Config, script: str, words: list[str]) -> None:
    """Judge a run at each share of labels by the config's protocol; print table and verdict, and write them."""
    labels, classes = labels_of(evaluation.data.train), evaluation.data.classes
    evaluation.begun, evaluation.planned = 0, planned(labels, classes, config).fine_tunings
    results = {}
    for percent in config.labels:
        methods = finetune_both(evaluation, percent, config) | judge_frozen(evaluation, percent, config)
        labelled = len(draw(labels, percent, 0, classes))
        results[percent] = {"percent": percent, "labelled": labelled, "methods": methods}
        results[percent]["verdict"] = verdict(methods["gain by pretraining"]["each"])
    report(evaluation, results, config, made_by(script, words, evaluation.device))


def report(
    evaluation: Evaluation, results: dict[float, dict[str, Any]], config: Config, made_by: dict[str, Any]
) -> None:
    """Print the table, and write it as evaluation.json, evaluation.png and a part of report.html."""
    data, test_labels = evaluation.data, labels_of(evaluation.data.test)
    chance = 100 * float(test_labels.bincount().max()) / len(test_labels)
    title = f"Accuracy in percent on {len(test_labels):,} held-out images of {data.name}, {len(data.classes)} classes"
    over = f"mean ± standard deviation over {config.draws} draws of the labels" if config.draws > 1 else "one draw"
    print(f"\n{title}; {over}.\n")
    print(" " * 31 + "".join(f"{f'{percent:g} % of labels':>18}" for percent in results))
    print(f"{'labelled images':<31}" + "".join(f"{one['labelled']:>18,}" for one in results.values()))
    for name in next(iter(results.values()))["methods"]:
        sign = "+" if name.startswith("gain") else ""
        cells = [written(one["methods"][name], sign) for one in results.values()]
        print(f"{name:<31}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{'always the most common class':<31}" + f"{chance:>18.1f}" * len(results) + "\n")
    edges = []
    for percent, one in results.items():
        tuned = [one["methods"][f"fine-tuned, {side}"] for side in SIDES]
        rates = " and ".join(f"{side} {figures['lr']:g}" for side, figures in zip(SIDES, tuned, strict=True))
        how = "searched for each side" if tuned[0]["search"] else "given"
        print(
            f"{percent:g} % of the labels: fine-tuned for {tuned[0]['steps']} steps"
            + (f" and {tuned[1]['steps']}" if tuned[1]["steps"] != tuned[0]["steps"] else "")
            + f"; learning rates, {how}: {rates}."
        )
        edges += [f"{side} with {percent:g} %" for side, figures in zip(SIDES, tuned, strict=True) if figures["edge"]]
    if edges:
        print(f"The best learning rate is at the edge of --rates: {'; '.join(edges)}. Others may do better.")
    for percent, one in results.items():
        print("\n" + textwrap.fill(f"{percent:g} % of the labels: {one['verdict']}", 100))
    everything = {
        **made_by,
        "data": {"name": evaluation.data_name, "training": len(data.train), "held_out": len(test_labels)}
        | {"classes": data.classes, "most_common_class": chance},
        "pretraining": {"weights": evaluation.fingerprint, **asdict(evaluation.config)},
        "protocol": {
            name: getattr(config, name)
            for name in ("labels", "draws", "search_draws", "rates", "layer_decay", "finetune_steps", "finetune_epochs")
        },
        "results": list(results.values()),
    }
    save_text(evaluation.run / "evaluation.json", json.dumps(everything, indent=1) + "\n")
    draw_chart(evaluation.run / "evaluation.png", title, chance, results, config.draws)
    print(f"\nEvery figure: {evaluation.run}/evaluation.json; chart: {evaluation.run}/evaluation.png")
    write_report(evaluation.run)
    print(f"All of the run on one page: {evaluation.run}/report.html")


def draw_chart(path: Path, title: str, chance: float, results: dict[float, dict[str, Any]], seeds: int) -> None:
    shown = {
        "fine-tuned, pretrained": "tab:blue",
        "fine-tuned, from scratch": "tab:orange",
        "linear probe, pretrained": "tab:cyan",
        "nearest neighbours, pretrained": "tab:green",
        "nearest neighbours, pixels": "tab:gray",
    }
    figure, axis = plt.subplots(figsize=(2.5 + 2.5 * len(results), 5))
    width = 0.84 / len(shown)
    for number, (name, colour) in enumerate(shown.items()):
        figures = [one["methods"][name] for one in results.values()]
        places = [group + (number - (len(shown) - 1) / 2) * width for group in range(len(results))]
        heights = [one["mean"] for one in figures]
        bars = [math.nan if one["std"] is None else one["std"] for one in figures]  # matplotlib leaves nan out
        axis.bar(places, heights, 0.92 * width, yerr=bars, capsize=3, color=colour, label=name)
        tops = [one["mean"] + (one["std"] or 0.0) for one in figures]
        for place, height, top in zip(places, heights, tops, strict=True):
            axis.text(place, top + 1, f"{height:.1f}", ha="center", va="bottom", fontsize=8)
    axis.axhline(chance, color="black", linestyle=":", label="always the most common class")
    axis.set_xticks(
        range(len(results)),
        [f"{percent:g} % of the labels\n{one['labelled']:,} images" for percent, one in results.items()],
    )
    axis.set_ylim(0, 110)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel("accuracy (%)")
    below = f"mean of {seeds} draws; error bars: standard deviation, where draws differ"
    axis.set_title(f"{title.replace('in percent ', '')}\n{below}", fontsize=10)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=9, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def verdict(gains: list[float]) -> str:
    """Return in a sentence what pretraining was worth, in points of accuracy, and whether that is more than chance."""
    gain = f"{written(mean_spread(gains), '+')} points over {len(gains)} draw{'s' * (len(gains) > 1)} of the labels"
    if len(gains) < 2:
        return f"Pretraining changed the accuracy by {gain}: too few to tell that from chance; give --draws 3 or more."
    alike = len(set(gains)) == 1
    p = float(gains[0] == 0) if alike else float(ttest_1samp(gains, 0).pvalue)
    if p < 0.05:
        return f"Pretraining {'helped' if sum(gains) > 0 else 'hurt'}: {gain}, more than chance (t-test, p = {p:.2g})."
    return (
        f"Whether pretraining helped is open: {gain}, which may be chance (t-test, p = {p:.2g}); more --draws tell, "
        "and more --epochs or images may help."
    )
