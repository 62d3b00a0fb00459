"""The numbers of a few images, in Python's integers: what is hidden is one of them, a bit for each patch.

What :mod:`gmml_aug.groups` does for a batch takes some hundred tensor operations, whatever its size. For one image, as
a DataLoader's worker draws it, those cost many times more than the sequential loop that they replace. The results are
the same bits.
"""

from __future__ import annotations

from array import array
from functools import lru_cache

from . import rng

_LOW_32 = 2**32 - 1


def count(word: int, patches: int, ratio: tuple[float, float], p: float) -> int:
    """Return how many patches an image hides: :func:`gmml_aug.groups.counts` for one word."""
    if (word & _LOW_32) >= round(p * 2**32):
        return 0
    start, stop = round(ratio[0] * patches * 2**16), round(ratio[1] * patches * 2**16)
    exact = start + (((word >> 40) * (stop - start)) >> 24)
    number = (exact + 2**15) >> 16
    if exact & 0xFFFF == 2**15:
        number -= number % 2
    return min(max(number, round(ratio[0] * patches)), round(ratio[1] * patches))


@lru_cache(maxsize=64)
def _columns(most: int, width: int) -> list[int]:
    """Return the bits of columns of 0 to ``most`` patches on a grid of this width."""
    columns = [0]
    for row in range(most):
        columns.append(columns[-1] | 1 << row * width)
    return columns


@lru_cache(maxsize=4096)
def _row(group: int, size: int) -> array[int]:
    """Return a group's number as often as it is wide, not to be written to."""
    return array("i", [group]) * size


def _lowest(bits: int, number: int) -> int:
    """Return the lowest ``number`` of the bits that are set."""
    low, high = 0, bits.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (bits & ((1 << middle) - 1)).bit_count() < number:
            low = middle + 1
        else:
            high = middle
    return bits & ((1 << low) - 1)


def hide(
    key: int,
    count: int,
    backwards: bool,
    grid: tuple[int, int],
    group_size: tuple[tuple[int, int], tuple[int, int]],
    inside: bool,
    rectangles: int,
) -> array[int] | None:
    """Draw one image's groups: :func:`gmml_aug.groups.hide` for one key, one rectangle after another.

    Returns:
        The number of the group that hides each patch, row-major, -1 = visible; None where the rectangles are too few.
    """
    height, width = grid
    (least_height, most_height), (least_width, most_width) = group_size
    heights, widths = most_height - least_height + 1, most_width - least_width + 1
    # Places are those of the group's last row and column where it may hang over the border, else of its first.
    rows, columns = (height + 1, width + 1) if inside else (height - 1, width - 1)
    hidden, total, columns_of = 0, 0, _columns(most_height, width)
    drawn: list[tuple[int, int, int, int]] = []
    cut = 0
    z = key + (rng.RECTANGLE_SLOT - 1) * rng.GAMMA
    for _ in range(rectangles if count else 0):
        # rng.mix() twice, written out: a call costs as much as the mixing.
        z += 0x9E3779B97F4A7C15
        word = z & 0xFFFFFFFFFFFFFFFF
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 31
        size = least_height + ((word >> 32 ^ 0x80000000) * heights >> 32)
        if inside:
            top = (word & 0xFFFFFFFF) * (rows - size) >> 32
            bottom = top + size
        else:
            bottom = ((word & 0xFFFFFFFF) * (rows + size) >> 32) + 1
            top = bottom - size
            if top < 0:
                top = 0
            if bottom > height:
                bottom = height
        z += 0x9E3779B97F4A7C15
        word = z & 0xFFFFFFFFFFFFFFFF
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 31
        size = least_width + ((word >> 32 ^ 0x80000000) * widths >> 32)
        if inside:
            left = (word & 0xFFFFFFFF) * (columns - size) >> 32
            right = left + size
        else:
            right = ((word & 0xFFFFFFFF) * (columns + size) >> 32) + 1
            left = right - size
            if left < 0:
                left = 0
            if right > width:
                right = width
        drawn.append((top, bottom, left, right))
        group = columns_of[bottom - top] * ((1 << right - left) - 1) << top * width + left
        total = (hidden | group).bit_count()
        if total >= count:
            group &= ~hidden
            surplus = total - count
            # The last group loses its end, or its beginning.
            lowest = _lowest(group, surplus if backwards else group.bit_count() - surplus)
            cut = lowest if backwards else group & ~lowest
            break
        hidden |= group
    if total < count:
        return None
    groups = _row(-1, height * width)[:]
    for k in range(len(drawn) - 1, -1, -1):  # the first one that covers a patch is written last
        top, bottom, left, right = drawn[k]
        row, size = _row(k, right - left), right - left
        for begin in range(top * width + left, bottom * width + left, width):
            groups[begin : begin + size] = row
        while cut:
            place = cut.bit_length() - 1
            groups[place] = -1
            cut ^= 1 << place
    return groups
