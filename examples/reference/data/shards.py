"""WebDataset shards: a stream of images in tar files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from io import BytesIO
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from .photos import read, stored_side, to_side
from .sources import Data, Decoded
from .together import photographs

SHUFFLED = 1000  # images of a stream that each worker holds and draws from


class Shards(Decoded):
    """An endless stream of the images in tar files; the numbers asked for only name the masks.

    Each worker of each process goes through all shards again and again, in orders of its own, and draws from the
    images that it holds. A stream cannot be sought: the seed of its order depends on the numbers that are asked for
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


def reasons(broken: list[tuple[str, str]]) -> str:
    return "".join(f"; {name}: {reason}" for name, reason in broken[:3])


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
