"""What pretraining was worth: a finished run against the same network from scratch, at several shares of the labels.

    python examples/evaluate.py runs/x                    # 1 %, 10 % and 100 % of the labels, 3 seeds
    python examples/evaluate.py runs/x --data PATH        # on labelled images other than those it was pretrained on
    python examples/evaluate.py runs/x --labels 1 10 --epochs 5 10 --rates 5e-4 1e-3 2e-3 4e-3

Full fine-tuning is the same code for both sides: AdamW, weight decay 0.05, a tenth of the steps of warm-up and then a
cosine, gradients clipped at 3, batches of 50, in bf16 if the run was pretrained so. Learning rate and length are
searched for each side and share of labels by itself, over the same grid:

1. Every one of ``--rates`` is tried at the first budget. A budget is so many ``--epochs`` over the labelled images, but
   at least so many ``--steps``.
2. The best rate and its two neighbours are tried at the next budget, and so on.
3. The pair with the highest mean accuracy is taken. Where its rate is the first or last of ``--rates``, that is said.

The search draws labels with the seeds 100, 101, ... and scores on at most 2,000 training images without a label in that
draw (with 90 % of the labels or more, it trains on 90 %). The figures come from the seeds 0, 1, ...: each has a draw of
labels of its own, the same share of every class, and weights and an order of its own; they are accuracies on all
held-out images, which the search never sees. The regularisation of the linear probe is searched on the same draws.

Every fine-tuning is one line of evaluation.jsonl in the run folder and is not done again: what was killed goes on, and
commands for different shares may run side by side; the same command for all of them then puts the table together. It
is printed and written with every figure to evaluation.json, and drawn in evaluation.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shlex
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from checkpoint import save_text, tensors
from data import Data, Source, Views, load, of_run, order, pick_labelled, seed_of, the_same_images
from model import Autoencoder, Classifier, build, parameters
from scipy.stats import ttest_1samp
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

SIDES = ("pretrained", "from scratch")
SEARCH_SEED = 100  # the first; the figures' seeds are smaller
MOST_SCORED = 2000
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, of the linear probe


def labels_of(source: Source | None) -> Tensor:
    if source is None or source.labels is None:
        raise SystemExit(
            "the data have no labels or no held-out images; give --data with a folder of images that has one folder a "
            "class, with train/ and test/ above them or not"
        )
    return source.labels


def to_classify(data: Data) -> Tensor:
    """Return the labels of the training images; end here if there is nothing to tell apart."""
    labels_of(data.test)
    if len(data.classes) < 2:
        raise SystemExit(f"{data.name} has one class, {data.classes[0]}: nothing is to be told apart")
    return labels_of(data.train)


def draw(labels: Tensor, percent: float, seed: int, classes: list[str]) -> Tensor:
    """Return the indices of as many percent of each class, drawn at random."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    picked = []
    for c, name in enumerate(classes):
        of_class = shuffled[labels[shuffled] == c]
        picked.append(of_class[: round(len(of_class) * percent / 100)])
        if not len(picked[-1]):
            raise SystemExit(f"--labels {percent:g}: that many percent of the {len(of_class)} images of {name} is none")
    return torch.cat(picked)


def draw_for_search(labels: Tensor, percent: float, seed: int, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Return the indices of labelled training images, and of others to score on."""
    labelled = draw(labels, min(percent, 90), seed, classes)
    others = torch.ones(len(labels), dtype=torch.bool)
    others[labelled] = False
    left = others.nonzero().flatten()
    if not len(left):
        raise SystemExit(f"{len(labels)} training images are too few: none is left to search on")
    shuffled = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
    return labelled, left[shuffled[:MOST_SCORED]]


def finetune(
    model: Classifier,
    data: Data,
    source: Source,
    labelled: Tensor,
    lr: float,
    steps: int,
    seed: int,
    bf16: bool,
    label: str,
) -> None:
    """Train all weights on the labelled images: AdamW, weight decay 0.05, a cosine after a tenth of the steps."""
    views, batch_size, warmup = Views(data), batch_of(len(labelled)), max(1, steps // 10)
    device = model.head.weight.device
    labels = labels_of(source).to(device)
    optimizer = torch.optim.AdamW(parameters(model, 0.05))
    numbers = (number % len(labelled) for number in order(len(labelled), batch_size, seed, 0, steps))
    model.train()
    batches = source.batches(labelled[number] for number in numbers)
    for step, raw in enumerate(tqdm(batches, label, steps, leave=False)):
        share = (step + 1 - warmup) / max(1, steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr * ((step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share)))
        torch.manual_seed(seed_of(seed, step))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(views.augmented(raw.images))
        loss = F.cross_entropy(logits.float(), labels[raw.number % len(labels)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()


def batch_of(labelled: int) -> int:
    return min(50, labelled)


@torch.no_grad()
def outputs(
    function: Callable[[Tensor], Tensor], data: Data, source: Source, indices: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a function makes of images as they are, ``(N, width)``, and their labels."""
    views, labels = Views(data), labels_of(source)
    chosen = torch.arange(len(labels)) if indices is None else indices
    parts = [(function(views.plain(raw.images)).cpu(), raw.number.cpu()) for raw in source.batches(chosen.split(256))]
    made, numbers = (torch.cat(part) for part in zip(*parts, strict=True))
    return made.numpy(), labels[numbers % len(labels)].numpy()


def pixels(images: Tensor) -> Tensor:
    """Return the pixels in a row; of large images made smaller, so that those of all fit in memory."""
    small: Tensor = images if images.shape[-1] <= 32 else v2.functional.resize(images, [32, 32], antialias=True)
    return small.flatten(1)


@dataclass
class Evaluation:
    """A run's weights, the data they are judged on, and what was found so far, in evaluation.jsonl."""

    run: Path
    settings: dict[str, Any]
    data: Data
    device: torch.device
    data_name: str  # as --data had it
    descriptions: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return tensors(self.run / "autoencoder.safetensors")

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256((self.run / "autoencoder.safetensors").read_bytes()).hexdigest()[:12]

    def once(self, job: dict[str, Any], work: Callable[[], float]) -> float:
        """Return the accuracy, in percent, that ``work()`` gives, or gave for the same job before."""
        job = {"data": self.data_name, "images": self.data.fingerprint, "weights": self.fingerprint, **job}
        found = self.run / "evaluation.jsonl"
        text = found.read_text(errors="replace") if found.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut by a crash
                continue
            if record | job == record:
                return float(record["accuracy"])
        since = time.perf_counter()
        accuracy = work()
        line = json.dumps({**job, "accuracy": accuracy, "seconds": round(time.perf_counter() - since, 2)}) + "\n"
        with open(found, "ab", buffering=0) as file:  # one write: lines of commands that run side by side do not mix
            file.write(("\n" * (text[-1:] not in ("", "\n")) + line).encode())
        return accuracy

    def autoencoder(self, side: str, seed: int) -> Autoencoder:
        torch.manual_seed(seed)
        model = build(self.settings, self.data.channels)[0]
        if side == "pretrained":
            model.load_state_dict(self.weights)
        return model.to(self.device)

    def finetuned(
        self, job: dict[str, Any], labelled: Tensor, scored: tuple[Source, Tensor | None], label: str = ""
    ) -> float:
        """Return the accuracy, in percent, of the job's side after fine-tuning on the labelled images."""

        def work() -> float:
            side, lr, steps, seed = (job[name] for name in ("side", "lr", "steps", "seed"))
            model = Classifier(self.autoencoder(side, seed), len(self.data.classes)).to(self.device)
            what = f"{side}, rate {lr:g}, seed {seed}{label}"
            bf16 = self.settings["precision"] == "bf16"
            finetune(model, self.data, self.data.train, labelled, lr, steps, seed, bf16, what)
            logits, labels = outputs(model.eval(), self.data, *scored)
            return 100 * float((logits.argmax(1) == labels).mean())

        return self.once(job, work)

    def frozen(
        self, job: dict[str, Any], classifier: Any, what: str, labelled: Tensor, scored: Tensor | None = None
    ) -> float:
        """Return the accuracy, in percent, of scikit-learn's classifier on pixels or on a frozen network's features."""

        def work() -> float:
            x, y, x_test, y_test = self.described(what)
            if scored is not None:
                x_test, y_test = x[scored], y[scored]
            return 100 * float(classifier.fit(x[labelled], y[labelled]).score(x_test, y_test))

        return self.once(job, work)

    def described(self, what: str) -> tuple[np.ndarray, ...]:
        """Return the features, or pixels, and labels of all training images, and of all held-out ones."""
        if what not in self.descriptions:
            if what == "pixels":
                function: Callable[[Tensor], Tensor] = pixels
            else:
                function = self.autoencoder(what, seed=0).eval().pooled

            assert self.data.test is not None
            both = (outputs(function, self.data, source) for source in (self.data.train, self.data.test))
            self.descriptions[what] = tuple(array for pair in both for array in pair)
        return self.descriptions[what]


def settings_of(run: Path) -> dict[str, Any]:
    """Return the settings of a finished run; end here if it is none."""
    if not (run / "config.json").exists():
        raise SystemExit(f"{run} is no run folder of pretrain.py: it has no config.json")
    if not (run / "autoencoder.safetensors").exists():
        raise SystemExit(f"{run} is not finished: the pretrain.py command that it was made with goes on with it")
    settings: dict[str, Any] = json.loads((run / "config.json").read_text())
    return settings


def opened(run: Path, data_name: str | None) -> Evaluation:
    """Return a finished run with labelled images, its own if none are named; end here if the two do not go together."""
    settings = settings_of(run)
    name, device = data_name or settings["data"], PartialState().device
    data = load(data_name, settings["image_size"], device) if data_name else of_run(settings, device)
    evaluation = Evaluation(run, settings, data, device, name)
    if not data_name:
        the_same_images(run, settings, data)
    to_classify(data)
    channels = evaluation.weights["encoder.patch_embed.proj.weight"].shape[1]
    if channels != data.channels:
        raise SystemExit(f"{run} was pretrained on images of {channels} channels; those of {name} have {data.channels}")
    return evaluation


def mean_spread(values: list[float]) -> dict[str, Any]:
    """Return the mean, and the standard deviation where there are two values or more."""
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "each": values,
    }


def written(figures: dict[str, Any], sign: str = "") -> str:
    return f"{figures['mean']:{sign}.1f}" + ("" if figures["std"] is None else f" ± {figures['std']:.1f}")


def search(
    score: Callable[[float, int], list[float]], rates: list[float], budgets: list[int]
) -> tuple[float, int, list[dict[str, Any]]]:
    """Return the best learning rate and number of steps, and all that was tried."""
    tried: list[dict[str, Any]] = []
    nearby, best = rates, {}
    for steps in budgets:
        tried += [{"lr": lr, "steps": steps, **mean_spread(score(lr, steps))} for lr in nearby]
        best = max(tried, key=lambda one: one["mean"])
        place = rates.index(best["lr"])
        nearby = rates[max(0, place - 1) : place + 2]
    return best["lr"], best["steps"], tried


def finetune_both(evaluation: Evaluation, percent: float, args: argparse.Namespace) -> dict[str, Any]:
    """Search for each side, then fine-tune it with every seed."""
    data, labels = evaluation.data, labels_of(evaluation.data.train)
    assert data.test is not None
    count = len(draw(labels, percent, 0, data.classes))
    per_epoch = count // batch_of(count)
    budgets = sorted({max(s, e * per_epoch) for s, e in zip(args.steps, args.epochs, strict=True)})
    results: dict[str, Any] = {}
    for side in SIDES:
        job = {"side": side, "percent": percent, "labelled": count}

        def score(lr: float, steps: int, job: dict[str, Any] = job) -> list[float]:
            scores = []
            for seed in range(SEARCH_SEED, SEARCH_SEED + args.search_seeds):
                labelled, scored = draw_for_search(labels, percent, seed, data.classes)
                one = {"purpose": "search", **job, "lr": lr, "steps": steps, "seed": seed}
                scores.append(evaluation.finetuned(one, labelled, (data.train, scored), f", {percent:g} %, search"))
            return scores

        lr, steps, tried = search(score, args.rates, budgets)
        edge = lr in (args.rates[0], args.rates[-1])
        epochs = steps / per_epoch
        print(
            f"{percent:g} % of the labels, {side}: learning rate {lr:g}, {steps:,} steps ({epochs:.3g} epochs)"
            + (", at the edge of --rates" if edge else "")
        )
        values = []
        for seed in range(args.seeds):
            one = {"purpose": "final", **job, "lr": lr, "steps": steps, "seed": seed}
            labelled = draw(labels, percent, seed, data.classes)
            values.append(evaluation.finetuned(one, labelled, (data.test, None), f", {percent:g} %"))
        chosen = {"lr": lr, "steps": steps, "epochs": epochs, "edge": edge}
        results[f"fine-tuned, {side}"] = {**mean_spread(values), **chosen, "search": tried}
    both = [results[f"fine-tuned, {side}"]["each"] for side in SIDES]
    results["gain by pretraining"] = mean_spread([ours - theirs for ours, theirs in zip(*both, strict=True)])
    return results


def judge_frozen(evaluation: Evaluation, percent: float, args: argparse.Namespace) -> dict[str, Any]:
    """Fit a linear probe and nearest neighbours to what frozen networks make of the labelled images."""
    data, labels = evaluation.data, labels_of(evaluation.data.train)
    # With all labels every draw is the same.
    draws = [draw(labels, percent, seed, data.classes) for seed in range(args.seeds if percent < 100 else 1)]
    k = min(20, int(labels[draws[0]].bincount().min()))
    results: dict[str, Any] = {}
    for what in ("pretrained", "untrained"):
        side = f"linear probe, {what}"
        job = {"side": side, "percent": percent, "labelled": len(draws[0])}
        tried = []
        for penalty in INVERSE_PENALTIES:
            scores = []
            for seed in range(SEARCH_SEED, SEARCH_SEED + args.search_seeds):
                split = draw_for_search(labels, percent, seed, data.classes)
                one = {"purpose": "search", **job, "C": penalty, "seed": seed}
                scores.append(evaluation.frozen(one, probe(penalty), what, *split))
            tried.append({"C": penalty, **mean_spread(scores)})
        best = max(tried, key=lambda one: one["mean"])["C"]
        values = []
        for seed, labelled in enumerate(draws):
            one = {"purpose": "final", **job, "C": best, "seed": seed}
            values.append(evaluation.frozen(one, probe(best), what, labelled))
        results[side] = {**mean_spread(values), "C": best, "search": tried}
    for what in ("pretrained", "untrained", "pixels"):
        side = f"nearest neighbours, {what}"
        values = []
        for seed, labelled in enumerate(draws):
            one = {
                "purpose": "final",
                "side": side,
                "percent": percent,
                "labelled": len(labelled),
                "k": k,
                "seed": seed,
            }
            values.append(evaluation.frozen(one, KNeighborsClassifier(k, metric="cosine"), what, labelled))
        results[side] = {**mean_spread(values), "k": k}
    return results


def probe(penalty: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))


def made_by(script: str, words: list[str], device: torch.device) -> dict[str, Any]:
    """Return the command, the versions and the device that figures come from."""
    return {
        "command": shlex.join(["python", f"examples/{script}", *words]),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "kornia", "scikit-learn")},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }


def report(
    evaluation: Evaluation, results: dict[float, dict[str, Any]], args: argparse.Namespace, words: list[str]
) -> None:
    """Print the table, and write it as evaluation.json and evaluation.png."""
    data, test_labels = evaluation.data, labels_of(evaluation.data.test)
    chance = 100 * float(test_labels.bincount().max()) / len(test_labels)
    counts = {percent: one["labelled"] for percent, one in results.items()}
    title = f"Accuracy in percent on {len(test_labels):,} held-out images of {data.name}, {len(data.classes)} classes"
    print(f"\n{title}; mean ± standard deviation over {args.seeds} seeds.\n")
    print(" " * 31 + "".join(f"{f'{percent:g} % of labels':>18}" for percent in results))
    print(f"{'labelled images':<31}" + "".join(f"{count:>18,}" for count in counts.values()))
    for name in next(iter(results.values()))["methods"]:
        sign = "+" if name.startswith("gain") else ""
        cells = [written(one["methods"][name], sign) for one in results.values()]
        print(f"{name:<31}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{'always the most common class':<31}" + f"{chance:>18.1f}" * len(results) + "\n")
    edges = [
        f"{side} with {percent:g} %"
        for percent, one in results.items()
        for side in SIDES
        if one["methods"][f"fine-tuned, {side}"]["edge"]
    ]
    if edges:
        print(f"The best learning rate is at the edge of --rates: {'; '.join(edges)}. Others may do better.")
    everything = {
        **made_by("evaluate.py", words, evaluation.device),
        "data": {"name": evaluation.data_name, "training": len(data.train), "held_out": len(test_labels)}
        | {"classes": data.classes, "most_common_class": chance},
        "pretraining": {"weights": evaluation.fingerprint, **evaluation.settings},
        "options": {name: value for name, value in vars(args).items() if name not in ("run", "data")},
        "results": list(results.values()),
    }
    save_text(evaluation.run / "evaluation.json", json.dumps(everything, indent=1) + "\n")
    draw_chart(evaluation.run / "evaluation.png", title, chance, results, args.seeds)
    print(f"Every figure: {evaluation.run}/evaluation.json; chart: {evaluation.run}/evaluation.png")


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
    below = f"mean of {seeds} seeds; error bars: standard deviation, where draws differ"
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


def compare_on_few_labels(
    run: Path, settings: dict[str, Any], data: Data, device: torch.device, rates_were_searched: bool = False
) -> None:
    """Fine-tune both sides on a few labels a class, at the rates of the settings; print a table, write results.json."""
    evaluation = Evaluation(run, settings, data, device, settings["data"])
    labels, test_labels = labels_of(data.train), labels_of(data.test)
    assert data.test is not None
    steps, draws, per_class = settings["finetune_steps"], settings["draws"], settings["labels_per_class"]
    rates = {"from scratch": settings["lr_scratch"], "pretrained": settings["lr_pretrained"]}
    values: dict[str, list[float]] = {side: [] for side in [*rates, "nearest pixels"]}
    for seed in range(draws):
        labelled = pick_labelled(labels, per_class, seed)
        job = {"purpose": "few labels", "labelled": len(labelled), "seed": seed}
        for place, (side, lr) in enumerate(rates.items()):
            one = {**job, "side": side, "lr": lr, "steps": steps}
            which = f", {2 * seed + place + 1} of {2 * draws}"
            values[side].append(evaluation.finetuned(one, labelled, (data.test, None), which))
        one = {**job, "side": "nearest pixels"}
        values["nearest pixels"].append(evaluation.frozen(one, KNeighborsClassifier(1), "pixels", labelled))

    over = f"mean and standard deviation over {draws} draws" if draws > 1 else "one draw"
    searched = "as searched beforehand for each side by" if rates_were_searched else "not tuned for this; see"
    print(
        f"\nAccuracy on {len(test_labels):,} held-out images of {len(data.classes)} classes after fine-tuning for "
        f"{steps} steps on\n{per_class} labelled images a class; {over} of the labelled images;\n"
        f"learning rates {searched} evaluate.py.\n\n{'accuracy':>32}   learning rate   each draw"
    )
    results = {side: {**mean_spread(each), "lr": rates.get(side)} for side, each in values.items()}
    for side, figures in results.items():
        spread = "" if figures["std"] is None else f"± {figures['std']:4.1f}"
        each = "  ".join(f"{value:.1f}" for value in figures["each"])
        print(f"{side:<16}{figures['mean']:7.1f} % {spread:<6}{figures['lr'] or 'no network':>16}   {each}")
    gain = mean_spread(
        [ours - theirs for ours, theirs in zip(values["pretrained"], values["from scratch"], strict=True)]
    )
    print(f"\n{textwrap.fill(verdict(gain['each']), 100)}\nPictures, weights and metrics: {run}/")
    about = {"held_out": len(test_labels), "steps": steps, "labels_per_class": per_class, "draws": draws}
    everything = {**about, "rates_were_searched": rates_were_searched, "accuracy": results, "gain_in_points": gain}
    save_text(run / "results.json", json.dumps(everything, indent=1) + "\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="a finished run folder of pretrain.py")
    parser.add_argument("--data", help="labelled images, as for pretrain.py; those of the run if not given")

    def option(name: str, help: str, **how: Any) -> None:
        parser.add_argument(f"--{name}", help=f"{help}; default {how['default']}", **how)

    option("labels", "shares of the labels in percent", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    option("seeds", "draws of labels, weights and order that the figures are over", type=int, default=3)
    option("search-seeds", "draws that the search is over", type=int, default=2)
    option("rates", "learning rates to search", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    option("epochs", "budgets to search, in passes over the labelled images", type=int, nargs="+", default=[10, 20])
    option("steps", "the least steps of each budget", type=int, nargs="+", default=[200, 600])
    args = parser.parse_args(arguments)

    args.rates, args.labels = sorted(set(args.rates)), sorted(set(args.labels))
    for name in ("rates", "epochs", "steps"):
        if not all(0 < number < math.inf for number in getattr(args, name)):
            parser.error(f"--{name} takes finite numbers above 0; got {getattr(args, name)}")
    if not all(0 < percent <= 100 for percent in args.labels):
        parser.error(f"--labels takes percentages above 0 and at most 100; got {args.labels}")
    if not 1 <= args.seeds <= SEARCH_SEED:
        parser.error(f"--seeds is from 1 to {SEARCH_SEED}; got {args.seeds}")
    if args.search_seeds < 1:
        parser.error(f"--search-seeds is at least 1; got {args.search_seeds}")
    if len(args.epochs) != len(args.steps):
        parser.error(f"--epochs and --steps go together, one of each for a budget; got {args.epochs} and {args.steps}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    evaluation = opened(args.run, args.data)
    data, train_labels = evaluation.data, labels_of(evaluation.data.train)
    for percent in args.labels:  # says now what cannot be drawn
        draw(train_labels, percent, 0, data.classes)
        draw_for_search(train_labels, percent, SEARCH_SEED, data.classes)
    results = {}
    for percent in args.labels:
        methods = finetune_both(evaluation, percent, args) | judge_frozen(evaluation, percent, args)
        labelled = len(draw(train_labels, percent, 0, data.classes))
        results[percent] = {"percent": percent, "labelled": labelled, "methods": methods}
    report(evaluation, results, args, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
