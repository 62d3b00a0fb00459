"""Which patches are hidden: a sample's numbers -> its mask. Pure functions, batched, in integer arithmetic alone.

Groups of connected patches are those of GMML (Atito, Awais and Kittler, arXiv 2205.14986, section 3.1): rectangles of
whole patches, overlaps allowed, one after another until the wanted share is hidden. Here all rectangles of all images
are drawn at once, and each patch takes the number of the first rectangle that covers it; hiding the first n patches in
the order of these numbers is what the loop would have done, with the last rectangle cut to reach n exactly.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from . import rng

_WORD = 64  # rectangles that share an int64, one bit each
_CHUNK_CELLS = 2**22  # int64 cells (32 MiB) that one step of the batch may use for its bit sets


def group_range(side: int, group_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the smallest and largest side of a group on a grid of ``side`` patches.

    ``None`` is the paper's: 1 up to 30 % of the grid's side, at least 1.

    Raises:
        ValueError: the group is larger than the grid.
    """
    if group_size is None:
        return 1, max(1, side * 3 // 10)
    if group_size[1] > side:
        raise ValueError(
            f"group_size={group_size} asks for groups of up to {group_size[1]} patches a side, but this image's grid "
            f"has a side of {side}; use a smaller group_size, a smaller patch_size or a larger image"
        )
    return group_size


def _coverage(side: int, sizes: tuple[int, int], inside: bool) -> Tensor:
    """Return the probability that one group's extent covers each place of one axis: ``(side,)`` float64."""
    place = torch.arange(side, device="cpu")
    total = torch.zeros(side, dtype=torch.float64, device="cpu")
    for size in range(sizes[0], sizes[1] + 1):
        if inside:
            starts = side - size + 1
            total += (place.clamp(max=side - size) - (place - size + 1).clamp(min=0) + 1) / starts
        else:
            total += size / (side + size - 1)
    return total / (sizes[1] - sizes[0] + 1)


@lru_cache(maxsize=256)
def rectangles_needed(
    rows: int, columns: int, most: int, heights: tuple[int, int], widths: tuple[int, int], inside: bool
) -> int:
    """Return how many rectangles to draw so that they practically never run out before ``most`` patches are hidden.

    After K rectangles a patch with coverage probability q is still visible with probability (1 - q)^K; call the mean
    of that over the grid b. Running out means that more than a = 1 - (most - 1) / N of the patches are visible. Two
    estimates of its probability, and the smaller K for which one of them is below 1e-9 is taken:

    - Markov's inequality, N b / (N a): rigorous, and the better one for the last few patches of a high ratio;
    - Chernoff's bound for a binomial of N / (mean group area) independent cells, exp(-cells KL(a || b)): a group
      decides about its whole area at once, so that many patches are about as good as independent. Measured against
      200,000 images for each of 49 settings (once, by hand), it asks for 1.5 to 10 times what the slowest image needed.

    Running out would still hide the exact count (see :func:`masks`). No rectangle is needed where each patch is a
    group of its own, whose rank decides, or where no patch is hidden.
    """
    patches = rows * columns
    if most == 0 or (heights, widths) == ((1, 1), (1, 1)):
        return 0
    most = min(most, patches - 1)  # an image that hides every patch needs no order
    stay = 1 - _coverage(rows, heights, inside)[:, None] * _coverage(columns, widths, inside)
    share = (patches - most + 1) / patches
    cells = max(1.0, patches / (sum(heights) * sum(widths) / 4))
    wanted = math.log(1e9)

    def enough(rectangles: int) -> bool:
        visible = float((stay**rectangles).mean())
        if visible >= share:
            return False
        if visible == 0 or math.log(share / visible) >= wanted:
            return True
        divergence = share * math.log(share / visible)
        if share < 1:
            divergence += (1 - share) * math.log((1 - share) / (1 - visible))
        return cells * divergence >= wanted

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return -(-high // _WORD) * _WORD


def counts(key: Tensor, patches: int, ratio: tuple[float, float], p: float) -> Tensor:
    """Return how many patches each image hides: round(ratio * patches), half to even; 0 where p leaves it alone.

    Args:
        key: ``(B,)`` int64.
        patches: how many an image has.
        ratio: (low, high) of the uniform distribution of each image's ratio.
        p: probability that an image is corrupted.

    Returns:
        ``(B,)`` int64.
    """
    for_ratio, for_p = rng.halves(rng.words(key, rng.COUNT_SLOT, 1)[:, 0])
    low, high = round(ratio[0] * patches), round(ratio[1] * patches)
    if low == high:
        count = torch.full_like(key, low)
    else:
        # ratio * patches in units of 2^-16; 24 bits of the draw, so that the product stays below 2^63.
        start, stop = round(ratio[0] * patches * 2**16), round(ratio[1] * patches * 2**16)
        exact = start + (((for_ratio >> 8) * (stop - start)) >> 24)
        count = (exact + 2**15) >> 16
        tie = (exact & 0xFFFF) == 2**15
        count = (count - (tie & (count % 2 == 1)).to(torch.int64)).clamp(low, high)
    return torch.where(for_p < round(p * 2**32), count, 0)


def _rectangles(
    key: Tensor, number: int, side: tuple[int, int], sizes: tuple[tuple[int, int], tuple[int, int]], inside: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw each image's rectangles: for rows and for columns, (first, one past the last), each ``(B, number)``."""
    word = rng.words(key, rng.RECTANGLE_SLOT, 2 * number).view(-1, number, 2)
    spans = []
    for axis, draw in enumerate(rng.halves(word)):
        low, high = sizes[axis]
        extent = low + rng.below(draw[..., 0], high - low + 1)
        if inside:
            start = rng.below(draw[..., 1], side[axis] - extent + 1)
        else:
            # Every start at which at least one patch lies on the grid is as likely as any other, so a group of
            # this extent covers each patch equally often: nothing starves at the border.
            start = rng.below(draw[..., 1], side[axis] + extent - 1) - (extent - 1)
        spans.append((start.clamp(min=0), (start + extent).clamp(max=side[axis])))
    rows, columns = spans
    return rows, columns


def _bit_sets(first: Tensor, last: Tensor, side: int) -> Tensor:
    """Return which of the K spans cover each place of an axis, as bits: ``(B, K)`` twice -> ``(B, K / 64, side)``.

    A span adds its bit where it begins and takes it away where it ends, so a running sum holds it in between. Every
    span has a bit of its own, therefore nothing carries.
    """
    batch, number = first.shape
    k = torch.arange(number, device=first.device)
    bit = (torch.ones_like(k) << (k % _WORD)).expand(batch, number)
    row = k // _WORD * (side + 1)
    steps = first.new_zeros(batch, number // _WORD * (side + 1))
    steps.scatter_add_(1, first + row, bit)
    steps.scatter_add_(1, last + row, -bit)
    return steps.view(batch, number // _WORD, side + 1).cumsum(2)[..., :side]


def first_rectangle(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], height: int, width: int) -> Tensor:
    """Return the number of the first rectangle that covers each patch.

    Args:
        rows: (first, one past the last) of each rectangle, ``(B, K)`` int64 each, K a multiple of 64.
        columns: the same across.
        height: of the grid, in patches.
        width: of the grid, in patches.

    Returns:
        ``(B, height * width)`` int64, row-major; K where no rectangle covers the patch.
    """
    number = rows[0].shape[1]
    covering = _bit_sets(*rows, height)[..., :, None] & _bit_sets(*columns, width)[..., None, :]
    lowest = covering & -covering
    # A power of two is exact in float32, and its exponent is the number of the bit.
    bit = ((lowest.to(torch.float32).view(torch.int32) >> 23) & 0xFF) - 127
    word = torch.arange(number // _WORD, device=bit.device, dtype=torch.int32)[:, None, None] * _WORD
    return torch.where(covering == 0, number, bit + word).amin(1).flatten(1).to(torch.int64)


def masks(
    key: Tensor,
    count: Tensor,
    grid: tuple[int, int],
    group_size: tuple[tuple[int, int], tuple[int, int]],
    inside: bool,
    rectangles: int,
) -> Tensor:
    """Draw the masks.

    Args:
        key: ``(B,)`` int64, one for each image.
        count: ``(B,)`` int64, how many patches each image hides.
        grid: (height, width) in patches.
        group_size: (smallest, largest) height of a group and the same for its width, in patches.
        inside: groups lie wholly on the grid, rather than hanging over its border.
        rectangles: how many to draw, a multiple of 64. Patches that none covers come last, in random order: with
            too few rectangles the count is still exact and no patch is preferred, and with none this is the random
            masking of single patches.

    Returns:
        ``(B, height, width)`` bool, True = hidden; ``count`` of them in each image.
    """
    patches = grid[0] * grid[1]
    step = max(1, _CHUNK_CELLS // (patches * max(1, rectangles // _WORD)))
    if len(key) > step:
        parts = zip(torch.split(key, step), torch.split(count, step), strict=True)
        return torch.cat([masks(k, n, grid, group_size, inside, rectangles) for k, n in parts])
    place = torch.arange(patches, device=key.device)
    rank = rng.words(key, rng.PATCH_SLOT, patches) & (2**20 - 1)
    if rectangles:
        rows, columns = _rectangles(key, rectangles, grid, group_size, inside)
        first = first_rectangle(rows, columns, *grid)
        rank = torch.where(first < rectangles, 0, rank)
        # Cutting the last group always from the same side would hide that side's corner more often.
        backwards = rng.words(key, rng.CUT_SLOT, 1) < 0
        place = torch.where(backwards, patches - 1 - place, place)
        rank = (first << 20) | rank
    order = (rank << 22) | place  # unique: 2^21 rectangles, 2^20 ranks, 2^22 places
    last = order.sort(1).values.gather(1, (count - 1).clamp(min=0)[:, None])
    return ((order <= last) & (count > 0)[:, None]).view(-1, *grid)
