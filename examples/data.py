"""Images for the examples: scikit-learn's digits, a folder, a data set of torchvision, or WebDataset shards.

Whatever fits is decoded once and held in memory on the device as uint8; what does not is read from its files by
workers. Crops, flips and jitter come after that, for a whole batch at once, on the device (``Views``).
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import random
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import kornia.augmentation as K
import numpy as np
import torch
import torchvision
from accelerate import PartialState
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from tqdm import tqdm

try:
    import pillow_heif  # type: ignore[import-not-found]
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

MEMORY = 4 * 2**30  # bytes of a folder's images that are held in memory; more than that is read as it is needed
THIN = 10  # times as long as wide, and an image is left out: its middle square shows nothing of it
RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
HEIC = (".heic", ".heif")  # of many phones; Pillow reads it with pillow-heif
READ = (*IMG_EXTENSIONS, *HEIC) if pillow_heif else IMG_EXTENSIONS
SHUFFLED = 1000  # images of a stream that each worker holds and draws from


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
        """What timm's transforms take to cut and normalise images as the plain view does."""
        return {
            "input_size": [self.channels, self.image_size, self.image_size],
            # Rounded down: timm takes the floor of the quotient for the shorter side.
            "crop_pct": math.floor(1e6 * self.image_size / self.train.side) / 1e6,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": self.mean,
            "std": self.std,
        }


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
        normalised: Tensor = v2.functional.normalize(images, self.data.mean, self.data.std)
        return normalised

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
        # A generator of its own: torch's is left alone, and the workers' seeds hang on what is asked for first.
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


class Shards(Decoded):
    """An endless stream of the images in tar files; the numbers asked for only name the masks.

    Each worker of each process goes through all shards again and again, in orders of its own, and draws from the
    images that it holds. A stream cannot be sought: the seed of its order hangs on the numbers that are asked for
    first, so a resumed run goes on with other images than the run that was not stopped would have seen.
    """

    def __init__(self, urls: list[str], samples_per_epoch: int, side: int, device: torch.device) -> None:
        super().__init__(samples_per_epoch, None, side, device)
        self.urls = urls
        self.broken: list[tuple[str, str]] = []
        self.squares: Iterator[Tensor] | None = None  # made where it is used, in the worker

    def encoded(self, order: random.Random) -> Iterator[tuple[str, bytes]]:
        """Yield names and undecoded images, without end."""
        import webdataset as wds  # type: ignore[import-untyped]

        for _ in count():
            found = False
            for url in order.sample(self.urls, len(self.urls)):

                def unreadable(error: Exception, url: str = url) -> bool:
                    texts = [part for part in error.args if isinstance(part, str)]  # beside objects and the address
                    self.broken.append((url, "; ".join(text for text in texts if text != url)))
                    return True

                for sample in wds.tarfile_to_samples(handler=unreadable)([{"url": url}]):
                    for part in sample:
                        if f".{part.rpartition('.')[2]}" in IMG_EXTENSIONS:
                            found = True
                            yield f"{url}: {sample['__key__']}.{part}", sample[part]
            if not found:
                raise OSError(f"there are no images in {self.urls[0]} and the other shards{reasons(self.broken)}")

    def stream(self, order: random.Random) -> Iterator[Tensor]:
        import webdataset as wds

        in_a_row = 0
        for name, image in wds.shuffle(SHUFFLED, rng=order)(self.encoded(order)):
            square = read(BytesIO(image), self.side)
            if isinstance(square, Tensor):
                in_a_row = 0
                yield to_side(square, self.side)
                continue
            in_a_row += 1
            self.broken.append((name, str(square).partition(" <_io")[0]))
            if in_a_row == SHUFFLED:
                raise OSError(f"{in_a_row} images in a row cannot be read, the last being {name} ({square})")

    def __getitems__(self, numbers: list[int]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        if self.squares is None:
            self.squares = self.stream(random.Random(torch.initial_seed()))  # DataLoader's, another in each worker
        images = torch.stack([next(self.squares) for _ in numbers])
        broken, self.broken = self.broken, []
        return images, torch.tensor(numbers), broken


def as_it_is(batch: Any) -> Any:
    return batch


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reasons(broken: list[tuple[str, str]]) -> str:
    return "".join(f"; {name}: {reason}" for name, reason in broken[:3])


def skipped(name: object, reason: object, number: int) -> None:
    tqdm.write(f"skipped {name}, which cannot be read ({reason}); {number} so far", file=sys.stderr)


def read(file: Path | BinaryIO, most: int) -> Tensor | Exception:
    """Return the middle of an image, ``(3, side, side)`` uint8, made smaller where it has more than ``most`` pixels a
    side; or why there is none.
    """
    try:
        with Image.open(file) as image:
            if max(image.size) > THIN * min(image.size):
                raise ValueError(f"too thin: {image.width}x{image.height} pixels")
            image.draft("RGB", (2 * most, 2 * most))  # JPEG decodes at a half, a quarter or an eighth of its size
            return square(ImageOps.exif_transpose(image), most)
    except Exception as error:  # Pillow's plug-ins raise what they like for a broken file
        return error


def square(image: Image.Image, most: int) -> Tensor:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels go from {values.min()} to {values.max()}, beyond 16 bits")
        image = Image.fromarray((values // 257).astype(np.uint8))
    tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
    middle = v2.functional.center_crop(tensor, [min(tensor.shape[1:])])
    return to_side(middle, min(most, middle.shape[-1]))


def to_side(image: Tensor, side: int) -> Tensor:
    if image.shape[-1] == side:
        return image
    resized: Tensor = v2.functional.resize(image, [side, side], antialias=True)
    return resized


def stored_side(image_size: int) -> int:
    """Return the side that larger images are made smaller to: 256 for 224, so that the plain view cuts its middle."""
    return round(image_size * 8 / 7)


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


def alike(parts: list[Source]) -> None:
    """Bring images in memory to one size: of larger ones the plain view would cut the rim off, of smaller ones not."""
    held = [part for part in parts if isinstance(part, Memory)]
    side = max((part.images.shape[-1] for part in held), default=0)
    for part in held:
        if part.images.shape[-1] < side:
            part.images = torch.cat([to_side(images, side) for images in part.images.split(1000)])


def fingerprint(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def split(labels: Iterable[int], name: object) -> tuple[list[int], list[int]]:
    """Return the indices of four fifths of each class and of the rest."""
    targets = list(labels)
    try:
        train, test = train_test_split(range(len(targets)), test_size=0.2, stratify=targets, random_state=0)
    except ValueError as error:
        raise SystemExit(
            f"{name} cannot be split 4 to 1: {error} Each class needs two images or more, and a fifth of the images "
            "one for each class; or give train/ and test/ apart"
        ) from None
    return train, test


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
        fingerprint=fingerprint("digits"),
    )


def why_not(path: Path) -> str | None:
    """Return why a file is no image to be read, in a few words; None where it is one."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden"
    if suffix not in READ:
        kinds = {"": "without an extension", ".gif": "GIF"} | dict.fromkeys(RAW, "raw")
        kinds |= dict.fromkeys(HEIC, "HEIC (pip install pillow-heif)")
        return kinds.get(suffix, "of other kinds")
    return None if path.exists() else "dangling links"


def in_words(left_out: Counter[str]) -> str:
    """Return how many files were left out, by reason."""
    return ", ".join(f"{number:,} {why}" for why, number in sorted(left_out.items())) or "none"


def sizes(paths: list[Path], most: int = 200) -> str:
    """Return the sizes of some images, of the smallest to the largest, without decoding them."""
    found = []
    for path in paths[:: max(1, len(paths) // most)]:
        with suppress(Exception), Image.open(path) as image:  # what is unreadable is named elsewhere
            found.append(image.size)
    if not found:
        return ""
    low, high = (f"{width}x{height}" for width, height in (min(found, key=math.prod), max(found, key=math.prod)))
    return f"{low} pixels" if low == high else f"{low} to {high} pixels"


def folder(path: Path, image_size: int, device: torch.device, labelled: bool = True) -> Data:
    """Read ``path/*``, without labels; or ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val``); or split
    ``path/<class>/*`` 4 to 1. Folders inside a class belong to it; names that begin with a dot are passed over. Not
    ``labelled``, all images below the folder are taken.
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
        return of([[(name, 0) for name in every]], [])
    flat = sorted(str(p) for p in path.iterdir() if not p.is_dir() and is_image(str(p)))
    inside = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if flat and inside:
        raise SystemExit(
            f"{path} has both images ({Path(flat[0]).name}, ...) and folders ({inside[0].name}, ...); it takes images "
            "alone, without labels, or one folder a class"
        )
    if flat:
        return of([[(name, 0) for name in flat]], [])
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


def shards(name: str, samples_per_epoch: int | None, image_size: int, device: torch.device) -> Data:
    """Stream the images of WebDataset shards: ``{000..099}.tar``, URLs, ``pipe:`` commands, joined by ``::``."""
    try:
        from webdataset.shardlists import expand_urls  # type: ignore[import-untyped]
    except ImportError:
        raise SystemExit(f"--data {name} needs webdataset: pip install -e '.[webdataset]'") from None
    if samples_per_epoch is None or samples_per_epoch < 1:
        raise SystemExit(
            f"--data {name} is a stream, whose number of images is not known: give --samples-per-epoch, at least 1; "
            f"got {samples_per_epoch}"
        )
    urls = expand_urls(name)
    missing = [url for url in urls if not is_remote(url) and not Path(url).is_file()]
    if missing:
        raise SystemExit(f"--data {name}: {len(missing)} of {len(urls)} shards do not exist, such as {missing[0]}")
    source = Shards(urls, samples_per_epoch, stored_side(image_size), device)
    try:
        next(source.encoded(random.Random(0)))
    except OSError as error:
        raise SystemExit(f"--data {name}: {error}") from None
    return photographs(name, [source], [], image_size, urls, samples_per_epoch)


def is_remote(name: str) -> bool:
    return name.startswith("pipe:") or "://" in name


def load(
    name: str,
    image_size: int,
    device: torch.device,
    samples_per_epoch: int | None = None,
    labelled: bool = True,
) -> Data:
    """Return the data that ``--data`` names, with images of ``image_size`` pixels a side."""
    if is_remote(name) or name.endswith((".tar", ".tar.gz", ".tgz")):
        return shards(name, samples_per_epoch, image_size, device)
    if samples_per_epoch is not None:
        raise SystemExit(f"--samples-per-epoch {samples_per_epoch} is for shards; the images of {name} are counted")
    if name == "digits":
        return digits(image_size, device)
    if name.startswith("torchvision:"):
        return of_torchvision(name.removeprefix("torchvision:"), image_size, device)
    if not Path(name).is_dir():
        raise SystemExit(
            "--data takes 'digits', 'torchvision:NAME', a folder of images, or shards such as 'FOLDER/{000..099}.tar'; "
            f"there is no folder {name!r}"
        )
    return folder(Path(name), image_size, device, labelled)


def of_run(settings: dict[str, Any], device: torch.device) -> Data:
    """Return the images of a run's settings."""
    labelled = not settings.get("no_labels", False)  # which runs before this option did not have
    return load(settings["data"], settings["image_size"], device, settings["samples_per_epoch"], labelled)


def the_same_images(run: Path, settings: dict[str, Any], data: Data) -> None:
    """End here if images came, went or changed since the run: held-out ones may be among those that it trained on."""
    if settings["version_of_images"] != data.fingerprint:
        raise SystemExit(
            f"the images of {settings['data']} are not those that {run} was pretrained on: some came, went or changed. "
            f"Put them back; or give --data {settings['data']}, if none that is held out now was trained on"
        )


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
