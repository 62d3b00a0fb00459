"""A finished run judged on labels: every figure once, kept in evaluation.jsonl."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from .config import Config
from .data.sources import Data, Source
from .draws import draw, draw_for_search
from .finetuning import batch_of, finetune, labels_of, outputs, pixels, to_classify
from .finished import Finished
from .model import Autoencoder, Classifier, build

SIDES = ("pretrained", "from scratch")
SEARCH_SEED = 100  # the first; the figures' seeds are smaller
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, of the linear probe


@dataclass
class Evaluation:
    """A run's weights, the data they are judged on, and what was found so far, in evaluation.jsonl."""

    run: Path
    config: Config
    data: Data
    device: torch.device
    data_name: str  # as --data had it
    weights: dict[str, Tensor]  # of the Autoencoder
    descriptions: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    begun: int = 0  # fine-tunings
    planned: int = 0

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
        model = build(self.config, self.data.channels)[0]
        if side == "pretrained":
            model.load_state_dict(self.weights)
        return model.to(self.device)

    def finetuned(self, job: dict[str, Any], labelled: Tensor, scored: tuple[Source, Tensor | None]) -> float:
        """Return the accuracy, in percent, of the job's side after fine-tuning on the labelled images."""
        self.begun += 1

        def work() -> float:
            side, lr, steps, seed = (job[name] for name in ("side", "lr", "steps", "seed"))
            model = Classifier(self.autoencoder(side, seed), len(self.data.classes)).to(self.device)
            what = f"fine-tuning {self.begun} of {self.planned}: {side}, {job['percent']:g} %, rate {lr:g}"
            bf16 = self.config.precision == "bf16"
            decay = job.get("layer_decay", 1.0)
            finetune(model, self.data, self.data.train, labelled, lr, steps, seed, bf16, decay, what)
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


def evaluation_of(finished: Finished) -> Evaluation:
    """Return a finished run's evaluation; end here if its images have no labels, or only one class."""
    to_classify(finished.data)
    return Evaluation(
        finished.run, finished.config, finished.data, finished.device, finished.data_name, finished.weights
    )


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


def decaying(config: Config) -> dict[str, float]:
    """Return the part of a fine-tuning's job that is left out where all blocks have the same learning rate."""
    return {} if config.layer_decay == 1 else {"layer_decay": config.layer_decay}


class Work(NamedTuple):
    """How many fine-tunings there are, and of how many steps all of them together."""

    fine_tunings: int
    steps: int


def budgets(count: int, config: Config) -> list[int]:
    """Return the lengths, in steps, of fine-tuning on so many labelled images."""
    per_epoch = count // batch_of(count)
    pairs = zip(config.finetune_steps, config.finetune_epochs, strict=True)
    return sorted({max(steps, epochs * per_epoch) for steps, epochs in pairs})


def planned(labels: Tensor, classes: list[str], config: Config) -> Work:
    """Return how many fine-tunings all shares of labels take, and at most how many steps."""
    fine_tunings = steps = 0
    for percent in config.labels:
        lengths = budgets(len(draw(labels, percent, 0, classes)), config)
        draw_for_search(labels, percent, SEARCH_SEED, classes)  # says now what it cannot do
        tried = [len(config.rates), *[min(3, len(config.rates))] * (len(lengths) - 1)]
        searched = (
            [] if sum(tried) == 1 else [(config.search_draws * n, s) for n, s in zip(tried, lengths, strict=True)]
        )
        for number, length in [*searched, (config.draws, lengths[-1])]:
            fine_tunings += len(SIDES) * number
            steps += len(SIDES) * number * length
    return Work(fine_tunings, steps)


def finetune_both(evaluation: Evaluation, percent: float, config: Config) -> dict[str, Any]:
    """Search for each side, then fine-tune it with every seed."""
    data, labels = evaluation.data, labels_of(evaluation.data.train)
    assert data.test is not None
    count = len(draw(labels, percent, 0, data.classes))
    lengths, rates = budgets(count, config), list(config.rates)
    results: dict[str, Any] = {}
    for side in SIDES:
        job = {"side": side, "percent": percent, "labelled": count, **decaying(config)}

        def score(lr: float, steps: int, job: dict[str, Any] = job) -> list[float]:
            scores = []
            for seed in range(SEARCH_SEED, SEARCH_SEED + config.search_draws):
                labelled, scored = draw_for_search(labels, percent, seed, data.classes)
                one = {"purpose": "search", **job, "lr": lr, "steps": steps, "seed": seed}
                scores.append(evaluation.finetuned(one, labelled, (data.train, scored)))
            return scores

        tried: list[dict[str, Any]] = []
        lr, steps = rates[0], lengths[0]
        if len(rates) * len(lengths) > 1:
            lr, steps, tried = search(score, rates, lengths)
        values = []
        for seed in range(config.draws):
            one = {"purpose": "final", **job, "lr": lr, "steps": steps, "seed": seed}
            labelled = draw(labels, percent, seed, data.classes)
            values.append(evaluation.finetuned(one, labelled, (data.test, None)))
        edge = len(rates) > 1 and lr in (rates[0], rates[-1])
        chosen = {"lr": lr, "steps": steps, "epochs": steps / (count // batch_of(count)), "edge": edge}
        results[f"fine-tuned, {side}"] = {**mean_spread(values), **chosen, "search": tried}
    both = [results[f"fine-tuned, {side}"]["each"] for side in SIDES]
    results["gain by pretraining"] = mean_spread([ours - theirs for ours, theirs in zip(*both, strict=True)])
    return results


def judge_frozen(evaluation: Evaluation, percent: float, config: Config) -> dict[str, Any]:
    """Fit a linear probe and nearest neighbours to what frozen networks make of the labelled images."""
    data, labels = evaluation.data, labels_of(evaluation.data.train)
    # With all labels every draw is the same.
    draws = [draw(labels, percent, seed, data.classes) for seed in range(config.draws if percent < 100 else 1)]
    k = min(20, int(labels[draws[0]].bincount().min()))
    results: dict[str, Any] = {}
    for what in ("pretrained", "untrained"):
        side = f"linear probe, {what}"
        job = {"side": side, "percent": percent, "labelled": len(draws[0])}
        tried = []
        for penalty in INVERSE_PENALTIES:
            scores = []
            for seed in range(SEARCH_SEED, SEARCH_SEED + config.search_draws):
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


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "timm", "kornia", "scikit-learn")
    }


def made_by(script: str, words: list[str], device: torch.device) -> dict[str, Any]:
    """Return the command, the versions and the device that figures come from."""
    return {
        "command": shlex.join(["python", f"examples/{script}", *words]),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }
