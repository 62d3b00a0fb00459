"""The definition of what is written: torch.where() over all pixels, for any device, layout and fill, and autograd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..grid import spread
from .operation import COPY, Operation, values

_VALUES = 2**17  # of the images that are written at once on a CPU


def combined(images: Tensor, mask: Tensor, fill: Tensor, each: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Return images whose hidden pixels have the values of their fill.

    Args:
        images: ``(B, C, H, W)``, ``(B, T, C, H, W)`` or ``(B, C, D, H, W)``.
        mask: ``(B, gh, gw)`` or, of volumes, ``(B, gd, gh, gw)`` bool.
        fill: ``(B,)`` int64, the number of the fill that an image takes.
        each: the number of a fill, and a value for every pixel.
    """
    mask, fill = (t.to(images.device, non_blocking=True) for t in (mask, fill))
    axes = mask.ndim - 1
    sides = spread(mask, [side // n for side, n in zip(images.shape[-axes:], mask.shape[1:], strict=True)])
    hidden = sides.view(len(images), *(1,) * (images.ndim - axes - 1), *sides.shape[1:])
    out = images
    for number, value in each:
        here = hidden & (fill == number).view(-1, *(1,) * (images.ndim - 1))
        # where() takes one or the other, so that nothing hidden, not even NaN, reaches the result or a gradient. The
        # images come first: the result has their memory format.
        out = torch.where(~here, out, value)
    return out


def takes(images: Tensor, *others: object) -> bool:
    """Tell that every call is taken."""
    return True


def write(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> None:
    """Write the images into ``out``; see :mod:`gmml_aug.filling`."""
    if images.device.type != "cpu":
        each = (values(one, images, donors, mask.shape[1:]) for one in operations)
        out.copy_(combined(images, mask, fill, enumerate(each)))
        return
    # A few images after the others, and only the fills that they have: what is made on the way stays in the caches.
    source = images.clone() if out is images and any(one.kind == COPY for one in operations) else images
    grid, step = mask.shape[1:], max(1, _VALUES // images[0].numel())
    for begin in range(0, images.shape[0], step):
        here = slice(begin, begin + step)
        numbers = set(fill[here].tolist())
        pairs = (
            (i, values(one if len(one.tensor) == 1 else one._replace(tensor=one.tensor[here]), source, donors, grid))
            for i, one in enumerate(operations)
            if i in numbers
        )
        out[here] = combined(images[here], mask[here], fill[here], pairs)
