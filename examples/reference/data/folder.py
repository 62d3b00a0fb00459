"""A folder of images, with or without a folder a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ..draws import split
from ..machine import cores
from .photos import below, in_words, read, sizes, stored_side, taken, to_side
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

    def inside(root: Path) -> dict[str, Path]:
        folders = sorted(p for p in root.iterdir() if p.is_dir())
        left_out["hidden folders"] += sum(p.name.startswith(".") for p in folders)
        return {p.name: p for p in folders if not p.name.startswith(".")}

    def alone(root: Path, folders: dict[str, Path]) -> list[str]:
        """Return the images that lie in a folder itself; end here if there are folders beside them."""
        images = sorted(map(str, taken((p for p in root.iterdir() if not p.is_dir()), left_out)))
        if images and folders:
            raise SystemExit(
                f"{root} has both images ({Path(images[0]).name}, ...) and folders ({next(iter(folders))}, ...); it "
                "takes images alone, without labels, or one folder a class"
            )
        return images

    def classes_in(folders: dict[str, Path]) -> Samples:
        return [(str(p), label) for label, root in enumerate(folders.values()) for p in below(root, left_out)]

    def missing(classes: list[str], labels: Iterable[int]) -> str:
        there = set(labels)
        return ", ".join(name for label, name in enumerate(classes) if label not in there)

    def of(parts: list[Samples], classes: list[str]) -> Data:
        """Names, sizes and labels tell these files from others."""
        for part in parts:
            if empty := missing(classes, (label for _, label in part)):
                raise SystemExit(
                    f"--data {path} has no image of {empty}; left out: {in_words(left_out)}. It takes images alone, or "
                    "a folder of images a class"
                )
        files = [
            [(os.path.relpath(name, path), os.path.getsize(name), label) for name, label in part] for part in parts
        ]
        sources = from_files(parts, bool(classes), image_size, device, left_out)
        for source, kind in zip(sources, ("training", "held-out"), strict=False):
            if source.labels is not None and (unread := missing(classes, source.labels.tolist())):
                raise SystemExit(f"--data {path}: none of the {kind} images of {unread} can be read")
        data = photographs(path.resolve().name, sources, classes, image_size, files)
        data.left_out, data.sizes = left_out, sizes([Path(name) for part in parts for name, _ in part])
        return data

    if not labelled:
        every = sorted(map(str, below(path, left_out)))
        if not every:
            raise SystemExit(f"--data {path} has no images; left out: {in_words(left_out)}")
        return of(without_labels(every), [])
    folders = inside(path)
    flat = alone(path, folders)
    if flat:
        return of(without_labels(flat), [])
    if not folders:
        raise SystemExit(f"--data {path} has no images; left out: {in_words(left_out)}")
    parts = {name.lower(): p for name, p in folders.items() if name.lower() in ("train", "test", "val")}
    if not parts:
        whole, classes = classes_in(folders), list(folders)
        labels = [label for _, label in whole]
        if single := ", ".join(classes[label] for label, number in Counter(labels).items() if number == 1):
            raise SystemExit(
                f"--data {path} has one image of {single}; each class needs two, of which one is held out; or give "
                "train/ and test/ apart"
            )
        return of([[whole[i] for i in part] for part in split(labels, path)], classes)
    held_out_part = parts.get("test") or parts.get("val")
    if "train" not in parts or held_out_part is None:
        raise SystemExit(
            f"{path} has {', '.join(p.name for p in parts.values())}; it needs train/ and test/ (or val/), or only the "
            "classes"
        )
    left_out["folders beside train/ and test/"] += len(folders) - 2
    train, test = inside(parts["train"]), inside(held_out_part)
    for root, its in ((parts["train"], train), (held_out_part, test)):
        alone(root, its)
    if not train:
        raise SystemExit(f"{parts['train']} has no folder of a class; left out: {in_words(left_out)}")
    if list(train) != list(test):
        raise SystemExit(f"{path}: train/ has {[*train]}, but {held_out_part.name}/ has {[*test]}")
    return of([classes_in(train), classes_in(test)], list(train))
