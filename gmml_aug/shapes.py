"""Which groups may be drawn: rectangles of whole patches; how they cover the grid, and how many are needed.

Groups of connected patches are those of GMML (Atito, Awais and Kittler, arXiv 2205.14986, section 3.1): rectangles of
whole patches, overlaps allowed, one after another until the wanted share is hidden.
"""

from __future__ import annotations

import itertools
import math
import numbers
from functools import lru_cache

import torch
from torch import Tensor

from .grid import is_int

ENTRY = 7  # numbers in one entry of a table of sizes
WORD = 63  # rectangles are counted in steps of so many, the bits of an int64 without its sign


@lru_cache(maxsize=256)
def begins(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Return where, in units of 2^-32, the share of each weight begins."""
    ends = list(itertools.accumulate(weights))
    return (0, *(round(end / ends[-1] * 2**32) for end in ends[:-1]))


@lru_cache(maxsize=256)
def sizes_table(grid: tuple[int, ...], sizes: tuple[int, ...] | None, weights: tuple[float, ...]) -> tuple[int, ...]:
    """Return the sizes of groups as the backends read them: :data:`ENTRY` numbers for each entry.

    They are where the entry begins in units of 2^-32, then for slices, rows and columns the smallest size and how many
    there are to choose from: 0 for an axis that is covered from end to end. An image has one slice.

    Args:
        grid: its sides in patches.
        sizes: the lowest and the highest of each axis in turn, or of all alike if only two; None is the paper's, 1 up
            to 30 % of the side, at least 1. With weights: each size, axis after axis, 0 = all of the axis.
        weights: of these sizes; () for ranges.
    """
    if weights:
        each = [sizes[i : i + len(grid)] for i in range(0, len(sizes or ()), len(grid))] if sizes else []
        entries = [[(size, 1) if size else (side, 0) for side, size in zip(grid, one, strict=True)] for one in each]
    else:
        flat = sizes or tuple(end for side in grid for end in (1, max(1, side * 3 // 10)))
        flat *= len(grid) * 2 // len(flat)
        entries = [[(low, high - low + 1) for low, high in zip(flat[::2], flat[1::2], strict=True)]]
    table: list[int] = []
    for begin, entry in zip(begins(weights), entries, strict=True):
        table += [begin, *(1, 1) * (3 - len(grid)), *itertools.chain(*entry)]
    return tuple(table)


def block_sizes(
    grid: tuple[int, int], area: tuple[float, float] = (0.05, 0.3), aspect: tuple[float, float] = (0.3, 3.3)
) -> dict[tuple[int, int], int]:
    """Return how often BEiT's and DINOv2's blocks have each size on a grid, as ``GroupMask(group_size=)`` takes it.

    A block's area is uniform and the logarithm of its aspect ratio too; its sides are the square roots of their product
    and their quotient, rounded, and are drawn again where one is not below the grid's (Bao et al., arXiv
    2106.08254, algorithm 1). That makes the sides before rounding uniform over a region of the plane.

    Args:
        grid: (height, width) in patches.
        area: (low, high) of a block's area, as shares of the grid's.
        aspect: (low, high) of its height over its width.

    Returns:
        (height, width) of each size, and its weight.

    Raises:
        TypeError, ValueError: an argument is no pair, is out of range, or leaves no block.

    Example:
        >>> GroupMask(16, ratio=0.4, group_size=block_sizes((14, 14)))
    """
    for name, pair in (("grid", grid), ("area", area), ("aspect", aspect)):
        fits = is_int if name == "grid" else lambda n: isinstance(n, numbers.Real) and not isinstance(n, bool)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(fits, pair)):
            raise TypeError(f"{name} is a pair of {'ints' if name == 'grid' else 'numbers'}; got {pair!r}")
    if min(grid) < 1:
        raise ValueError(f"grid is (height, width) with at least 1 patch a side; got {tuple(grid)}")
    if not (0 < area[0] < area[1] <= 1 and 0 < aspect[0] < aspect[1] < math.inf):
        raise ValueError(
            "area is (low, high) in (0, 1], and aspect above 0, each with low below high; got "
            f"{tuple(area)} and {tuple(aspect)}; sizes of your own are a mapping, as {{(3, 3): 1}}"
        )
    rows, columns = map(int, grid)
    steps = 64  # of a height, within which widths are reckoned exactly
    height = (torch.arange(rows * steps, dtype=torch.float64, device="cpu")[:, None] + 0.5) / steps + 0.5
    width = torch.arange(1, columns, dtype=torch.float64, device="cpu")
    few, many = (share * rows * columns for share in area)
    low = torch.maximum(width - 0.5, torch.maximum(few / height, height / aspect[1]))
    high = torch.minimum(width + 0.5, torch.minimum(many / height, height / aspect[0]))
    share = (high - low).clamp(min=0).unflatten(0, (rows, steps)).mean(1)[: rows - 1]
    weights = (share * 2**20).round().to(torch.int64).tolist()
    found = {(h + 1, w + 1): n for h, line in enumerate(weights) for w, n in enumerate(line) if n}
    if not found:
        raise ValueError(f"no block of area {tuple(area)} and aspect {tuple(aspect)} lies within a grid of {grid}")
    return found


@lru_cache(maxsize=4096)
def _coverage(side: int, low: int, sizes: int, inside: bool) -> Tensor:
    """Return the probability that one group's extent covers each place of one axis: ``(side,)`` float64."""
    size = torch.arange(low, low + sizes, dtype=torch.float64, device="cpu")
    if not sizes:
        return torch.ones(side, dtype=torch.float64, device="cpu")
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
    grid: tuple[int, int, int], most: int, table: tuple[int, ...], inside: bool, limited: bool = False
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
    patches = math.prod(grid)
    if most == 0 or {number for i, number in enumerate(table) if i % ENTRY} == {1}:
        return 0
    most = min(most, patches - 1)  # an image that hides every patch needs no order
    stay, area = torch.ones(grid, dtype=torch.float64, device="cpu"), 0.0
    for entry, end in zip(range(0, len(table), ENTRY), (*table[ENTRY::ENTRY], 2**32), strict=True):
        weight, covered = (end - table[entry]) / 2**32, torch.ones((), dtype=torch.float64, device="cpu")
        mean = 1.0
        for axis, side in enumerate(grid):
            low, sizes = table[entry + 1 + 2 * axis : entry + 3 + 2 * axis]
            covered = covered[..., None] * _coverage(side, low, sizes, inside)
            mean *= low + max(sizes - 1, 0) / 2
        stay, area = stay - weight * covered, area + weight * mean
    share = (patches - most + 1) / patches
    if limited:
        share, stay = 1 / patches, stay.max()
    cells = max(1.0, patches / area)
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
