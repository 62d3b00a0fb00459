"""Which patches are hidden, and by which group: a sample's numbers -> its groups.

Pure functions, batched, in integer arithmetic alone.

Groups of connected patches are those of GMML (Atito, Awais and Kittler, arXiv 2205.14986, section 3.1): rectangles of
whole patches, overlaps allowed, one after another until the wanted share is hidden. Here all rectangles of all images
are drawn at once, and each patch takes the number of the first rectangle that covers it; hiding the first n patches in
the order of these numbers is what the loop would have done, with the last rectangle cut to reach n exactly.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import rng

WORD = 63  # rectangles that share an int64, one bit each; the sign bit stays free
_CPU_CELLS = 2**17  # int64 cells that one step of a batch may use on a CPU: its tensors then stay in the caches
_CELLS = 2**22  # the same elsewhere, a limit on memory


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

    Running out would still hide the exact count (see :func:`hide`). No rectangle is needed where each patch is a
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
    return -(-high // WORD) * WORD


def counts(word: Tensor, patches: int, ratio: tuple[float, float], p: float) -> Tensor:
    """Return how many patches each image hides: round(ratio * patches), half to even; 0 where p leaves it alone.

    Args:
        word: ``(B,)`` int64, random.
        patches: how many an image has.
        ratio: (low, high) of the uniform distribution of each image's ratio.
        p: probability that an image is corrupted.

    Returns:
        ``(B,)`` int64.
    """
    low, high = round(ratio[0] * patches), round(ratio[1] * patches)
    if low == high and p == 1:
        return torch.full_like(word, low)
    for_ratio, for_p = rng.halves(word)
    # ratio * patches in units of 2^-16; 24 bits of the draw, so that the product stays below 2^63.
    start, stop = round(ratio[0] * patches * 2**16), round(ratio[1] * patches * 2**16)
    exact = start + (((for_ratio >> 8) * (stop - start)) >> 24)
    count = (exact + 2**15) >> 16
    tie = (exact & 0xFFFF) == 2**15
    count = (count - (tie & (count % 2 == 1)).to(torch.int64)).clamp(low, high)
    return torch.where(for_p < round(p * 2**32), count, 0)


class _Spans(NamedTuple):
    """What is the same for every image, by rectangle and axis: ``(2 K,)`` int64 each, rows and columns in turn.

    An axis of n patches has n + 1 cells, the last one for spans that end with the grid; the cells of the rows, then of
    the columns, follow each other, and those of the next 63 rectangles follow these.
    """

    sizes: Tensor  # how many a group's side has to choose from
    smallest: Tensor  # the smallest size, and half of `sizes` for a signed draw, in units of 2^-32
    bound: Tensor  # how many places there are, without the group's size
    begin: Tensor  # the first cell of the axis
    end: Tensor  # its last one
    bit: Tensor
    unset: Tensor


@lru_cache(maxsize=64)
def _spans(
    number: int,
    grid: tuple[int, int],
    group_size: tuple[tuple[int, int], tuple[int, int]],
    inside: bool,
    device: torch.device,
) -> _Spans:
    def by_axis(rows: int, columns: int) -> Tensor:
        return torch.tensor([rows, columns], device="cpu").expand(number, 2)

    k = torch.arange(number, device="cpu")[:, None]
    sizes = by_axis(*(high - low + 1 for low, high in group_size))
    smallest = by_axis(*(low << 32 for low, _ in group_size)) + sizes * 2**31
    bound = by_axis(*(side + 1 if inside else side - 1 for side in grid))
    begin = k // WORD * (grid[0] + grid[1] + 2) + by_axis(0, grid[0] + 1)
    bit = (torch.ones_like(k) << k % WORD).expand(number, 2)
    fields = (sizes, smallest, bound, begin, begin + by_axis(*grid), bit, -bit)
    return _Spans(*(field.reshape(-1).to(device, non_blocking=True) for field in fields))


def _bit_sets(
    key: Tensor,
    grid: tuple[int, int],
    group_size: tuple[tuple[int, int], tuple[int, int]],
    inside: bool,
    rectangles: int,
) -> tuple[Tensor, Tensor]:
    """Draw the rectangles: which of them cover each row and each column, as bits: ``(B, K / 63, side)`` int64."""
    spans = _spans(rectangles, grid, group_size, inside, key.device)
    word = rng.words(key, rng.RECTANGLE_SLOT, 2 * rectangles)
    size = (word >> 32).mul_(spans.sizes).add_(spans.smallest).bitwise_right_shift_(32)  # the upper half, signed
    place = word.bitwise_and_(2**32 - 1)
    if inside:
        first = place.mul_(spans.bound - size).bitwise_right_shift_(32).add_(spans.begin)
        last = first + size
    else:
        # Every place at which at least one patch lies on the grid is as likely as any other, so a group of this size
        # covers each patch equally often: nothing starves at the border.
        last = place.mul_(spans.bound + size).bitwise_right_shift_(32).add_(spans.begin).add_(1)
        first = torch.maximum(last - size, spans.begin)
        last = torch.minimum(last, spans.end)
    # A span adds its bit where it begins and takes it away where it ends, so a running sum holds it in between. Every
    # span has a bit of its own, therefore nothing carries.
    cells = grid[0] + grid[1] + 2
    steps = word.new_zeros(len(key), rectangles // WORD * cells)
    steps.scatter_add_(1, first, spans.bit.expand_as(first)).scatter_add_(1, last, spans.unset.expand_as(last))
    sets = steps.view(len(key), rectangles // WORD, cells).cumsum(2)
    return sets[..., : grid[0]], sets[..., grid[0] + 1 : -1]


def _first(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the number of the first rectangle that covers each patch.

    Args:
        rows: which of the K rectangles cover each row, ``(B, K / 63, height)`` int64.
        columns: the same across, ``(B, K / 63, width)``.

    Returns:
        ``(B, height * width)`` int32, row-major; K where no rectangle covers the patch.
    """
    covering = rows[..., :, None] & columns[..., None, :]
    covering &= -covering  # the lowest bit
    # A power of two is exact in float32, and its exponent is the number of the bit; without one it is -127.
    bit = covering.to(torch.float32).view(torch.int32)
    bit.bitwise_right_shift_(23).sub_(127).bitwise_and_(2**30 - 1)
    words = bit.shape[1]
    if words > 1:
        bit = bit.add_(torch.arange(words, device=bit.device, dtype=torch.int32)[:, None, None] * WORD).amin(
            1, keepdim=True
        )
    return bit.clamp_(max=words * WORD).flatten(1)


def _random(key: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """Choose ``count`` ``(B, 1)`` of the patches ``among`` ``(B, patches)`` bool at random."""
    patches = among.shape[1]
    rank = rng.words(key, rng.PATCH_SLOT, patches).bitwise_and_(2**20 - 1)
    order = (rank << 22).add_(torch.arange(patches, device=key.device))  # unique: 2^22 places
    order.masked_fill_(~among, 2**63 - 1)
    at = (count - 1).clamp(min=0)
    if key.device.type == "cpu" and len(at) and bool((at == at[0]).all()):
        last = order.kthvalue(int(at[0]) + 1, dim=1, keepdim=True).values  # selects, which is less work than sorting
    else:
        last = order.sort(1).values.gather(1, at)
    return (order <= last).logical_and_(count > 0)


def _alone(rectangles: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the numbers of patches that are groups of their own: those after the rectangles', row-major."""
    return torch.arange(rectangles, rectangles + grid[0] * grid[1], dtype=torch.int32, device=device)


def _draw(
    key: Tensor,
    count: Tensor,
    backwards: Tensor,
    grid: tuple[int, int],
    group_size: tuple[tuple[int, int], tuple[int, int]],
    inside: bool,
    rectangles: int,
) -> tuple[Tensor, Tensor]:
    """Return each patch's group ``(B, patches)``, and whether the rectangles were too few ``(B, 1)``."""
    group = _first(*_bit_sets(key, grid, group_size, inside, rectangles))
    first = group.to(torch.int64)
    # How many patches each rectangle adds, and the one with which the count is reached.
    adds = first.new_zeros(len(key), rectangles + 1)
    adds.scatter_add_(1, first, first.new_ones(()).expand_as(first))
    total = adds.cumsum(1)
    last = torch.searchsorted(total, count)
    whole = adds.gather(1, last)
    rest = count - total.gather(1, last) + whole
    # Of the last one `rest` patches are hidden, from its beginning or its end.
    rank = (first == last).cumsum(1)
    rank.mul_(1 - 2 * backwards.to(torch.int64)).add_((whole + 1) * backwards)
    ran_out = last == rectangles
    hidden = rank.add_(first, alpha=2**23) <= last * 2**23 + rest  # a rank is at most 2^22
    if key.device.type != "cpu" or bool(ran_out.any()):
        uncovered = first == rectangles
        hidden = torch.where(ran_out, ~uncovered | _random(key, rest, uncovered), hidden)
        group = torch.where(uncovered, _alone(rectangles, grid, key.device), group)
    return torch.where(hidden, group, -1), ran_out


def hide(
    key: Tensor,
    count: Tensor,
    backwards: Tensor,
    grid: tuple[int, int],
    group_size: tuple[tuple[int, int], tuple[int, int]],
    inside: bool,
    rectangles: int,
) -> Tensor:
    """Draw which patches are hidden, and by which group.

    Args:
        key: ``(B,)`` int64, one for each image.
        count: ``(B,)`` int64, how many patches each image hides.
        backwards: ``(B,)`` bool, which images have their last group cut from its beginning rather than from its end:
            cutting always from the same side would hide that side's corner less often.
        grid: (height, width) in patches.
        group_size: (smallest, largest) height of a group and the same for its width, in patches.
        inside: groups lie wholly on the grid, rather than hanging over its border.
        rectangles: how many to draw, a multiple of 63. Patches that none covers come last, in random order: with
            too few rectangles the count is still exact and no patch is preferred, and with none this is the random
            masking of single patches.

    Returns:
        ``(B, height, width)`` int32: the number of the rectangle that hides each patch, the first of those that cover
        it; ``rectangles`` + the row-major place for a patch that is hidden by itself; -1 for those that stay visible,
        all but ``count`` in each image.
    """
    patches = grid[0] * grid[1]
    on_cpu = key.device.type == "cpu"
    # On a CPU fewer are drawn first: they are nearly always enough, and where not, another try changes nothing else.
    number = -(-rectangles * 2 // (5 * WORD)) * WORD if on_cpu else rectangles
    cells = len(key) * max(patches * max(1, number // WORD), 2 * number)
    parts = -(-cells // (_CPU_CELLS if on_cpu else _CELLS))
    if parts > 1 and len(key) > 1:
        pieces = zip(key.tensor_split(parts), count.tensor_split(parts), backwards.tensor_split(parts), strict=True)
        return torch.cat([hide(k, n, b, grid, group_size, inside, rectangles) for k, n, b in pieces if len(k)])
    count, backwards = count[:, None], backwards[:, None]
    if not rectangles:
        among = torch.ones((), dtype=torch.bool, device=key.device).expand(len(key), patches)
        group = torch.where(_random(key, count, among), _alone(0, grid, key.device), -1)
    else:
        group, ran_out = _draw(key, count, backwards, grid, group_size, inside, number)
        if number < rectangles and len(again := ran_out.nonzero()[:, 0]):
            group[again] = _draw(key[again], count[again], backwards[again], grid, group_size, inside, rectangles)[0]
    return group.view(-1, *grid)
