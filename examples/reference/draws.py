"""Drawn from seeds alone: the order of images, and which of them have labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor


def seed_of(*numbers: int) -> int:
    """Return one seed for torch made of several numbers, such as a seed and a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def order(count: int, batch_size: int, seed: int, first: int, last: int) -> Iterator[Tensor]:
    """Yield each step's sample numbers ``(batch_size,)``, ``epoch * count + index``, from step ``first`` to ``last``.

    Every epoch has an order of its own, drawn from the seed, and leaves out the few that fill no batch.
    """
    per_epoch = count // batch_size
    epoch_of_order = -1
    for step in range(first, last):
        epoch, place = divmod(step, per_epoch)
        if epoch != epoch_of_order:
            generator = torch.Generator().manual_seed(seed_of(seed, epoch))
            permutation, epoch_of_order = torch.randperm(count, generator=generator), epoch
        yield epoch * count + permutation[place * batch_size : (place + 1) * batch_size]


def split(labels: Iterable[int], name: object) -> tuple[list[int], list[int]]:
    """Return the indices of four fifths of each class and of the rest."""
    targets = list(labels)
    try:
        train, test = train_test_split(range(len(targets)), test_size=0.2, stratify=targets, random_state=0)
    except ValueError as error:
        raise SystemExit(
            f"{name} cannot be split 4 to 1: {error}. Each class needs two images or more, and a fifth of the images "
            "one for each class; or give train/ and test/ apart"
        ) from None
    return train, test


def draw(labels: Tensor, percent: float, seed: int, classes: list[str]) -> Tensor:
    """Return the indices of as many percent of each class, drawn at random."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    picked = []
    for c, name in enumerate(classes):
        of_class = shuffled[labels[shuffled] == c]
        picked.append(of_class[: round(len(of_class) * percent / 100)])
        if not len(picked[-1]):
            raise SystemExit(
                f"--labels {percent:g}: that many percent of the {len(of_class)} images of {name} is none; give more "
                f"than {50 / len(of_class):.2g} percent, or leave the comparison out of pretrain.py by --draws 0"
            )
    return torch.cat(picked)


def reaching(labels: Tensor, percents: tuple[float, ...]) -> tuple[float, ...]:
    """Return those of some shares of the labels that have an image of every class; say which have not."""
    fewest = int(labels.bincount().min())
    reach = tuple(percent for percent in percents if round(fewest * percent / 100))
    for percent in percents:
        if percent not in reach:
            print(f"leaves out {percent:g} % of the labels: that is none of the {fewest} images of the smallest class")
    return reach


MOST_SCORED = 2000


def draw_for_search(labels: Tensor, percent: float, seed: int, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Return the indices of labelled training images, and of at most 2,000 others to score on."""
    labelled = draw(labels, min(percent, 90), seed, classes)
    others = torch.ones(len(labels), dtype=torch.bool)
    others[labelled] = False
    left = others.nonzero().flatten()
    if not len(left):
        raise SystemExit(f"{len(labels)} training images are too few: none is left to search on")
    shuffled = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
    return labelled, left[shuffled[:MOST_SCORED]]
