"""Operations, which every backend understands: a constant, noise, or a copy of other patches. And their definition.

A built-in fill becomes an :class:`Operation` before a backend sees it, so that a new one touches no backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CONSTANT, NOISE, COPY, POOL = range(4)
KINDS = (CONSTANT, NOISE, COPY, POOL)


class Operation(NamedTuple):
    """The work of one fill on the hidden patches of the images that it is drawn for.

    Attributes:
        kind: ``CONSTANT``, ``NOISE``, ``COPY`` (from the batch) or ``POOL`` (from the donors of the call).
        tensor: for a constant the value of each channel, ``(B, C)``, or ``(1, C)`` for all images, of their dtype; for
            noise the images' keys, ``(B,)`` int64; for a copy where each patch comes from, ``(B, *grid)`` int64: its
            image times the number of patches, plus its row-major place.
        mean: of normal noise; bytes are uniform.
        std: its standard deviation.
    """

    kind: int
    tensor: Tensor
    mean: float = 0.0
    std: float = 1.0


def constant(values: Tensor) -> Operation:
    """Write a value in each channel: ``(B, C)`` or ``(1, C)``, of the images' dtype."""
    return Operation(CONSTANT, values)


def noise(key: Tensor, mean: float, std: float) -> Operation:
    """Write noise, drawn from the images' keys ``(B,)``."""
    return Operation(NOISE, key, float(mean), float(std))


def copy(image: Tensor | None, place: Tensor | None, like: Tensor, pool: bool) -> Operation:
    """Write whole patches of the images, or of the donors.

    Args:
        image: the number of the image that each patch comes from, int64, broadcasts to ``like``; None: its own.
        place: the row-major place of that patch in its grid, int64, broadcasts to ``like``; None: the same place.
        like: the plan's mask, for its shape and device.
        pool: ``image`` counts in the donors of the call, not in the batch.
    """
    patches = math.prod(like.shape[1:])
    if image is None:
        image = torch.arange(like.shape[0], device=like.device).view(-1, *(1,) * (like.ndim - 1))
    if place is None:
        place = torch.arange(patches, device=like.device).view(1, *like.shape[1:])
    return Operation(POOL if pool else COPY, (image * patches + place).expand(like.shape))


# Operations as torch's operators take them.
OPERATIONS_SCHEMA = "int[] kinds, float[] scales, Tensor[] tensors"


def packed(operations: Sequence[Operation]) -> tuple[list[int], list[float], list[Tensor]]:
    """Return operations as the arguments of :data:`OPERATIONS_SCHEMA`."""
    scales = [number for operation in operations for number in (operation.mean, operation.std)]
    return [operation.kind for operation in operations], scales, [operation.tensor for operation in operations]


def unpacked(kinds: Sequence[int], scales: Sequence[float], tensors: Sequence[Tensor]) -> list[Operation]:
    """Return what was packed."""
    return [Operation(*each) for each in zip(kinds, tensors, scales[::2], scales[1::2], strict=True)]


def cut(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Return a view of images whose sides are cut into patches: ``(..., gh, height, gw, width)``."""
    for i, side in enumerate(reversed(grid)):
        images = images.unflatten(-1 - 2 * i, (side, -1))
    return images


def values(operation: Operation, images: Tensor, donors: Tensor | None, grid: Sequence[int]) -> Tensor:
    """Return a value for every pixel, as the operation would write it: the definition, by torch functions.

    Args:
        operation: of a fill, for these images or some of them.
        images: ``(B, C, H, W)``, ``(B, T, C, H, W)`` or ``(B, C, D, H, W)``.
        donors: ``(N, ...)`` like the images, or None.
        grid: (height, width) or (depth, height, width) in patches.

    Returns:
        A tensor of the images' dtype and device that broadcasts to the shape of the images that the operation is for.
    """
    tensor, axes, patches = operation.tensor.to(images.device, non_blocking=True), len(grid), math.prod(grid)
    if operation.kind == CONSTANT:
        return tensor.view(tensor.shape[0], *(1,) * (images.ndim - axes - 2), -1, *(1,) * axes)
    if operation.kind == NOISE:
        inner = (*images.shape[1:-axes], *cut(images, grid).shape[-2 * axes + 1 :: 2])
        key = operation.tensor  # where it is: not every device draws numbers
        drawn: Tensor = torch.ops.gmml_aug.noise(key, patches, math.prod(inner), images.dtype)
        scaled = scale(drawn.to(images.device, non_blocking=True), operation.mean, operation.std, images.dtype)
        taken = scaled.view(tensor.shape[0], *grid, *inner)
    else:
        origin = {COPY: images, POOL: donors}[operation.kind]
        assert origin is not None, "an operation on a pool comes with donors"
        at: list[Tensor] = []
        image, place = tensor // patches, tensor % patches
        for side in reversed(grid):
            at.insert(0, place % side)
            place = place // side
        taken = cut(origin, grid).movedim(tuple(range(-2 * axes, 0, 2)), tuple(range(1, axes + 1)))[(image, *at)]
    moved = taken.movedim(tuple(range(1, axes + 1)), tuple(range(-2 * axes, 0, 2)))
    joined: Tensor = moved.reshape(tensor.shape[0], *images.shape[1:])
    return joined


def scale(drawn: Tensor, mean: float, std: float, dtype: torch.dtype) -> Tensor:
    """Return noise with its mean and spread, in the images' dtype: computed in float64 for it, else in float32."""
    if dtype == torch.float64:
        drawn = drawn.to(dtype)
    return (drawn if (mean, std) == (0, 1) else drawn * std + mean).to(dtype)


class Merged(NamedTuple):
    """Operations as one for each image, which is how loops over patches read them.

    Attributes:
        kind: ``(B,)`` int64; -1 where the plan names a fill that there is not.
        value: ``(B, C)`` of the images' dtype, of constants.
        source: ``(B, gh, gw)`` int64, of copies.
        key: ``(B,)`` int64, of noise.
    """

    kind: Tensor
    value: Tensor
    source: Tensor
    key: Tensor


def merged(operations: Sequence[Operation], images: Tensor, mask: Tensor, fill: Tensor) -> Merged:
    """Return what each image is to have. A field means nothing for images of other kinds, and is empty if all are."""
    kind, fields = torch.full_like(fill, -1), dict[int, Tensor]()
    for i, operation in enumerate(operations):
        here, field = fill == i, COPY if operation.kind == POOL else operation.kind
        kind.masked_fill_(here, operation.kind)
        if field in fields:
            wide = here.view(-1, *(1,) * (operation.tensor.ndim - 1))
            fields[field] = torch.where(wide, operation.tensor, fields[field])
        else:
            fields[field] = operation.tensor
    value = fields[CONSTANT].expand(len(images), -1) if CONSTANT in fields else images.new_empty(0, 1)
    source, key = fields.get(COPY, fill[:0]), fields.get(NOISE, fill[:0])
    return Merged(kind, *(t.contiguous() for t in (value, source, key)))
