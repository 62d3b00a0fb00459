"""The definition of what is written: torch.where() over all pixels, for any device, layout and fill, and autograd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .operation import COPY, KINDS, Operation, values


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
    # Image after image with its own fill alone: what is made on the way then stays in the caches.
    source = images.clone() if out is images and any(one.kind == COPY for one in operations) else images
    for i, which in enumerate(fill.tolist()):
        here, image = slice(i, i + 1), images[i : i + 1]
        if 0 <= which < len(operations):
            one = operations[which]
            tensor = one.tensor if len(one.tensor) == 1 else one.tensor[here]
            value = values(one._replace(tensor=tensor), source, donors, mask.shape[1:])
            image = combined(image, mask[here], fill[here], False, [value])
        out[here] = image
