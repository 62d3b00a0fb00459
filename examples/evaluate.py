"""What pretraining was worth: accuracy with few labels, against the same network from scratch."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checkpoint import save_text, tensors
from data import Data, Source, Views, order, pick_labelled, seed_of
from model import Classifier, build
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from tqdm import tqdm


def finetune(
    model: Classifier, data: Data, source: Source, labelled: Tensor, lr: float, steps: int, seed: int, label: str
) -> None:
    """Train all weights on the labelled images: AdamW, weight decay 0.05, a cosine after a tenth of the steps."""
    views, batch_size, warmup = Views(data), min(50, len(labelled)), max(1, steps // 10)
    device = model.head.weight.device
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    numbers = [number % len(labelled) for number in order(len(labelled), batch_size, seed, 0, steps)]
    assert source.labels is not None
    targets = source.labels[labelled].to(device)
    model.train()
    batches = source.batches(labelled[number] for number in numbers)
    for step, raw in enumerate(tqdm(batches, label, steps, leave=False)):
        share = (step + 1 - warmup) / max(1, steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr * ((step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share)))
        torch.manual_seed(seed_of(seed, step))
        loss = F.cross_entropy(model(views.augmented(raw.images)), targets[numbers[step].to(device)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()


@torch.no_grad()
def accuracy(model: Classifier, data: Data, source: Source, indices: Tensor | None = None) -> float:
    """Return the share of images, in percent, that the model names rightly."""
    model.eval()
    views = Views(data)
    chosen = torch.arange(len(source)) if indices is None else indices
    assert source.labels is not None
    guesses = [model(views.plain(raw.images)).argmax(1).cpu() for raw in source.batches(chosen.split(256))]
    return 100 * (torch.cat(guesses) == source.labels[chosen]).double().mean().item()


def nearest_pixels(data: Data, labelled: Tensor) -> float:
    """Return the accuracy, in percent, of the nearest labelled image in raw pixels: what no network at all reaches."""
    views = Views(data)

    def flat(source: Source, indices: Tensor) -> tuple[Tensor, Tensor]:
        pixels = [views.plain(raw.images).flatten(1).cpu() for raw in source.batches(indices.split(256))]
        assert source.labels is not None
        return torch.cat(pixels), source.labels[indices]

    assert data.test is not None
    classifier = KNeighborsClassifier(1).fit(*flat(data.train, labelled))
    return 100 * float(classifier.score(*flat(data.test, torch.arange(len(data.test)))))


def compare_on_few_labels(run: Path, settings: dict[str, Any], data: Data, device: torch.device) -> None:
    """Fine-tune both sides on a few labels a class, at the rates of the settings; print a table, write results.json."""
    assert data.train.labels is not None
    assert data.test is not None
    steps, draws, per_class = settings["finetune_steps"], settings["draws"], settings["labels_per_class"]
    weights = tensors(run / "autoencoder.safetensors")
    rates = {"from scratch": settings["lr_scratch"], "pretrained": settings["lr_pretrained"]}
    results: dict[str, list[float]] = {side: [] for side in [*rates, "nearest pixels"]}
    for draw in range(draws):
        labelled = pick_labelled(data.train.labels, per_class, draw)
        for side, lr in rates.items():
            torch.manual_seed(draw)
            model = Classifier(build(settings, data.channels)[0], len(data.classes)).to(device)
            if side == "pretrained":
                model.body.load_state_dict(weights)
            finetune(model, data, data.train, labelled, lr, steps, draw, f"fine-tuning {side}, {draw + 1} of {draws}")
            results[side].append(accuracy(model, data, data.test))
        results["nearest pixels"].append(nearest_pixels(data, labelled))
    for side, values in results.items():
        print(side, statistics.mean(values), values)
    save_text(run / "results.json", json.dumps(results) + "\n")
