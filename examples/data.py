"""Data for the examples: scikit-learn's handwritten digits, or a folder of images, as normalised tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

Sample = tuple[Tensor, int]


@dataclass
class Data:
    """Training images, held-out images, and what is known about them."""

    name: str
    train: Dataset[Sample]
    train_plain: Dataset[Sample]  # the same images without augmentation
    train_labels: list[int]
    test: Dataset[Sample]
    classes: list[str]
    channels: int
    image_size: int
    mean: list[float]
    std: list[float]


class Digits(Dataset[Sample]):
    """1,797 scanned digits of 8x8 pixels (UCI, Optical Recognition of Handwritten Digits), shipped by scikit-learn."""

    def __init__(self, images: Tensor, labels: Tensor, transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        return self.transform(self.images[i]), int(self.labels[i])


def digits() -> Data:
    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
    labels = torch.from_numpy(raw.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    mean, std = [images[train].mean().item()], [images[train].std().item()]
    plain = v2.Normalize(mean, std)
    augmented = v2.Compose([v2.RandomCrop(8, padding=1), plain])  # a shift by one pixel; digits are not to be mirrored
    return Data(
        name="digits",
        train=Digits(images[train], labels[train], augmented),
        train_plain=Digits(images[train], labels[train], plain),
        train_labels=labels[train].tolist(),
        test=Digits(images[test], labels[test], plain),
        classes=[str(name) for name in raw.target_names],
        channels=1,
        image_size=8,
        mean=mean,
        std=std,
    )


def folder(path: Path, image_size: int) -> Data:
    """Read ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val``), or split ``path/<class>/*`` 4 to 1."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    augmented = v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(0.4, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
            *to_tensor,
        ]
    )
    plain = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size), *to_tensor])
    parts = {part.name: part for part in path.iterdir() if part.is_dir() and part.name in ("train", "test", "val")}
    if parts:
        held_out_part = parts.get("test") or parts.get("val")
        if "train" not in parts or held_out_part is None:
            raise SystemExit(f"{path} has {', '.join(parts)}; it needs train/ and test/ (or val/), or only the classes")
        images, test = ImageFolder(path / "train", augmented), ImageFolder(held_out_part, plain)
        if images.classes != test.classes:
            raise SystemExit(f"{path}: train/ has {images.classes}, but {held_out_part.name}/ has {test.classes}")
        train, train_plain, labels = images, ImageFolder(path / "train", plain), images.targets
    else:
        images, whole = ImageFolder(path, augmented), ImageFolder(path, plain)
        chosen, held_out = train_test_split(range(len(images)), test_size=0.2, stratify=images.targets, random_state=0)
        train, train_plain, test = Subset(images, chosen), Subset(whole, chosen), Subset(whole, held_out)
        labels = [images.targets[i] for i in chosen]
    return Data(path.name, train, train_plain, labels, test, images.classes, 3, image_size, mean, std)


def load(name: str, image_size: int) -> Data:
    """Return the digits, or the images of a folder cut to ``image_size`` pixels a side."""
    if name == "digits":
        return digits()
    if not Path(name).is_dir():
        raise SystemExit(
            f"--data takes 'digits' or a folder of images (one folder a class inside); there is no {name!r}"
        )
    return folder(Path(name), image_size)


def pick_labelled(labels: list[int], per_class: int, seed: int) -> list[int]:
    """Return the indices of ``per_class`` images of each class, drawn at random."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    picked: dict[int, list[int]] = {}
    for i in order:
        of_class = picked.setdefault(labels[i], [])
        if len(of_class) < per_class:
            of_class.append(i)
    short = [c for c, indices in picked.items() if len(indices) < per_class]
    if short:
        raise SystemExit(f"{per_class} labelled images a class were asked for, but classes {sorted(short)} have fewer")
    return [i for indices in picked.values() for i in indices]
