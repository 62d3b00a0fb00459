"""The definition of what is drawn: one image after another, and in it one group after another. CPU.

The functions above :func:`draw` work on flat buffers and whole numbers alone, so that Numba compiles the same source
(`compiled.py`): what this module draws in Python is what it draws compiled.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence, Sequence
from typing import Any

import torch

from ..plan import MaskPlan, Numbers, Settings
from ..rng import COUNT_SLOT, CUT_SLOT, FILL_SLOT, PATCH_SLOT, RECTANGLE_SLOT, word
from ..shapes import ENTRY
from . import Samples

_MOST_PATCHES = 2**14  # of a call: beyond, tensor operations cost less than Python's integers


def halves(key: int, slot: int) -> tuple[int, int]:
    """Return the word of a slot as two independent numbers of 32 bits."""
    z = word(key, slot)
    return z >> 32, z & 0xFFFFFFFF


def span(key: int, slot: int, low: int, sizes: int, side: int, inside: int) -> tuple[int, int]:
    """Return the first row of a group and the one after its last, or its columns or slices, clipped to the grid."""
    if sizes == 0:
        return 0, side
    for_size, for_place = halves(key, slot)
    size = low + ((for_size ^ 0x80000000) * sizes >> 32)
    # Unless it lies inside, every place at which at least one patch lies on the grid is as likely as any other.
    first = for_place * (side + 1 - size) >> 32 if inside else (for_place * (side - 1 + size) >> 32) + 1 - size
    return max(first, 0), min(first + size, side)


def entry(draw: int, table: Sequence[int]) -> int:
    """Return where in a table of sizes the entry begins that a number of 32 bits chooses."""
    low, high = 0, len(table) // ENTRY
    while high - low > 1:
        middle = (low + high) // 2
        if table[middle * ENTRY] <= draw:
            low = middle
        else:
            high = middle
    return low * ENTRY


def count(key: int, n: Numbers, limits: Sequence[int], image: int) -> int:
    """Return how many patches an image hides: round(ratio * patches), half to even; 0 where p leaves it alone."""
    start, stop, least, most = n.start, n.stop, n.least, n.most
    if len(limits) > 0:
        i = 4 * image
        start, stop, least, most = limits[i], limits[i + 1], limits[i + 2], limits[i + 3]
    for_ratio, for_p = halves(key, COUNT_SLOT)
    if for_p >= n.p:
        return 0
    exact = start + ((for_ratio >> 8) * (stop - start) >> 24)
    number = (exact + 0x8000) >> 16
    if exact & 0xFFFF == 0x8000:
        number -= number & 1
    return min(max(number, least), most)


def cutoff(order: Sequence[int], length: int, number: int) -> int:
    """Return a number below which lie exactly ``number`` of the first ``length``, all different and of 42 bits."""
    found = 0
    for bit in range(42, -1, -1):
        middle, below = found | 1 << bit, 0
        for i in range(length):
            below += order[i] < middle
        if below <= number:
            found = middle
        if below == number:  # after some 9 of 43 steps, for 196 patches
            break
    return found


def hide(
    key: int,
    n: Numbers,
    table: Sequence[int],
    limits: Sequence[int],
    valid: Sequence[int],
    image: int,
    group: MutableSequence[int],
    order: MutableSequence[int],
) -> None:
    """Write which group hides each patch of one image, over -1, which stays where a patch is visible."""
    depth, height, width, wide = n.depth, n.rows, n.columns, n.wide
    left, k, patches, axes, inside = count(key, n, limits, image), 0, n.patches, n.axes, n.inside
    slices, rows, columns = (table[1], table[2]), (table[3], table[4]), (table[5], table[6])
    total, invert = patches, n.invert > 0 and left > 0
    limited = patches if len(valid) > 0 else 0
    for place in range(limited):
        if not valid[image * patches + place]:
            group[place] = -2  # until the end, so that no group takes it
            total -= 1
    if invert:  # what the groups cover stays visible
        left = total - left
    while left > 0 and k < n.rectangles:
        slot, front, back = RECTANGLE_SLOT + axes * k, 0, 1
        if len(table) > ENTRY:
            e = entry(halves(key, slot)[0], table)
            slices, rows = (table[e + 1], table[e + 2]), (table[e + 3], table[e + 4])
            columns = (table[e + 5], table[e + 6])
        if axes == 3:
            front, back = span(key, slot, slices[0], slices[1], depth, inside)
            slot += 1
        top, bottom = span(key, slot, rows[0], rows[1], height, inside)
        first, last = span(key, slot + 1, columns[0], columns[1], width, inside)
        # As many columns whatever the group's width, and no branch on a patch: a processor that guesses wrong half of
        # the time loses a quarter of it (14x14, half hidden, compiled: 1.06 us a mask instead of 1.39). And a row by
        # itself, so that its indices are seen to need no check of their sign (1.25 us, not 1.62, on a slower one).
        edge = min(first, width - wide)
        first, last = first - edge, last - edge
        for sheet in range(front, back):
            for line in range(sheet * height + top, sheet * height + bottom):
                row = group[line * width + edge : line * width + edge + wide]
                for i in range(wide):
                    new = (row[i] == -1) & (i >= first) & (i < last)
                    row[i] = k if new else row[i]  # a patch belongs to the first that covers it
                    left -= new
        if left < 0:  # the last group is cut, at its beginning or at its end
            backwards = halves(key, CUT_SLOT)[0] >> 31
            place = (front * height + top) * width if backwards else ((back - 1) * height + bottom) * width - 1
            while left < 0:
                if group[place] == k:
                    group[place] = -1
                    left += 1
                place += 1 if backwards else -1
        k += 1
    if left > 0:  # no group covers the rest, so patches are hidden by themselves, at random
        length = 0
        for place in range(patches):
            order[length] = halves(key, PATCH_SLOT + place)[1] % 2**20 << 22 | place
            length += group[place] == -1
        bound = cutoff(order, length, left)
        for i in range(length):
            place = order[i] & 0x3FFFFF
            group[place] = n.rectangles + place if order[i] < bound else -1
    for place in range(patches if invert else limited):
        if invert:
            group[place] = 0 if group[place] == -1 else -1
        elif group[place] < 0:
            group[place] = -1


def draw_images(
    root: int,
    first: int,
    index: Sequence[int],
    begin: int,
    end: int,
    batch: int,
    n: Numbers,
    shares: Sequence[int],
    table: Sequence[int],
    limits: Sequence[int],
    valid: Sequence[int],
    fills: MutableSequence[int],
    donors: MutableSequence[int],
    keys: MutableSequence[int],
    group: MutableSequence[int],
    order: MutableSequence[int],
) -> None:
    """Draw the images ``begin`` to ``end - 1``: their fills, donors and keys, and their groups over -1."""
    for i in range(begin, end):
        sample = index[i] if len(index) > 0 else first + i
        key = word(root, sample)
        keys[i] = key
        for_fill, for_donor = halves(key, FILL_SLOT)
        fill = 0
        for share in shares:
            if for_fill >= share:
                fill += 1
        fills[i] = fill
        donors[i] = (i + 1 + (for_donor * (batch - 1) >> 32)) % batch if batch > 1 else -1
        here = slice(i * n.patches, (i + 1) * n.patches)
        hide(key, n, table, limits, valid, i, group[here], order)


def takes(root: object, samples: Samples, settings: Settings) -> bool:
    """Tell whether the call is small enough for Python's integers."""
    n = settings.numbers()
    return 0 < samples.number * n.patches <= _MOST_PATCHES and (n.rectangles > 0 or n.most == 0)


def draw(root: int, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch; see :mod:`gmml_aug.sampling`."""
    n, batch = settings.numbers(), samples.number
    patches = n.patches
    fills, donors, keys = array("q", [0]) * batch, array("q", [0]) * batch, array("Q", [0]) * batch
    group = array("i", [-1]) * (batch * patches)
    order = array("q", [0]) * patches
    index = [] if samples.named is None else samples.named.tolist()
    valid = [] if samples.valid is None else samples.valid.view(-1).tolist()
    limits = [] if samples.valid is None else settings.limits(samples.valid).view(-1).tolist()
    groups: Any = memoryview(group)  # whose slices share its memory
    first: Any = samples.first  # a number, on the CPU
    asked = n, settings.shares(), settings.table(), limits, valid
    draw_images(root, first, index, 0, batch, batch, *asked, fills, donors, keys, groups, order)
    fill, donor, key = (
        torch.frombuffer(field, dtype=torch.int64).view(samples.batch) for field in (fills, donors, keys)
    )
    drawn = torch.frombuffer(group, dtype=torch.int32).view(*samples.batch, *settings.grid)
    return MaskPlan(drawn >= 0, fill, donor, key, drawn)
