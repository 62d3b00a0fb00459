"""Images for the examples: scikit-learn's digits, a folder, a data set of torchvision, or WebDataset shards.

Whatever fits is decoded once and held in memory on the device as uint8; what does not is read from its files by
workers. Crops, flips and jitter come after that, for a whole batch at once, on the device (``Views``).
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import kornia.augmentation as K
import numpy as np
import torch
import torchvision
from kornia.enhance import normalize
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

MEMORY = 4 * 2**30  # bytes of images that are held in memory; more than that is read as it is needed


class Raw(NamedTuple):
    """A batch as it is stored: images ``(B, C, S, S)`` on the device, and ``number`` (B,) int64 as it was asked for."""

    images: Tensor
    number: Tensor


class Source(Protocol):
    """Square images, and how to get at them in batches."""

    labels: Tensor | None  # (N,) int64, on the CPU

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

    @property
    def channels(self) -> int:
        return len(self.mean)


class Views:
    """What the network sees of a batch: augmented, or as it is; normalised."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.to_size = v2.CenterCrop(data.image_size)

    def augmented(self, raw: Tensor, rows: slice = slice(None), total: int | None = None) -> Tensor:
        """Crop, flip and jitter images ``(B, C, S, S)``, which are the given rows of a batch of ``total``.

        The parameters are drawn for the whole batch from torch's generator: processes that share a seed and a batch see
        the same crops as one that has it alone.
        """
        images = _to_float(raw)
        drawn = self.data.augmentation.forward_parameters(torch.Size([total or len(images), *images.shape[1:]]))
        whole = ("forward_input_shape", "order")  # of the batch, where all others have a row for each image
        params = [
            type(item)(item.name, {k: v if k in whole else v[rows] for k, v in item.data.items()})  # type: ignore[union-attr]
            for item in drawn
        ]
        return self._normalised(self.data.augmentation(images, params=params))

    def plain(self, raw: Tensor) -> Tensor:
        return self._normalised(self.to_size(_to_float(raw)))

    def _normalised(self, images: Tensor) -> Tensor:
        return normalize(images, torch.tensor(self.data.mean), torch.tensor(self.data.std))

    def shown(self, images: Tensor) -> Tensor:
        """Return normalised images as they are shown, in [0, 1]."""
        mean, std = (torch.tensor(values)[:, None, None].to(images) for values in (self.data.mean, self.data.std))
        return (images * std + mean).clamp(0, 1)


def _to_float(raw: Tensor) -> Tensor:
    return raw.float() / 255 if raw.dtype == torch.uint8 else raw


@dataclass
class Memory:
    """Images that are held on the device."""

    images: Tensor  # (N, C, S, S) uint8, or floating in [0, 1]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Raw]:
        for number in numbers:
            number = number.to(self.images.device)
            yield Raw(self.images[number % len(self)], number)


class Files(Dataset[tuple[Tensor, int]]):
    """Images that are decoded as they are needed. The next readable one stands in for one that is not."""

    def __init__(self, paths: list[Path], labels: Tensor | None, side: int, device: torch.device) -> None:
        self.paths, self.labels, self.side, self.device = paths, labels, side, device
        self.corrupt: set[int] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        epoch, asked = divmod(number, len(self))
        for place in range(len(self)):
            index = (asked + place) % len(self)
            image = read(self.paths[index], self.side)
            if not isinstance(image, Exception):
                return to_side(image, self.side), epoch * len(self) + index
        raise OSError("none of the images can be read")

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Raw]:
        asked: list[list[int]] = []

        def lists() -> Iterator[list[int]]:
            for number in numbers:
                asked.append(number.tolist())
                yield asked[-1]

        workers = min(8, os.cpu_count() or 1)
        loader = DataLoader(self, batch_sampler=lists(), num_workers=workers, pin_memory=self.device.type == "cuda")
        for images, number in loader:
            for wanted, got in zip(asked.pop(0), number.tolist(), strict=True):
                if wanted != got and wanted % len(self) not in self.corrupt:
                    self.corrupt.add(wanted % len(self))
                    skipped(self.paths[wanted % len(self)], None, len(self.corrupt))
            yield Raw(images.to(self.device, non_blocking=True), number.to(self.device, non_blocking=True))


def skipped(name: object, error: Exception | None, count: int) -> None:
    reason = f" ({error})" if error else ""
    print(f"skipped {name}, which cannot be read{reason}; {count} so far", file=sys.stderr)


def square(image: Image.Image, most: int) -> Tensor:
    """Return the middle of an image, ``(3, side, side)`` uint8, made smaller where it has more than ``most`` pixels."""
    tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
    return to_side(v2.functional.center_crop(tensor, [min(tensor.shape[1:])]), most, shrink_only=True)


def to_side(image: Tensor, side: int, shrink_only: bool = False) -> Tensor:
    if image.shape[-1] == side or (shrink_only and image.shape[-1] < side):
        return image
    resized: Tensor = v2.functional.resize(image, [side, side], antialias=True)
    return resized


def read(path: Path, most: int) -> Tensor | Exception:
    try:
        with Image.open(path) as image:
            return square(image, most)
    except Exception as error:  # Pillow's plug-ins raise what they like for a broken file
        return error


def together(images: Iterable[tuple[object, Tensor | Exception]], image_size: int) -> tuple[Tensor, list[int]]:
    """Stack squares of one size, the largest there is, and return the places of those that could be read."""
    squares, places, broken = [], [], 0
    for place, (name, image) in enumerate(images):
        if isinstance(image, Exception):
            broken += 1
            skipped(name, image, broken)
        else:
            squares.append(image)
            places.append(place)
    if not squares:
        raise SystemExit("none of the images can be read")
    side = max(image_size, *(square.shape[-1] for square in squares))
    return torch.stack([to_side(square, side) for square in squares]), places


def stored_side(image_size: int) -> int:
    """Return the side that larger images are made smaller to: 256 for 224, so that the plain view cuts its middle."""
    return round(image_size * 8 / 7)


def from_files(paths: list[Path], labels: list[int] | None, image_size: int, device: torch.device) -> Source:
    side = stored_side(image_size)
    targets = None if labels is None else torch.tensor(labels)
    if len(paths) * 3 * side**2 > MEMORY:
        return Files(paths, targets, side, device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read_all = zip(paths, pool.map(lambda path: read(path, side), paths), strict=True)
        images, places = together(read_all, image_size)
    return Memory(images.to(device), None if targets is None else targets[places])


def photographs(name: str, train: Source, test: Source | None, classes: list[str], image_size: int) -> Data:
    augmentation = K.ImageSequential(
        K.RandomResizedCrop((image_size, image_size), scale=(0.4, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJiggle(0.2, 0.2, 0.2, 0.05),
    )
    # The mean and standard deviation of ImageNet, as everywhere.
    return Data(name, train, test, classes, image_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], augmentation)


def digits(image_size: int, device: torch.device) -> Data:
    """1,797 scanned digits of 8x8 pixels (UCI, Optical Recognition of Handwritten Digits), shipped by scikit-learn."""
    raw = load_digits()
    if image_size != 8:
        raise SystemExit(f"the digits are 8 pixels a side; --image-size {image_size} is for other data")
    images = torch.from_numpy(raw.images).float()[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
    labels = torch.from_numpy(raw.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return Data(
        name="digits",
        train=Memory(images[train].to(device), labels[train]),
        test=Memory(images[test].to(device), labels[test]),
        classes=[str(name) for name in raw.target_names],
        image_size=image_size,
        mean=[images[train].mean().item()],
        std=[images[train].std().item()],
        augmentation=K.ImageSequential(K.RandomCrop((8, 8), padding=1)),  # by one pixel; digits are not to be mirrored
    )


def folder(path: Path, image_size: int, device: torch.device) -> Data:
    """Read ``path/*``, without labels; or ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val``); or split
    ``path/<class>/*`` 4 to 1.
    """  # fmt: skip

    def source(samples: Iterable[tuple[str, int]]) -> Source:
        paths, labels = zip(*samples, strict=True)
        return from_files([Path(p) for p in paths], list(labels), image_size, device)

    flat = sorted(p for p in path.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
    inside = [p for p in path.iterdir() if p.is_dir()]
    if flat and inside:
        raise SystemExit(
            f"{path} has both images ({flat[0].name}, ...) and folders ({inside[0].name}, ...); it takes images alone, "
            "without labels, or one folder a class"
        )
    if flat:
        return photographs(path.name, from_files(flat, None, image_size, device), None, [], image_size)
    parts = {part.name: part for part in inside if part.name in ("train", "test", "val")}
    if not parts:
        whole = ImageFolder(str(path))
        chosen, held_out = train_test_split(whole.samples, test_size=0.2, stratify=whole.targets, random_state=0)
        return photographs(path.name, source(chosen), source(held_out), whole.classes, image_size)
    held_out_part = parts.get("test") or parts.get("val")
    if "train" not in parts or held_out_part is None:
        raise SystemExit(f"{path} has {', '.join(parts)}; it needs train/ and test/ (or val/), or only the classes")
    train, test = ImageFolder(str(parts["train"])), ImageFolder(str(held_out_part))
    if train.classes != test.classes:
        raise SystemExit(f"{path}: train/ has {train.classes}, but {held_out_part.name}/ has {test.classes}")
    return photographs(path.name, source(train.samples), source(test.samples), train.classes, image_size)


def of_torchvision(name: str, image_size: int, device: torch.device) -> Data:
    """Read a classification set of torchvision that takes ``download=``, from ``data/`` or the network."""
    make: Callable[..., Any] | None = getattr(torchvision.datasets, name, None)
    options = inspect.signature(make).parameters if make else {}
    if make is None or "download" not in options or not {"train", "split"} & set(options):
        raise SystemExit(
            f"torchvision:{name} is not a data set of torchvision that takes download= and has a training and a test "
            "part, such as CIFAR10, CIFAR100, STL10, SVHN or FashionMNIST"
        )

    def part(train: bool) -> tuple[Source, list[str]]:
        which = {"train": train} if "train" in options else {"split": "train" if train else "test"}
        samples = make("data", download=True, **which)
        labels: list[int] = []

        def images() -> Iterator[tuple[object, Tensor | Exception]]:
            for i in range(len(samples)):
                image, label = samples[i]
                labels.append(int(label))
                yield f"{name}[{i}]", square(image, stored_side(image_size))

        stacked, _ = together(images(), image_size)
        classes = getattr(samples, "classes", None) or [str(c) for c in range(max(labels) + 1)]
        return Memory(stacked.to(device), torch.tensor(labels)), classes

    train, classes = part(True)
    return photographs(name, train, part(False)[0], classes, image_size)


def load(name: str, image_size: int, device: torch.device) -> Data:
    """Return the data that ``--data`` names, with images of ``image_size`` pixels a side."""
    if name == "digits":
        return digits(image_size, device)
    if name.startswith("torchvision:"):
        return of_torchvision(name.removeprefix("torchvision:"), image_size, device)
    if not Path(name).is_dir():
        raise SystemExit(f"--data takes 'digits', 'torchvision:NAME' or a folder of images; there is no {name!r}")
    return folder(Path(name), image_size, device)


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


def pick_labelled(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Return the indices of ``per_class`` images of each class, drawn at random."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    picked = [shuffled[labels[shuffled] == c][:per_class] for c in labels.unique()]
    short = [c for c, of_class in zip(labels.unique().tolist(), picked, strict=True) if len(of_class) < per_class]
    if short:
        raise SystemExit(f"{per_class} labelled images a class were asked for, but classes {short} have fewer")
    return torch.cat(picked)
