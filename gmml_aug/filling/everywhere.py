"""The definition of what is written: torch.where() over all pixels, for any device, layout and fill, and autograd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .operation import COPY, KINDS, Operation, values

_VALUES = 2**17  # of the images that are written at once on a CPU


def combined(images: Tensor, mask: Tensor, fill: Tensor, many: bool, each: Iterable[Tensor]) -> Tensor:
    """Return images whose hidden pixels have the values of their fill.

    Args:
        images: ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
        mask: ``(B, gh, gw)`` bool.
        fill: ``(B,)`` int64, which of the values an image takes.
        many: there are several, so that ``fill`` counts.
        each: for each fill a value for every pixel.
    """
    mask, fill = (t.to(images.device, non_blocking=True) for t in (mask, fill))
    rows, columns = mask.shape[1:]
    spread = mask[:, :, None, :, None].expand(-1, -1, images.shape[-2] // rows, -1, images.shape[-1] // columns)
    hidden = spread.reshape(images.shape[0], *(1,) * (images.ndim - 3), *images.shape[-2:])
    out = images
    for i, value in enumerate(each):
        here = hidden & (fill == i).view(-1, *(1,) * (images.ndim - 1)) if many else hidden
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
    if images.device.type != "cpu" or any(one.kind not in KINDS for one in operations):
        each = (values(operation, images, donors, mask.shape[1:]) for operation in operations)
        out.copy_(combined(images, mask, fill, len(operations) > 1, each))
        return
    # A few images after the others, and only the fills that they have: what is made on the way stays in the caches.
    source = images.clone() if out is images and any(one.kind == COPY for one in operations) else images
    step = max(1, _VALUES // images[0].numel())
    for begin in range(0, images.shape[0], step):
        here = slice(begin, begin + step)
        some, filled = fill[here], images[here]
        for which in set(some.tolist()).intersection(range(len(operations))):
            one = operations[which]
            tensor = one.tensor if len(one.tensor) == 1 else one.tensor[here]
            value = values(one._replace(tensor=tensor), source, donors, mask.shape[1:])
            filled = combined(filled, mask[here], (some != which).long(), True, [value])
        out[here] = filled
