"""The parts that sources of photographs share: their augmentation, and squares of one size in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import kornia.augmentation as K
import torch
from torch import Tensor
from tqdm import tqdm

from .photos import stored_side, to_side
from .sources import Data, Memory, Source, skipped


def together(
    images: Iterable[tuple[object, Tensor | Exception]], length: int, image_size: int, left_out: Counter[str]
) -> tuple[Tensor, list[int]]:
    """Stack squares of one size, the largest there is, and return the places of those that could be read."""
    side = stored_side(image_size)
    stacked = torch.empty(length, 3, side, side, dtype=torch.uint8)  # takes memory where it is written alone
    sides: list[int] = []
    places: list[int] = []
    for place, (name, image) in enumerate(tqdm(images, "decoding", length, disable=None, leave=False)):
        if isinstance(image, Exception):
            skipped(name, image, place + 1 - len(places))
            left_out["thin" if str(image).startswith("too thin") else "unreadable"] += 1
            continue
        sides.append(image.shape[-1])
        stacked[len(places), :, : sides[-1], : sides[-1]] = image
        places.append(place)
    if not places:
        raise SystemExit("none of the images can be read")
    largest = max(image_size, *sides)
    if min(sides) == side:
        return stacked[: len(places)], places
    return torch.stack([to_side(stacked[i, :, :n, :n], largest) for i, n in enumerate(sides)]), places


def alike(parts: list[Source]) -> None:
    """Bring images in memory to one size: of larger ones the plain view would cut the rim off, of smaller ones not."""
    held = [part for part in parts if isinstance(part, Memory)]
    side = max((part.images.shape[-1] for part in held), default=0)
    for part in held:
        if part.images.shape[-1] < side:
            part.images = torch.cat([to_side(images, side) for images in part.images.split(1000)])


def fingerprint(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def photographs(name: str, parts: list[Source], classes: list[str], image_size: int, *what: object) -> Data:
    """Return the data of a training part and perhaps a held-out one; ``what`` tells these images from others."""
    alike(parts)
    train, test = parts[0], parts[1] if len(parts) > 1 else None
    augmentation = K.ImageSequential(
        K.RandomResizedCrop((image_size, image_size), scale=(0.4, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJiggle(0.2, 0.2, 0.2, 0.05),
    )
    # The mean and standard deviation of ImageNet, as everywhere.
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return Data(name, train, test, classes, image_size, mean, std, augmentation, fingerprint(*what))
