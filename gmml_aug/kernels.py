"""The same numbers and the same pixels on CUDA, in Triton: one launch draws, one writes.

Everything is integer arithmetic or a copy, so the bits are those of the functions for other devices: `groups`, `rng`
and `write`, which say what the steps mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rng

if TYPE_CHECKING:
    from .plan import Drawn, MaskPlan, Settings

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):  # older ones were not tried
    raise ImportError(f"the kernels take Triton 3.3 or newer; this is {triton.__version__}")

MOST_PATCHES = 2**14  # what one program holds in registers
LEAST_PIXELS = 32  # of a patch and all its channels: below, a program has too little to do
MOST_IMAGES = 2**12  # of a batch that gives aliens to itself in place
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_ZEROS, _NOISE, _ALIEN, _SHUFFLE = 0, 1, 2, 3  # kinds of fills

_GAMMA, _MUL_1, _MUL_2 = (tl.constexpr(number) for number in (rng.GAMMA, rng.MUL_1, rng.MUL_2))
_COUNT, _FILL, _CUT, _RECTANGLE, _PATCH, _NOISE_SLOT = (
    tl.constexpr(slot)
    for slot in (rng.COUNT_SLOT, rng.FILL_SLOT, rng.CUT_SLOT, rng.RECTANGLE_SLOT, rng.PATCH_SLOT, rng.NOISE_SLOT)
)
_LOW = tl.constexpr(0xFFFFFFFF)
_TOP = tl.constexpr(0x80000000)


@triton.jit
def _word(key, slot):
    z = key + slot.to(tl.uint64) * _GAMMA
    z = (z ^ (z >> 30)) * _MUL_1
    z = (z ^ (z >> 27)) * _MUL_2
    return z ^ (z >> 31)


@triton.jit
def _span(word, low, sizes, side, INSIDE: tl.constexpr):
    size = low + ((((word >> 32) ^ _TOP) * sizes.to(tl.uint64)) >> 32).to(tl.int32)
    if INSIDE:
        first = (((word & _LOW) * (side + 1 - size).to(tl.uint64)) >> 32).to(tl.int32)
        last = first + size
    else:
        last = (((word & _LOW) * (side - 1 + size).to(tl.uint64)) >> 32).to(tl.int32) + 1
        first = last - size
    return first, last


@triton.jit(
    do_not_specialize=[
        "root",
        "sample",
        "batch",
        "start",
        "stop",
        "least",
        "most",
        "p",
        "low_height",
        "heights",
        "low_width",
        "widths",
        "rectangles",
    ]
)
def _draw_kernel(
    mask_ptr,
    fill_ptr,
    donor_ptr,
    key_ptr,
    group_ptr,
    root_ptr,
    sample_ptr,
    share_ptr,
    root,
    sample,
    batch,
    start,
    stop,
    least,
    most,
    p,
    low_height,
    heights,
    low_width,
    widths,
    rectangles,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SHARES: tl.constexpr,
    INSIDE: tl.constexpr,
    ROOT: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
    key = _word(root.to(tl.uint64), sample)
    tl.store(key_ptr + image, key.to(tl.int64))

    word = _word(key, zero + _FILL)
    fill = zero.to(tl.int64)
    for i in tl.static_range(SHARES):
        fill += ((word >> 32).to(tl.int64) >= tl.load(share_ptr + i)).to(tl.int64)
    tl.store(fill_ptr + image, fill)
    other = (((word & _LOW) * (batch - 1).to(tl.uint64)) >> 32).to(tl.int64)
    tl.store(donor_ptr + image, tl.where(batch > 1, (image + 1 + other) % batch, -1))

    word = _word(key, zero + _COUNT)
    exact = start + (((word >> 40).to(tl.int64) * (stop - start)) >> 24)
    count = (exact + 0x8000) >> 16
    count -= ((exact & 0xFFFF) == 0x8000).to(tl.int64) * (count & 1)
    count = tl.minimum(tl.maximum(count, least), most)
    count = tl.where((word & _LOW).to(tl.int64) < p, count, 0).to(tl.int32)

    place = tl.arange(0, BLOCK)
    row, column = place // WIDTH, place % WIDTH
    hidden = place < 0
    new = place < 0
    group = place * 0 - 1
    added = count * 0
    total = count * 0
    k = count * 0
    while (total < count) & (k < rectangles):
        hidden = hidden | new
        top, bottom = _span(_word(key, 2 * k + _RECTANGLE), low_height, heights, HEIGHT, INSIDE)
        left, right = _span(_word(key, 2 * k + 1 + _RECTANGLE), low_width, widths, WIDTH, INSIDE)
        new = (row >= top) & (row < bottom) & (row < HEIGHT) & (column >= left) & (column < right) & (hidden == 0)
        group = tl.where(new, k, group)
        added = tl.sum(new.to(tl.int32), 0)
        total += added
        k += 1
    # The last group is cut at its end, or at its beginning.
    surplus = tl.maximum(total - count, 0)
    rank = tl.cumsum(new.to(tl.int32), 0)
    backwards = _word(key, zero + _CUT) >= 0x8000000000000000
    hidden = hidden | (new & tl.where(backwards, rank > surplus, rank <= added - surplus))
    if total < count:
        # The rest at random: the smallest of the orders that are left, found bit by bit from above.
        order = (_word(key, place.to(tl.int64) + _PATCH) & 0xFFFFF).to(tl.int64) << 22 | place
        order = tl.where((hidden == 0) & (row < HEIGHT), order, 0x7FFFFFFFFFFFFFFF)
        last = zero.to(tl.int64)
        bit = last + (1 << 41)
        for _ in range(42):
            smaller = tl.sum((order < (last | bit)).to(tl.int32), 0)
            last = tl.where(smaller < count - total, last | bit, last)
            bit = bit >> 1
        group = tl.where(order <= last, rectangles + place, group)
        hidden = hidden | (order <= last)
    begin = image.to(tl.int64) * (HEIGHT * WIDTH)
    tl.store(mask_ptr + begin + place, hidden, mask=row < HEIGHT)
    tl.store(group_ptr + begin + place, tl.where(hidden, group, -1), mask=row < HEIGHT)


@triton.jit
def _normals(draw, cubic_ptr):
    bits = (2 * (draw & 0x7FFF) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    cubic = cubic_ptr + ((bits >> 23) - 127) * 4
    t = (bits >> 8) & 0x7FFF
    size = tl.load(cubic + 2) + ((tl.load(cubic + 3) * t) >> 15)
    size = tl.load(cubic + 1) + ((size * t) >> 15)
    size = tl.load(cubic) + ((size * t) >> 15)
    return tl.where(draw < 0x8000, size, -size).to(tl.float32) * 0.0000152587890625


@triton.jit(do_not_specialize=["pool", "batch"])
def _write_kernel(
    out_ptr,
    image_ptr,
    pool_ptr,
    mask_ptr,
    fill_ptr,
    donor_ptr,
    key_ptr,
    source_ptr,
    kind_ptr,
    value_ptr,
    scale_ptr,
    cubic_ptr,
    pool,
    batch,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    IMAGE: tl.constexpr,
    PLANE: tl.constexpr,
    LINE: tl.constexpr,
    PIXEL: tl.constexpr,
    OUT_IMAGE: tl.constexpr,
    OUT_PLANE: tl.constexpr,
    OUT_LINE: tl.constexpr,
    OUT_PIXEL: tl.constexpr,
    POOL_IMAGE: tl.constexpr,
    POOL_PLANE: tl.constexpr,
    POOL_LINE: tl.constexpr,
    POOL_PIXEL: tl.constexpr,
    INPLACE: tl.constexpr,
    BY_PATCH: tl.constexpr,
    POOL: tl.constexpr,
    ZEROS: tl.constexpr,
    NOISE: tl.constexpr,
    ALIEN: tl.constexpr,
    SHUFFLE: tl.constexpr,
    SCALED: tl.constexpr,
    PER_WORD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program for each patch, so that all that differs from patch to patch is a scalar.
    number = tl.program_id(0)
    image = (number // (ROWS * COLUMNS)).to(tl.int64)
    patch = number % (ROWS * COLUMNS)
    down, across = patch // COLUMNS, patch % COLUMNS
    fill = tl.load(fill_ptr + image)
    hidden = tl.load(mask_ptr + number).to(tl.int32)
    # What a plan of another module says is not trusted with memory: an unknown fill leaves the image as it is.
    known = (hidden != 0) & (fill >= 0) & (fill < KINDS)
    kind = tl.load(kind_ptr + fill, mask=known, other=-1)
    out_ptr += image * OUT_IMAGE + down * (HEIGHT * OUT_LINE) + across * (WIDTH * OUT_PIXEL)
    own_ptr = image_ptr + image * IMAGE
    corner = down * (HEIGHT * LINE) + across * (WIDTH * PIXEL)
    for begin in range(0, PIXELS, BLOCK):
        e = begin + tl.arange(0, BLOCK)
        plane, y, x = e // (HEIGHT * WIDTH), e // WIDTH % HEIGHT, e % WIDTH
        inside = e < PIXELS
        target = out_ptr + plane * OUT_PLANE + y * OUT_LINE + x * OUT_PIXEL
        offset = plane * PLANE + y * LINE + x * PIXEL
        if not INPLACE:
            if kind == -1:
                tl.store(target, tl.load(own_ptr + corner + offset, mask=inside), mask=inside)
        if ZEROS:
            if kind == 0:
                tl.store(target, tl.load(value_ptr + fill * CHANNELS + plane % CHANNELS, mask=inside), mask=inside)
        if NOISE:
            if kind == 1:
                words: tl.constexpr = (PIXELS + PER_WORD - 1) // PER_WORD
                slot = patch.to(tl.int64) * words + begin // PER_WORD + tl.arange(0, BLOCK // PER_WORD)
                word = _word(tl.load(key_ptr + image).to(tl.uint64), slot + _NOISE_SLOT)
                bits: tl.constexpr = 64 // PER_WORD
                lanes = word[:, None] >> (tl.arange(0, PER_WORD) * bits)[None, :].to(tl.uint64)
                draw = tl.reshape(lanes & ((1 << bits) - 1), (BLOCK,)).to(tl.int32)
                if PER_WORD == 4:
                    noise = _normals(draw, cubic_ptr)
                    if SCALED:
                        noise = noise * tl.load(scale_ptr + 2 * fill + 1) + tl.load(scale_ptr + 2 * fill)
                    if out_ptr.dtype.element_ty == tl.bfloat16:
                        # To the nearest, ties to even, on the bits: Triton's interpreter rounds otherwise.
                        bits32 = noise.to(tl.int32, bitcast=True)
                        half = (bits32 + 0x7FFF + ((bits32 >> 16) & 1)) >> 16
                        tl.store(target, half.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=inside)
                    else:
                        tl.store(target, noise.to(out_ptr.dtype.element_ty), mask=inside)
                else:
                    tl.store(target, draw.to(out_ptr.dtype.element_ty), mask=inside)
        if ALIEN:
            if kind == 2:
                if POOL:
                    if BY_PATCH:
                        donor = tl.load(donor_ptr + number)
                    else:
                        chosen = _word(tl.load(key_ptr + image).to(tl.uint64), image * 0 + _FILL)
                        donor = (((chosen & _LOW) * pool.to(tl.uint64)) >> 32).to(tl.int64)
                    theirs = pool_ptr + donor * POOL_IMAGE
                    theirs += down * (HEIGHT * POOL_LINE) + across * (WIDTH * POOL_PIXEL)
                    alien = tl.load(theirs + plane * POOL_PLANE + y * POOL_LINE + x * POOL_PIXEL, mask=inside)
                    tl.store(target, alien, mask=inside)
                else:
                    donor = tl.load(donor_ptr + (number if BY_PATCH else image))
                    there = e < tl.where((donor >= 0) & (donor < batch), PIXELS, 0)
                    theirs = image_ptr + donor * IMAGE + corner + offset
                    tl.store(target, tl.load(theirs, mask=there, other=0), mask=inside)
        if SHUFFLE:
            if kind == 3:
                source = tl.load(source_ptr + number)
                moved = source // COLUMNS * (HEIGHT * LINE) + source % COLUMNS * (WIDTH * PIXEL)
                tl.store(target, tl.load(own_ptr + moved + offset, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def _alien_kernel(
    image_ptr,
    mask_ptr,
    fill_ptr,
    donor_ptr,
    kind_ptr,
    batch,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    IMAGE: tl.constexpr,
    PLANE: tl.constexpr,
    LINE: tl.constexpr,
    PIXEL: tl.constexpr,
    BY_PATCH: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program for some pixels of a patch in all images: nobody else writes them, so it may read all, then write.
    patch = tl.program_id(0) % (ROWS * COLUMNS)
    down, across = patch // COLUMNS, patch % COLUMNS
    image = tl.arange(0, IMAGES)[:, None].to(tl.int64)
    e = tl.program_id(0) // (ROWS * COLUMNS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    offset = e // (HEIGHT * WIDTH) * PLANE + (e // WIDTH % HEIGHT + down * HEIGHT) * LINE
    offset += (e % WIDTH + across * WIDTH) * PIXEL
    there = image < batch
    hidden = tl.load(mask_ptr + image * (ROWS * COLUMNS) + patch, mask=there, other=0).to(tl.int32) != 0
    fill = tl.load(fill_ptr + image, mask=there, other=0)
    kind = tl.load(kind_ptr + fill, mask=(fill >= 0) & (fill < KINDS), other=-1)
    here = there & hidden & (kind == 2) & (e < PIXELS)
    whose = image * (ROWS * COLUMNS) + patch if BY_PATCH else image
    donor = tl.load(donor_ptr + whose, mask=there, other=0)
    within = (donor >= 0) & (donor < batch)
    alien = tl.load(image_ptr + donor * IMAGE + offset, mask=here & within, other=0)
    tl.debug_barrier()
    tl.store(image_ptr + image * IMAGE + offset, alien, mask=here)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache  # a captured graph goes on reading them
def _shares(shares: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(shares, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


@cache
def _tables(
    kinds: tuple[int, ...], values: tuple[float, ...], channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return by fill its kind, its value in each channel, its mean and spread; and the normal distribution's cubics."""
    numbers = torch.tensor(values, dtype=torch.float64, device="cpu").view(len(kinds), -1)
    tables = (
        torch.tensor(kinds, dtype=torch.int32, device="cpu"),
        numbers[:, torch.arange(channels, device="cpu").clamp(max=numbers.shape[1] - 1)].to(dtype),
        numbers[:, :2].to(torch.float32),
        torch.tensor(rng.NORMAL_CUBICS, dtype=torch.int32, device="cpu"),
    )
    kind, value, scale, cubic = (table.contiguous().to(device, non_blocking=True) for table in tables)
    return kind, value, scale, cubic


def draw(
    root: int | Tensor, first: int | Tensor, index: Tensor | None, batch: int, device: torch.device, settings: Settings
) -> Drawn:
    """Draw a batch.

    Args:
        root: from which the keys are drawn: a number, or an int64 tensor on the device.
        first: the number of the first sample, likewise, where there is no index.
        index: ``(B,)`` int64 on the device: the samples' numbers.
        batch: how many images.
        device: where.
        settings: what is asked.

    Returns:
        The fields of a plan.
    """
    rows, columns = settings.grid
    patches = rows * columns
    mask, group = (torch.empty(batch, rows, columns, dtype=kind, device=device) for kind in (torch.bool, torch.int32))
    fill, donor, key = (torch.empty(batch, dtype=torch.int64, device=device) for _ in range(3))
    if not batch:
        return mask, fill, donor, key, group
    shares = settings.shares()
    block = triton.next_power_of_2(patches)
    (low_height, high_height), (low_width, high_width) = settings.group_size
    sample = first if index is None else index.contiguous()
    with _on(device):
        _draw_kernel[(batch,)](
            mask,
            fill,
            donor,
            key,
            group,
            root if isinstance(root, Tensor) else mask,
            sample if isinstance(sample, Tensor) else mask,
            _shares(tuple(shares), device) if shares else mask,
            0 if isinstance(root, Tensor) else root,
            0 if isinstance(sample, Tensor) else sample,
            batch,
            round(settings.ratio[0] * patches * 2**16),
            round(settings.ratio[1] * patches * 2**16),
            round(settings.ratio[0] * patches),
            round(settings.ratio[1] * patches),
            round(settings.p * 2**32),
            low_height,
            high_height - low_height + 1,
            low_width,
            high_width - low_width + 1,
            settings.rectangles,
            HEIGHT=rows,
            WIDTH=columns,
            SHARES=len(shares),
            INSIDE=settings.inside,
            ROOT=isinstance(root, Tensor),
            SAMPLE=2 if index is not None else int(isinstance(first, Tensor)),
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )
    return mask, fill, donor, key, group


def _strides(images: Tensor) -> tuple[int, int, int, int] | None:
    """Return how far apart images, planes (channels of frames), lines and pixels are, or None where planes are not."""
    if images.ndim == 5:
        if images.shape[1] > 1 and images.shape[2] > 1 and images.stride(1) != images.shape[2] * images.stride(2):
            return None
        plane = images.stride(2) if images.shape[2] > 1 else images.stride(1)
        return images.stride(0), plane, images.stride(3), images.stride(4)
    return images.stride(0), images.stride(1), images.stride(2), images.stride(3)


def _reachable(images: Tensor) -> bool:
    """Tell whether a program can reckon within one image: in 32 bits, and from plane to plane."""
    within = sum((side - 1) * stride for side, stride in zip(images.shape[1:], images.stride()[1:], strict=True))
    return within < 2**31 and max(images.stride()[1:]) < 2**31 and _strides(images) is not None


def can_write(
    images: Tensor, out: Tensor, kinds: Sequence[int], patch_size: tuple[int, int], donors: Tensor | None
) -> bool:
    """Tell whether :func:`write` takes this; what it does not is left to the functions for all devices."""
    inplace = out is images
    return (
        images.dtype in _DTYPES
        and len(images) > 0
        and math.prod(images.shape[1:-2]) * patch_size[0] * patch_size[1] >= LEAST_PIXELS
        and all(map(_reachable, (images, out) if donors is None else (images, out, donors)))
        and not (inplace and _SHUFFLE in kinds)  # an image hidden whole would read what it writes
        and not (inplace and _ALIEN in kinds and donors is None and len(images) > MOST_IMAGES)
    )


def write(
    images: Tensor,
    out: Tensor,
    plan: MaskPlan,
    sources: Tensor | None,
    donors: Tensor | None,
    kinds: Sequence[int],
    values: Sequence[float],
) -> None:
    """Write the images into ``out``, which may be themselves, with the package's own fills.

    Args:
        images: ``(B, C, H, W)`` or ``(B, T, C, H, W)``, as :func:`can_write` says.
        out: of their shape and dtype.
        plan: what was drawn; its donors may be one for each patch, ``(B, gh, gw)``, and count in ``donors`` then.
        sources: ``(B, patches)`` int64, of Shuffle.sources(), where that is among the fills.
        donors: ``(N, ...)`` like the images; None where aliens come from the batch.
        kinds: of the fills: 0 zeros, 1 noise, 2 alien, 3 shuffle.
        values: for each fill as many numbers: its value in each channel, or its mean and its spread.
    """
    rows, columns = plan.mask.shape[1:]
    channels, height, width = images.shape[-3], images.shape[-2] // rows, images.shape[-1] // columns
    pixels = math.prod(images.shape[1:-2]) * height * width
    inplace, batch = out is images, len(images)
    kind, value, scale, cubic = _tables(tuple(kinds), tuple(values), channels, images.dtype, images.device)
    mask, fill, donor, key, _ = (field.contiguous() for field in plan)
    steps, out_steps, pool_steps = (
        _strides(t) or (0,) * 4 for t in (images, out, images if donors is None else donors)
    )
    step = len(values) // len(kinds)
    names = ("IMAGE", "PLANE", "LINE", "PIXEL")
    grid = {"ROWS": rows, "COLUMNS": columns, "HEIGHT": height, "WIDTH": width, "PIXELS": pixels}
    aliens_here = inplace and donors is None and _ALIEN in kinds
    with _on(images.device):
        if aliens_here:  # first, while all others are as they were
            most = triton.next_power_of_2(batch)
            block = min(triton.next_power_of_2(pixels), max(4, min(64, 2**13 // most)))
            _alien_kernel[(rows * columns * triton.cdiv(pixels, block),)](
                images, mask, fill, donor, kind, batch, KINDS=len(kinds),
                **grid, **dict(zip(names, steps, strict=True)), BY_PATCH=donor.ndim == 3, IMAGES=most, BLOCK=block,
                num_warps=min(16, max(1, most * block // 512)),
            )  # fmt: skip
            if set(kinds) == {_ALIEN}:
                return
        block = min(1024, max(8, triton.next_power_of_2(pixels)))
        _write_kernel[(batch * rows * columns,)](
            out,
            images,
            images if donors is None else donors,
            mask,
            fill,
            donor,
            key,
            mask if sources is None else sources,
            kind,
            value,
            scale,
            cubic,
            0 if donors is None else len(donors),
            batch,
            KINDS=len(kinds),
            CHANNELS=channels,
            **grid,
            **dict(zip(names, steps, strict=True)),
            **{f"OUT_{name}": number for name, number in zip(names, out_steps, strict=True)},
            **{f"POOL_{name}": number for name, number in zip(names, pool_steps, strict=True)},
            INPLACE=inplace,
            BY_PATCH=donor.ndim == 3,
            POOL=donors is not None,
            ZEROS=_ZEROS in kinds,
            NOISE=_NOISE in kinds,
            ALIEN=_ALIEN in kinds and not aliens_here,
            SHUFFLE=_SHUFFLE in kinds,
            SCALED=any(k == _NOISE and tuple(values[i * step : i * step + 2]) != (0, 1) for i, k in enumerate(kinds)),
            PER_WORD=8 if images.dtype == torch.uint8 else 4,
            BLOCK=block,
            num_warps=max(1, block // 256),
            enable_fp_fusion=False,  # torch multiplies and adds one after the other
        )
