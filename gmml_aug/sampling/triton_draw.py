"""The same bits on CUDA, in Triton: one launch draws a batch. The steps are those of the sequential definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ..plan import MaskPlan, Settings
from ..shapes import ENTRY
from . import Samples, numbers_on

_MOST_PATCHES = 2**14  # what one program holds in registers

_GAMMA, _MUL_1, _MUL_2 = (tl.constexpr(number) for number in (rng.GAMMA, rng.MUL_1, rng.MUL_2))
_COUNT, _FILL, _CUT, _RECTANGLE, _PATCH = (
    tl.constexpr(slot) for slot in (rng.COUNT_SLOT, rng.FILL_SLOT, rng.CUT_SLOT, rng.RECTANGLE_SLOT, rng.PATCH_SLOT)
)
_ENTRY = tl.constexpr(ENTRY)
_LOW = tl.constexpr(0xFFFFFFFF)
_TOP = tl.constexpr(0x80000000)


@triton.jit
def word_of(key, slot):
    z = key + slot.to(tl.uint64) * _GAMMA
    z = (z ^ (z >> 30)) * _MUL_1
    z = (z ^ (z >> 27)) * _MUL_2
    return z ^ (z >> 31)


@triton.jit
def _span(word, size_ptr, side, INSIDE: tl.constexpr):
    low, sizes = tl.load(size_ptr).to(tl.int32), tl.load(size_ptr + 1).to(tl.int32)
    size = low + ((((word >> 32) ^ _TOP) * sizes.to(tl.uint64)) >> 32).to(tl.int32)
    place = tl.where(sizes == 0, _TOP, word & _LOW)  # from end to end: the middle one of all places
    if INSIDE:
        first = ((place * (side + 1 - size).to(tl.uint64)) >> 32).to(tl.int32)
        last = first + size
    else:
        last = ((place * (side - 1 + size).to(tl.uint64)) >> 32).to(tl.int32) + 1
        first = last - size
    return first, last


@triton.jit(
    do_not_specialize=[
        "root", "sample", "batch", "start", "stop", "least", "most", "p", "rectangles", "entries",
    ]
)  # fmt: skip
def _draw_kernel(
    mask_ptr, fill_ptr, donor_ptr, key_ptr, group_ptr, root_ptr, sample_ptr, share_ptr, valid_ptr, limit_ptr, table_ptr,
    root, sample, batch, start, stop, least, most, p, rectangles, entries, STEPS: tl.constexpr, DEPTH: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SHARES: tl.constexpr, INSIDE: tl.constexpr, INVERT: tl.constexpr, ROOT:
    tl.constexpr, SAMPLE: tl.constexpr, LIMITED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    if ROOT:  # on the device
        root = tl.load(root_ptr)
    if SAMPLE == 2:  # named one by one
        sample = tl.load(sample_ptr + image)
    else:
        if SAMPLE == 1:  # counted on the device
            sample = tl.load(sample_ptr)
        sample = sample.to(tl.int64) + image
    zero = sample.to(tl.uint64) * 0
    key = word_of(root.to(tl.uint64), sample)
    tl.store(key_ptr + image, key.to(tl.int64))

    word = word_of(key, zero + _FILL)
    fill = zero.to(tl.int64)
    for i in tl.static_range(SHARES):
        fill += ((word >> 32).to(tl.int64) >= tl.load(share_ptr + i)).to(tl.int64)
    tl.store(fill_ptr + image, fill)
    other = (((word & _LOW) * (batch - 1).to(tl.uint64)) >> 32).to(tl.int64)
    tl.store(donor_ptr + image, tl.where(batch > 1, (image + 1 + other) % batch, -1))

    place = tl.arange(0, BLOCK)
    sheet, row, column = place // (HEIGHT * WIDTH), place // WIDTH % HEIGHT, place % WIDTH
    begin = image.to(tl.int64) * (DEPTH * HEIGHT * WIDTH)
    grid = place < DEPTH * HEIGHT * WIDTH
    allowed = grid
    if LIMITED:
        allowed = tl.load(valid_ptr + begin + place, mask=allowed, other=0).to(tl.int32) != 0
        start, stop = tl.load(limit_ptr + 4 * image), tl.load(limit_ptr + 4 * image + 1)
        least, most = tl.load(limit_ptr + 4 * image + 2), tl.load(limit_ptr + 4 * image + 3)
    word = word_of(key, zero + _COUNT)
    exact = start + (((word >> 40).to(tl.int64) * (stop - start)) >> 24)
    count = (exact + 0x8000) >> 16
    count -= ((exact & 0xFFFF) == 0x8000).to(tl.int64) * (count & 1)
    count = tl.minimum(tl.maximum(count, least), most)
    count = tl.where((word & _LOW).to(tl.int64) < p, count, 0).to(tl.int32)

    asked = count
    if INVERT:  # what the groups cover stays visible
        count = tl.where(count > 0, tl.sum(allowed.to(tl.int32), 0) - count, 0)
    hidden = place < 0
    new = place < 0
    group = place * 0 - 1
    added = count * 0
    total = count * 0
    k = count * 0
    while (total < count) & (k < rectangles):
        hidden = hidden | new
        axes: tl.constexpr = 2 if DEPTH == 1 else 3
        slot = axes * k + _RECTANGLE
        sizes = table_ptr
        if STEPS:  # halve the table as often as it takes
            draw, entry = (word_of(key, slot) >> 32).to(tl.int64), k * 0
            for i in tl.static_range(STEPS):
                further = entry + (1 << (STEPS - 1 - i))
                bound = tl.load(table_ptr + further * _ENTRY, mask=further < entries, other=0x100000000)
                entry = tl.where(bound <= draw, further, entry)
            sizes += entry * _ENTRY
        top, bottom = _span(word_of(key, slot + axes - 2), sizes + 3, HEIGHT, INSIDE)
        left, right = _span(word_of(key, slot + axes - 1), sizes + 5, WIDTH, INSIDE)
        new = (row >= top) & (row < bottom) & (column >= left) & (column < right) & allowed & (hidden == 0)
        if DEPTH > 1:
            front, back = _span(word_of(key, slot), sizes + 1, DEPTH, INSIDE)
            new = new & (sheet >= front) & (sheet < back)
        group = tl.where(new, k, group)
        added = tl.sum(new.to(tl.int32), 0)
        total += added
        k += 1
    # The last group is cut at its end, or at its beginning.
    surplus = tl.maximum(total - count, 0)
    rank = tl.cumsum(new.to(tl.int32), 0)
    backwards = word_of(key, zero + _CUT) >= 0x8000000000000000
    hidden = hidden | (new & tl.where(backwards, rank > surplus, rank <= added - surplus))
    if total < count:
        # The rest at random: the smallest of the orders that are left, found bit by bit from above.
        order = (word_of(key, place.to(tl.int64) + _PATCH) & 0xFFFFF).to(tl.int64) << 22 | place
        order = tl.where((hidden == 0) & allowed, order, 0x7FFFFFFFFFFFFFFF)
        last = zero.to(tl.int64)
        bit = last + (1 << 41)
        for _ in range(42):
            smaller = tl.sum((order < (last | bit)).to(tl.int32), 0)
            last = tl.where(smaller < count - total, last | bit, last)
            bit = bit >> 1
        group = tl.where(order <= last, rectangles + place, group)
        hidden = hidden | (order <= last)
    if INVERT:
        hidden = allowed & (hidden == 0) & (asked > 0)
        group = place * 0
    tl.store(mask_ptr + begin + place, hidden, mask=grid)
    tl.store(group_ptr + begin + place, tl.where(hidden, group, -1), mask=grid)


def supported(device: torch.device) -> bool:
    """Tell whether kernels run there: on compute capability 8.0 or more, with Triton 3.3 or newer; or interpreted."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):  # older ones were not tried
        return False
    return device.type != "cuda" or (not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0))


def takes(root: int | Tensor, samples: Samples, settings: Settings) -> bool:
    """Tell whether the device runs kernels and a program can hold the grid."""
    return supported(samples.device) and settings.numbers().patches <= _MOST_PATCHES


def draw(root: int | Tensor, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch; see :mod:`gmml_aug.sampling`."""
    n, shares, plan = settings.numbers(), settings.shares(), samples.empty(settings.grid)
    if not samples.number:
        return plan
    mask, table = plan.mask, numbers_on(settings.table(), plan.mask.device)
    entries, block = len(table) // ENTRY, triton.next_power_of_2(n.patches)
    sample = samples.first if samples.named is None else samples.named.contiguous()
    valid = mask if samples.valid is None else samples.valid
    limits = mask if samples.valid is None else settings.limits(samples.valid)
    with torch.cuda.device_of(mask):
        _draw_kernel[(samples.number,)](
            mask, plan.fill, plan.donor, plan.key, plan.group, root if isinstance(root, Tensor) else mask, sample if
            isinstance(sample, Tensor) else mask, numbers_on(shares, mask.device), valid, limits, table, 0 if
            isinstance(root, Tensor) else root, 0 if isinstance(sample, Tensor) else sample, samples.number, n.start,
            n.stop, n.least, n.most, n.p, n.rectangles, entries, STEPS=(entries - 1).bit_length(), DEPTH=n.depth,
            HEIGHT=n.rows, WIDTH=n.columns, SHARES=len(shares), INSIDE=bool(n.inside), INVERT=bool(n.invert),
            ROOT=isinstance(root, Tensor), SAMPLE=2 if samples.named is not None else int(isinstance(sample, Tensor)),
            LIMITED=samples.valid is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return plan
