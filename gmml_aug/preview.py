"""A contact sheet: photos beside what GroupMask makes of them. Needs Pillow and matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

_DPI = 100
_LEAST_CELL = 200  # pixels: room for a caption; smaller images are drawn larger
_LINE = 18  # pixels, the height of a line of text
_GAP = 10
CAPTION = 28  # characters below an image that fit: 6.7 pixels each


def load(path: Path, side: int) -> Tensor:
    """Read a photo as people see it, scaled and cropped to its centre: ``(3, side, side)`` float32 in [0, 1].

    Greyscale, palettes and CMYK become RGB, and transparency is dropped.

    Raises:
        ValueError: the file is no image that Pillow can read, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            # Pillow clips 16 and 32 bits to 8 on the way to RGB, which turns most of such an image white.
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits a channel (mode {image.mode}); convert it first")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
    except Exception as error:  # a decoder raises almost anything on a broken file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"cannot read the photo {path}: {reason}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255


def draw(
    columns: Mapping[str, Tensor], captions: Sequence[Sequence[str]], title: str, path: Path, file_format: str
) -> None:
    """Draw images in a grid, and save it.

    Args:
        columns: for each column its heading and its images ``(B, 3, side, side)`` in [0, 1], one a row.
        captions: the line below each image, by column and row.
        title: stands above all of it, and is broken into lines where it is too long.
        path: the file to write.
        file_format: "png" or another one that matplotlib writes.

    Raises:
        OSError, ValueError: the file cannot be written, or not in this format.
    """
    number, _, side, _ = next(iter(columns.values())).shape
    cell = side * -(-_LEAST_CELL // side)  # a whole multiple, so that the pixels stay sharp
    width = len(columns) * (cell + _GAP) + _GAP
    lines = textwrap.wrap(title, max(20, width // 8))
    top = _GAP + len(lines) * _LINE + _GAP + _LINE
    height = top + number * (cell + _LINE + _GAP)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        """Write below (x, y), in pixels from the upper left corner."""
        figure.text(x / width, 1 - y / height, text, va="top", parse_math=False, **style)

    write(_GAP, _GAP, "\n".join(lines), fontsize=10, family="monospace", linespacing=1.3)
    for column, (heading, images) in enumerate(columns.items()):
        x = _GAP + column * (cell + _GAP)
        write(x + cell / 2, top - _LINE, heading, ha="center", fontsize=11, weight="bold")
        for row, image in enumerate(images):
            y = top + row * (cell + _LINE + _GAP)
            inside = cell - 1e-3  # matplotlib up to 3.10 takes up whole pixels: a rounding error would be one more
            axes = figure.add_axes((x / width, 1 - (y + cell) / height, inside / width, inside / height))
            pixels = (image * 255).round().to(torch.uint8)  # matplotlib would round down
            axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
            write(x + cell / 2, y + cell + 3, captions[column][row], ha="center", fontsize=8, family="monospace")
    figure.savefig(path, format=file_format, dpi=_DPI, facecolor="white")
