"""Which groups may be drawn: rectangles of whole patches; how they cover the grid, and how many are needed.

Groups of connected patches are those of GMML (Atito, Awais and Kittler, arXiv 2205.14986, section 3.1): rectangles of
whole patches, overlaps allowed, one after another until the wanted share is hidden.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

WORD = 63  # rectangles are counted in steps of so many, the bits of an int64 without its sign


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
    size = torch.arange(sizes[0], sizes[1] + 1, dtype=torch.float64, device="cpu")
    if not inside:
        return (size / (side + size - 1)).mean().expand(side)
    # A group of this size covers a place from as many starts as its size, the places on either side and the starts
    # allow, whichever is fewest; each start is as likely. Sums over the sizes, by where the fewest changes.
    starts = side - size + 1
    fewest = torch.minimum(size, starts).long()
    limited = torch.bincount(fewest, fewest / starts, minlength=side + 1).cumsum(0)
    free = (1 / starts).sum() - torch.bincount(fewest, 1 / starts, minlength=side + 1).cumsum(0)
    near = torch.arange(1, side + 1, device="cpu")
    near = torch.minimum(near, near.flip(0))
    return (limited + torch.arange(side + 1, device="cpu") * free)[near] / len(size)


@lru_cache(maxsize=4096)
def rectangles_needed(
    grid: tuple[int, int],
    most: int,
    heights: tuple[int, int],
    widths: tuple[int, int],
    inside: bool,
    limited: bool = False,
) -> int:
    """Return how many rectangles to draw so that they practically never run out before ``most`` patches are hidden.

    After K rectangles a patch with coverage probability q is still visible with probability (1 - q)^K; call the mean
    of that over the grid b. Running out means that more than a = 1 - (most - 1) / N of the patches are visible. Two
    estimates of its probability, and the smaller K for which one of them is below 1e-9 is taken:

    - Markov's inequality, N b / (N a): rigorous, and the better one for the last few patches of a high ratio;
    - Chernoff's bound for a binomial of N / (mean group area) independent cells, exp(-cells KL(a || b)): a group
      decides about its whole area at once, so that many patches are about as good as independent. Measured against
      200,000 images for each of 49 settings (once, by hand), it asks for 1.5 to 10 times what the slowest image needed.

    Where only some patches may be hidden, whichever these are, the first bound is taken for the least covered patch.

    Running out would still hide the exact count: the rest is drawn at random. No rectangle is needed where each patch
    is a group of its own, or where no patch is hidden.
    """
    rows, columns = grid
    patches = rows * columns
    if most == 0 or (heights, widths) == ((1, 1), (1, 1)):
        return 0
    most = min(most, patches - 1)  # an image that hides every patch needs no order
    stay = 1 - _coverage(rows, heights, inside)[:, None] * _coverage(columns, widths, inside)
    share = (patches - most + 1) / patches
    if limited:
        share, stay = 1 / patches, stay.max()
    cells = max(1.0, patches / (sum(heights) * sum(widths) / 4))
    wanted = math.log(1e9)

    def enough(rectangles: int) -> bool:
        visible = float((stay**rectangles).mean())
        if visible >= share:
            return False
        if visible == 0 or math.log(share / visible) >= wanted:
            return True
        if limited:
            return False
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
    return -(-high // WORD) * WORD
