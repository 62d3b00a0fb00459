"""Fine-tuning, the same for a pretrained network and one from scratch; and what networks make of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from .data.sources import Data, Source
from .draws import order, seed_of
from .model import Classifier, parameters
from .schedule import warmed
from .views import Views


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


def finetune(
    model: Classifier,
    data: Data,
    source: Source,
    labelled: Tensor,
    lr: float,
    steps: int,
    seed: int,
    bf16: bool,
    layer_decay: float,
    label: str,
) -> None:
    """Train all weights on the labelled images: AdamW, weight decay 0.05, a cosine after a tenth of the steps.

    The learning rate falls from block to block, towards the pixels, by the factor ``layer_decay``.
    """
    views, batch_size = Views(data), batch_of(len(labelled))
    device = model.head.weight.device
    labels = labels_of(source).to(device)
    optimizer = torch.optim.AdamW(by_layer(model, 0.05, layer_decay))
    numbers = (number % len(labelled) for number in order(len(labelled), batch_size, seed, 0, steps))
    model.train()
    batches = source.batches(labelled[number] for number in numbers)
    for step, raw in enumerate(tqdm(batches, label, steps, leave=False)):
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * warmed(step, steps, max(1, steps // 10), lr)
        torch.manual_seed(seed_of(seed, step))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(views.augmented(raw.images))
        loss = F.cross_entropy(logits.float(), labels[raw.number % len(labels)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()


def by_layer(model: Classifier, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in groups for AdamW, each with the ``scale`` of its learning rate (BEiT, arXiv 2106.08254).

    The scale is 1 in the last block and all after it, ``layer_decay`` in the block before, and so on down to the
    embedding of patches, as timm counts layers.
    """
    by_scale = param_groups_layer_decay(model.body.encoder, layer_decay=layer_decay)
    scales = {weight: group["lr_scale"] for group in by_scale for weight in group["params"]}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for group in parameters(model, weight_decay):
        for weight in group["params"]:
            groups.setdefault((group["weight_decay"], scales.get(weight, 1.0)), []).append(weight)
    return [{"params": weights, "weight_decay": decay, "scale": scale} for (decay, scale), weights in groups.items()]


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
