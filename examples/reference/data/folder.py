"""A folder of images, with or without a folder a class."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder

from ..draws import split
from ..machine import cores
from .photos import in_words, read, sizes, stored_side, to_side, why_not
from .sources import Data, Decoded, Memory, Source
from .together import photographs, together

MEMORY = 4 * 2**30  # bytes of a folder's images that are held in memory; more than that is read as it is needed


class Files(Decoded):
    """Image files. For one that cannot be read the next one of its class stands in, so that batches keep their size."""

    def __init__(self, paths: list[Path], labels: Tensor | None, side: int, device: torch.device) -> None:
        super().__init__(len(paths), labels, side, device)
        self.paths = paths

    def __getitems__(self, numbers: list[int]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        images, found, broken = [], [], []
        for number in numbers:
            epoch, asked = divmod(number, len(self))
            for index in chain(range(asked, len(self)), range(asked)):
                if self.labels is not None and self.labels[index] != self.labels[asked]:
                    continue
                image = read(self.paths[index], self.side)
                if isinstance(image, Tensor):
                    images.append(to_side(image, self.side))
                    found.append(epoch * len(self) + index)
                    break
                broken.append((str(self.paths[index]), str(image)))
            else:
                raise OSError(f"none of the images of the class of {self.paths[asked]} can be read")
        return torch.stack(images), torch.tensor(found), broken


Samples = list[tuple[str, int]]  # paths and labels


def from_files(
    parts: list[Samples], labelled: bool, image_size: int, device: torch.device, left_out: Counter[str]
) -> list[Source]:
    """Return a source for each part: all of them in memory, or none."""
    side = stored_side(image_size)
    in_memory = sum(map(len, parts)) * 3 * side**2 <= MEMORY
    sources: list[Source] = []
    for part in parts:
        paths = [Path(path) for path, _ in part]
        labels = torch.tensor([label for _, label in part]) if labelled else None
        if not in_memory:
            sources.append(Files(paths, labels, side, device))
            continue
        with ThreadPoolExecutor(cores()) as pool:
            read_all = zip(paths, pool.map(lambda path: read(path, side), paths), strict=True)
            images, places = together(read_all, len(paths), image_size, left_out)
        sources.append(Memory(images.to(device), None if labels is None else labels[places]))
    return sources


def without_labels(names: list[str]) -> list[Samples]:
    """Return the images to train on, and a twentieth, at most 500, for the held-out loss; none of fewer than 100."""
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = set(shuffled[: min(500, len(names) // 20)]) if len(names) >= 100 else set()
    parts = [[(name, 0) for i, name in enumerate(names) if (i in held_out) == which] for which in (False, True)]
    return [part for part in parts if part]


def folder(path: Path, image_size: int, device: torch.device, labelled: bool = True) -> Data:
    """Read ``path/*``, without labels, a twentieth held out; or ``path/train/<class>/*`` and ``path/test/<class>/*``
    (or ``val``); or split ``path/<class>/*`` 4 to 1. Folders inside a class belong to it; names that begin with a dot
    are passed over. Not ``labelled``, all images below the folder are taken.
    """
    left_out: Counter[str] = Counter()

    def is_image(name: str) -> bool:
        reason = why_not(Path(name))
        left_out.update([reason] if reason else [])
        return reason is None

    def tree(root: Path) -> Any:
        try:
            return ImageFolder(str(root), is_valid_file=is_image)
        except FileNotFoundError as error:
            raise SystemExit(f"--data {path}: {error}. It takes images alone, or a folder of images a class") from None

    def of(parts: list[Samples], classes: list[str]) -> Data:
        """Names, sizes and labels tell these files from others."""
        files = [
            [(os.path.relpath(name, path), os.path.getsize(name), label) for name, label in part] for part in parts
        ]
        sources = from_files(parts, bool(classes), image_size, device, left_out)
        data = photographs(path.resolve().name, sources, classes, image_size, files)
        data.left_out, data.sizes = left_out, sizes([Path(name) for part in parts for name, _ in part])
        return data

    if not labelled:
        every = sorted(str(p) for p in path.rglob("*") if not p.is_dir() and is_image(str(p)))
        if not every:
            raise SystemExit(f"--data {path} has no images; left out: {in_words(left_out)}")
        return of(without_labels(every), [])
    flat = sorted(str(p) for p in path.iterdir() if not p.is_dir() and is_image(str(p)))
    inside = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if flat and inside:
        raise SystemExit(
            f"{path} has both images ({Path(flat[0]).name}, ...) and folders ({inside[0].name}, ...); it takes images "
            "alone, without labels, or one folder a class"
        )
    if flat:
        return of(without_labels(flat), [])
    parts = {part.name: part for part in inside if part.name in ("train", "test", "val")}
    if not parts:
        whole = tree(path)
        return of([[whole.samples[i] for i in part] for part in split(whole.targets, path)], whole.classes)
    held_out_part = parts.get("test") or parts.get("val")
    if "train" not in parts or held_out_part is None:
        raise SystemExit(f"{path} has {', '.join(parts)}; it needs train/ and test/ (or val/), or only the classes")
    train, test = tree(parts["train"]), tree(held_out_part)
    if train.classes != test.classes:
        raise SystemExit(f"{path}: train/ has {train.classes}, but {held_out_part.name}/ has {test.classes}")
    return of([train.samples, test.samples], train.classes)
