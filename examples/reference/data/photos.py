"""One photograph from its file: the middle square, made smaller; and what is no photograph, with the reason."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

READS_HEIC = find_spec("pillow_heif") is not None
if READS_HEIC:
    import_module("pillow_heif").register_heif_opener()

THIN = 10  # times as long as wide, and an image is left out: its middle square shows nothing of it
RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
HEIC = (".heic", ".heif")  # of many phones; Pillow reads it with pillow-heif
READ = (*IMG_EXTENSIONS, ".jfif", *(HEIC if READS_HEIC else ()))


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


def below(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the photographs in a folder and in those inside, by name; count what is left out, by reason.

    Links to folders are followed, but none is entered twice, and none that leads back up.
    """
    found: list[Path] = []
    entered = set(folder.resolve().parents)
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in entered:
            left_out["links to folders seen before"] += 1
            folders.clear()
            continue
        entered.add(real)
        left_out["hidden folders"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += taken((Path(parent, name) for name in sorted(files)), left_out)
    return found


def taken(paths: Iterable[Path], left_out: Counter[str]) -> list[Path]:
    """Return those of some files that are photographs; count the others, by reason."""
    reasons = [(path, why_not(path)) for path in paths]
    left_out.update(reason for _, reason in reasons if reason is not None)
    return [path for path, reason in reasons if reason is None]


def in_words(left_out: Counter[str]) -> str:
    """Return how many files were left out, by reason."""
    return ", ".join(f"{number:,} {why}" for why, number in sorted(left_out.items()) if number) or "none"


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
