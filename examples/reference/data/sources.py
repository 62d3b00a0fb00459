"""Images in batches: what is held in memory, and what worker processes decode as it is needed."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

import kornia.augmentation as K
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..draws import seed_of
from ..machine import cores


class Raw(NamedTuple):
    """A batch as it is stored: images ``(B, C, S, S)`` on the device, and their ``number`` (B,) int64.

    That is what was asked for, but where another image stands in for one that cannot be read.
    """

    images: Tensor
    number: Tensor


class Source(Protocol):
    """Square images, and how to get at them in batches."""

    labels: Tensor | None  # (N,) int64, on the CPU

    @property
    def side(self) -> int:
        """Pixels a side of what ``batches`` yields."""
        ...

    def __len__(self) -> int: ...

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Raw]:
        """Yield a batch for each tensor of numbers; a number is ``epoch * len(self) + index``."""
        ...


@dataclass
class Data:
    """Training images, held-out images (none where nothing is labelled), and what is known about them."""

    name: str
    train: Source
    test: Source | None
    classes: list[str]
    image_size: int
    mean: list[float]
    std: list[float]
    augmentation: K.ImageSequential
    fingerprint: str  # another for other images
    sizes: str = ""  # of the originals, in words
    left_out: Counter[str] = field(default_factory=Counter)  # how many files, by reason

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def timm_config(self) -> dict[str, Any]:
        """The arguments with which timm's transforms cut and normalise images as the plain view does."""
        return {
            "input_size": [self.channels, self.image_size, self.image_size],
            # Rounded down: timm takes the floor of the quotient for the shorter side.
            "crop_pct": math.floor(1e6 * self.image_size / self.train.side) / 1e6,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": self.mean,
            "std": self.std,
        }


@dataclass
class Memory:
    """Images that are held on the device."""

    images: Tensor  # (N, C, S, S) uint8, or floating in [0, 1]
    labels: Tensor | None

    @property
    def side(self) -> int:
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Raw]:
        for number in numbers:
            number = number.to(self.images.device, non_blocking=True)
            yield Raw(self.images[number % len(self)], number)


class Decoded(Dataset[Any], ABC):
    """Images that worker processes decode as they are needed."""

    def __init__(self, length: int, labels: Tensor | None, side: int, device: torch.device) -> None:
        self.length, self.labels, self.side, self.device = length, labels, side, device
        self.unreadable: set[str] = set()

    def __len__(self) -> int:
        return self.length

    @abstractmethod
    def __getitems__(self, numbers: list[int]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        """Return a batch, its numbers, and what could not be read with the reasons. A worker's part."""

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Raw]:
        ahead = iter(numbers)
        first = next(ahead, None)
        if first is None:
            return
        # A generator of its own: torch's is left alone, and the workers' seeds depend on what is asked for first.
        seeds = torch.Generator().manual_seed(seed_of(*first.tolist()))
        asked = (number.tolist() for number in chain([first], ahead))
        loader = DataLoader(
            self, batch_sampler=asked, num_workers=min(8, cores()), collate_fn=as_it_is, generator=seeds,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for images, number, broken in loader:
            for name, reason in broken:
                if name not in self.unreadable:
                    self.unreadable.add(name)
                    skipped(name, reason, len(self.unreadable))
            yield Raw(images.to(self.device, non_blocking=True), number.to(self.device, non_blocking=True))


def as_it_is(batch: Any) -> Any:
    return batch


def skipped(name: object, reason: object, number: int) -> None:
    tqdm.write(f"skipped {name}, which cannot be read ({reason}); {number} so far", file=sys.stderr)
