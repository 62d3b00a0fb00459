"""The same pixels on CUDA, in Triton: one launch writes a batch, a program for each patch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ..sampling.triton_draw import supported, word_of
from .operation import CONSTANT, COPY, NOISE, POOL, Operation, merged

_LEAST_PIXELS = 32  # of a patch and all its channels: below, a program has too little to do
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_CONSTANT, _NOISE, _COPY, _POOL = (tl.constexpr(kind) for kind in (CONSTANT, NOISE, COPY, POOL))
_NOISE_SLOT = tl.constexpr(rng.NOISE_SLOT)


@triton.jit
def _normals(draw, cubic_ptr):
    bits = (2 * (draw & 0x7FFF) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    cubic = cubic_ptr + ((bits >> 23) - 127) * 4
    t = (bits >> 8) & 0x7FFF
    size = tl.load(cubic + 2) + ((tl.load(cubic + 3) * t) >> 15)
    size = tl.load(cubic + 1) + ((size * t) >> 15)
    size = tl.load(cubic) + ((size * t) >> 15)
    return tl.where(draw < 0x8000, size, -size).to(tl.float32) * 0.0000152587890625


@triton.jit
def _write_kernel(
    out_ptr, image_ptr, pool_ptr, mask_ptr, kind_ptr, value_ptr, source_ptr, key_ptr, scale_ptr, cubic_ptr,
    DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, THICK: tl.constexpr, HEIGHT: tl.constexpr, WIDTH:
    tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, IMAGE: tl.constexpr, PLANE: tl.constexpr, SLICE:
    tl.constexpr, LINE: tl.constexpr, PIXEL: tl.constexpr, OUT_IMAGE: tl.constexpr, OUT_PLANE: tl.constexpr, OUT_SLICE:
    tl.constexpr, OUT_LINE: tl.constexpr, OUT_PIXEL: tl.constexpr, POOL_IMAGE: tl.constexpr, POOL_PLANE: tl.constexpr,
    POOL_SLICE: tl.constexpr, POOL_LINE: tl.constexpr, POOL_PIXEL: tl.constexpr, INPLACE: tl.constexpr, SCALED:
    tl.constexpr, PER_WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program for each patch, so that all that differs from patch to patch is a scalar.
    number = tl.program_id(0)
    image = (number // (DEPTH * ROWS * COLUMNS)).to(tl.int64)
    patch = number % (DEPTH * ROWS * COLUMNS)
    hidden = tl.load(mask_ptr + number).to(tl.int32)
    kind = tl.load(kind_ptr + image, mask=hidden != 0, other=-1)
    sheet, down, across = patch // (ROWS * COLUMNS), patch // COLUMNS % ROWS, patch % COLUMNS
    out_ptr += image * OUT_IMAGE + sheet * (THICK * OUT_SLICE) + down * (HEIGHT * OUT_LINE)
    out_ptr += across * (WIDTH * OUT_PIXEL)
    for begin in range(0, PIXELS, BLOCK):
        e = begin + tl.arange(0, BLOCK)
        plane, z = e // (THICK * HEIGHT * WIDTH), e // (HEIGHT * WIDTH) % THICK
        y, x = e // WIDTH % HEIGHT, e % WIDTH
        inside = e < PIXELS
        target = out_ptr + plane * OUT_PLANE + z * OUT_SLICE + y * OUT_LINE + x * OUT_PIXEL
        offset = plane * PLANE + z * SLICE + y * LINE + x * PIXEL
        if not INPLACE:
            if kind == -1:
                corner = image * IMAGE + sheet * (THICK * SLICE) + down * (HEIGHT * LINE) + across * (WIDTH * PIXEL)
                tl.store(target, tl.load(image_ptr + corner + offset, mask=inside), mask=inside)
        if kind == _CONSTANT:
            tl.store(target, tl.load(value_ptr + image * CHANNELS + plane % CHANNELS, mask=inside), mask=inside)
        if kind == _NOISE:
            words: tl.constexpr = (PIXELS + PER_WORD - 1) // PER_WORD
            slot = patch.to(tl.int64) * words + begin // PER_WORD + tl.arange(0, BLOCK // PER_WORD)
            word = word_of(tl.load(key_ptr + image).to(tl.uint64), slot + _NOISE_SLOT)
            bits: tl.constexpr = 64 // PER_WORD
            lanes = word[:, None] >> (tl.arange(0, PER_WORD) * bits)[None, :].to(tl.uint64)
            draw = tl.reshape(lanes & ((1 << bits) - 1), (BLOCK,)).to(tl.int32)
            if PER_WORD == 4:
                noise = _normals(draw, cubic_ptr)
                if SCALED:
                    noise = noise * tl.load(scale_ptr + 2 * image + 1) + tl.load(scale_ptr + 2 * image)
                if out_ptr.dtype.element_ty == tl.bfloat16:
                    # To the nearest, ties to even, on the bits: Triton's interpreter rounds otherwise.
                    bits32 = noise.to(tl.int32, bitcast=True)
                    half = (bits32 + 0x7FFF + ((bits32 >> 16) & 1)) >> 16
                    tl.store(target, half.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=inside)
                else:
                    tl.store(target, noise.to(out_ptr.dtype.element_ty), mask=inside)
            else:
                tl.store(target, draw.to(out_ptr.dtype.element_ty), mask=inside)
        if kind == _COPY:
            source = tl.load(source_ptr + number)
            place = source % (DEPTH * ROWS * COLUMNS)
            corner = source // (DEPTH * ROWS * COLUMNS) * IMAGE + place // (ROWS * COLUMNS) * (THICK * SLICE)
            corner += place // COLUMNS % ROWS * (HEIGHT * LINE) + place % COLUMNS * (WIDTH * PIXEL)
            tl.store(target, tl.load(image_ptr + corner + offset, mask=inside), mask=inside)
        if kind == _POOL:
            source = tl.load(source_ptr + number)
            place = source % (DEPTH * ROWS * COLUMNS)
            corner = source // (DEPTH * ROWS * COLUMNS) * POOL_IMAGE + place // (ROWS * COLUMNS) * (THICK * POOL_SLICE)
            corner += place // COLUMNS % ROWS * (HEIGHT * POOL_LINE) + place % COLUMNS * (WIDTH * POOL_PIXEL)
            theirs = pool_ptr + corner + plane * POOL_PLANE + z * POOL_SLICE + y * POOL_LINE + x * POOL_PIXEL
            tl.store(target, tl.load(theirs, mask=inside), mask=inside)


def _strides(images: Tensor, axes: int) -> tuple[int, ...] | None:
    """Return how far apart images, planes (channels of frames), slices, lines and pixels are; None if planes vary."""
    steps = images.stride()
    if axes == 3:
        return steps
    if images.ndim == 5:
        if images.shape[1] > 1 and images.shape[2] > 1 and steps[1] != images.shape[2] * steps[2]:
            return None
        steps = steps[0], steps[2] if images.shape[2] > 1 else steps[1], *steps[3:]
    return (*steps[:2], 0, *steps[2:])


def _reachable(images: Tensor, axes: int) -> bool:
    """Tell whether a program can reckon within one image: in 32 bits, and from plane to plane."""
    within = sum((side - 1) * stride for side, stride in zip(images.shape[1:], images.stride()[1:], strict=True))
    return within < 2**31 and max(images.stride()[1:]) < 2**31 and _strides(images, axes) is not None


@lru_cache(maxsize=16)  # a captured graph goes on reading it
def _cubics(device: torch.device) -> Tensor:
    return torch.tensor(rng.NORMAL_CUBICS, dtype=torch.int32, device="cpu").to(device, non_blocking=True)


def takes(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> bool:
    """Tell whether the device runs kernels, the dtype is one of theirs and the patches are worth a program each."""
    pixels = images[0].numel() // mask[0].numel()
    return (
        supported(images.device)
        and images.dtype in _DTYPES
        and pixels >= _LEAST_PIXELS
        and all(_reachable(t, mask.ndim - 1) for t in ((images, out) if donors is None else (images, out, donors)))
    )


def write(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> None:
    """Write the images into ``out``; see :mod:`gmml_aug.filling`."""
    axes = mask.ndim - 1
    grid, sides = ((1,) * (3 - axes) + tuple(shape) for shape in (mask.shape[1:], images.shape[-axes:]))
    patch = (side // number for side, number in zip(sides, grid, strict=True))
    shape = dict(zip(("DEPTH", "ROWS", "COLUMNS", "THICK", "HEIGHT", "WIDTH"), (*grid, *patch), strict=True))
    pixels, inplace = images[0].numel() // mask[0].numel(), out is images
    if inplace and any(operation.kind == COPY for operation in operations):
        images = images.clone()  # what is read would be written over
    m = merged(operations, images, mask, fill)
    scaled = any(operation.kind == NOISE and operation[2:] != (0, 1) for operation in operations)
    scales = m.key
    if scaled:
        scales = torch.empty(len(images), 2, dtype=torch.float32, device=images.device)
        for i, operation in enumerate(operations):
            for column, number in enumerate((operation.mean, operation.std)):
                scales[:, column] = torch.where(fill == i, number, scales[:, column]) if i else number
    pool = images if donors is None else donors
    names = ("IMAGE", "PLANE", "SLICE", "LINE", "PIXEL")
    steps = {
        to + name: step
        for to, tensor in (("", images), ("OUT_", out), ("POOL_", pool))
        for name, step in zip(names, _strides(tensor, axes) or (), strict=True)
    }
    block = min(1024, max(8, triton.next_power_of_2(pixels)))
    with torch.cuda.device_of(images):
        _write_kernel[(mask.numel(),)](
            out, images, pool, mask.contiguous(), m.kind, m.value, m.source, m.key, scales, _cubics(images.device),
            **shape, CHANNELS=images.shape[-axes - 1], PIXELS=pixels, **steps, INPLACE=inplace,
            SCALED=scaled, PER_WORD=8 if images.dtype == torch.uint8 else 4, BLOCK=block, num_warps=max(1, block //
            256), enable_fp_fusion=False,  # torch multiplies and adds one after the other
        )  # fmt: skip
