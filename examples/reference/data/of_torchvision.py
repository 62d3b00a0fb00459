"""A data set of torchvision."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from accelerate import PartialState
from torch import Tensor

from ..draws import split
from .photos import square, stored_side
from .sources import Data, Memory, Source
from .together import photographs, together


def of_torchvision(name: str, image_size: int, device: torch.device) -> Data:
    """Read a classification set of torchvision that takes ``download=``, from ``data/`` or the network.

    A set without a training and a test part is split 4 to 1. All is held in memory, whatever its size.
    """
    make: Callable[..., Any] | None = getattr(torchvision.datasets, name, None)
    options = inspect.signature(make).parameters if make else {}
    if make is None or "download" not in options:
        raise SystemExit(
            f"torchvision:{name} is not a data set of torchvision that takes download=, such as CIFAR10, CIFAR100, "
            "STL10, SVHN, FashionMNIST or EuroSAT"
        )

    def part(**which: object) -> tuple[Tensor, Tensor, list[str]]:
        try:
            with PartialState().local_main_process_first():  # one process of a machine downloads
                samples = make("data", download=True, **which)
        except (OSError, RuntimeError, ValueError) as error:
            raise SystemExit(
                f"torchvision:{name} is not in data/ and cannot be downloaded, or not so: {error}"
            ) from None
        labels: list[int] = []

        def images() -> Iterator[tuple[object, Tensor | Exception]]:
            for i in range(len(samples)):
                try:
                    image, label = samples[i]
                    squared = square(image, stored_side(image_size))
                except OSError as error:
                    yield f"{name}[{i}]", error
                else:
                    labels.append(int(label))
                    yield f"{name}[{i}]", squared

        stacked, _ = together(images(), len(samples), image_size, Counter())
        classes = getattr(samples, "classes", None) or [str(c) for c in range(max(labels) + 1)]
        return stacked.to(device), torch.tensor(labels), classes

    if "train" in options or "split" in options:
        of_train, of_test = (
            ({"train": True}, {"train": False}) if "train" in options else ({"split": "train"}, {"split": "test"})
        )
        images, labels, classes = part(**of_train)
        parts: list[Source] = [Memory(images, labels), Memory(*part(**of_test)[:2])]
    else:
        images, labels, classes = part()
        parts = [Memory(images[i], labels[i]) for i in split(labels.tolist(), f"torchvision:{name}")]
    return photographs(name, parts, classes, image_size, name, [len(each) for each in parts])
