"""Writing on a CPU by loops that Numba compiles: bits are moved, so that a dtype is only a width.

Images are lines here: pixels of one patch that lie side by side in memory, one after another. With ``channels_last``
the channels of each pixel lie side by side as well, and there is one plane; else a plane is a channel of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from ..native import compiled, share
from ..rng import NOISE_SLOT, normal_levels, word
from .operation import CONSTANT, COPY, NOISE, POOL, Merged, Operation, merged, scale

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEAST = 2**20  # bytes of pixels that are worth a thread of their own: 0.75 MB take 0.74 ms with two, 0.45 with one


class Layout(NamedTuple):
    """Where the lines lie: all in whole numbers."""

    planes: int
    depth: int  # of the grid: 1 for images
    rows: int
    columns: int
    thick: int  # slices of a patch
    height: int  # lines of a patch in a slice
    line: int  # values in a line
    channels: int
    interleaved: int  # how far apart the pixels of one channel are: 1, or the channels with channels_last
    per_word: int  # noise: how many values a word gives


def start(patch: int, n: Layout) -> int:
    """Return where the first line of a patch begins, counting patches through all images."""
    row, image = patch // n.columns, patch // (n.depth * n.rows * n.columns)
    sheet = row // n.rows + image * (n.planes - 1) * n.depth
    return ((sheet * n.thick * n.rows + row % n.rows) * n.height * n.columns + patch % n.columns) * n.line


@intrinsic
def move(typing: Any, to: Any, origin: Any, at: Any, source: Any, length: Any) -> Any:
    """Copy some values that lie side by side, by the C library: a loop over 16 of them takes three times as long.

    The lines of patches of 16 pixels, of 16, 32 or 64 bytes, are copied without calling it: 325,000 of 16 bytes take
    1.1 ms instead of 2.6.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ends = []
        for kind, array, place in zip(signature.args[:2], arguments[:2], arguments[2:4], strict=True):
            ends.append(builder.gep(context.make_array(kind)(context, builder, array).data, [place]))
        size = to.dtype.bitwidth // 8
        rest, done = builder.append_basic_block(), builder.append_basic_block()
        switch = builder.switch(arguments[4], rest)
        for length in (16, 32, 64):
            block = builder.append_basic_block()
            switch.add_case(arguments[4].type(length // size), block)
            builder.position_at_end(block)
            cgutils.raw_memcpy(builder, *ends, arguments[4].type(length // size), size)
            builder.branch(done)
        builder.position_at_end(rest)
        cgutils.raw_memcpy(builder, *ends, arguments[4], size)
        builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(to, origin, types.int64, types.int64, types.int64), build


def noise(to: Any, patch: int, key: int, table: Any, scratch: Any, lines: Any, n: Layout) -> None:
    """Write the noise of one patch, whose values are counted channel by channel."""
    drawn, words, draws = scratch
    width, pixels = n.line // n.interleaved, len(lines) * n.line
    number = (pixels + n.per_word - 1) // n.per_word
    first, at = NOISE_SLOT + patch % (n.depth * n.rows * n.columns) * number, start(patch, n)
    for i in range(number):
        words[i] = word(key, first + i)
    for i in range(pixels if n.per_word < 8 else 0):  # bytes are what was drawn: `drawn` is these words
        drawn[i] = table[draws[i]]  # the words, draw by draw
    for i in range(len(lines)):
        if n.interleaved == 1:
            move(to, drawn, at + lines[i], i * width, width)
        else:  # one plane of lines in which the channels alternate
            for channel in range(n.interleaved):
                for x in range(width):
                    to[at + lines[i] + x * n.interleaved + channel] = drawn[(channel * len(lines) + i) * width + x]


def write_bands(
    begin: int,
    end: int,
    images: Any,
    out: Any,
    pool: Any,
    hidden: Any,
    m: Any,
    table: Any,
    tables: Any,
    lines: Any,
    scratch: Any,
    inplace: int,
    n: Layout,
) -> None:
    """Write some rows of images' patches; in place without copies of the batch, which were moved before.

    A constant goes line by line through all of the row's patches, as memory lies: in place, half of 64 x 3 x 224 x 224
    bytes then takes 1.3 ms instead of 2.8. Copies, which lie here and there, take up to half longer so.
    """
    drawn = scratch[0]
    for band in range(begin, end):
        image, first = band // (n.depth * n.rows), band * n.columns
        kind, at, length = m.kind[image], start(first, n), n.height * n.columns * n.line
        if not inplace:  # all of it at once, and the hidden again while it is in the cache
            for plane in range(0, len(lines), n.height):
                move(out, images, at + lines[plane], at + lines[plane], length)
        if kind == CONSTANT:
            for plane in range(0, len(lines), n.height):
                channel = plane // (n.thick * n.height) % n.channels
                for c in range(n.interleaved):
                    for x in range(c, n.line, n.interleaved):
                        drawn[x] = m.value[image, channel + c]
                for i in range(plane, plane + n.height):
                    for column in range(n.columns):
                        if hidden[first + column]:
                            move(out, drawn, at + lines[i] + column * n.line, 0, n.line)
            continue
        for patch in range(first, first + n.columns):
            if hidden[patch] and kind == NOISE:
                noise(out, patch, m.key[image], tables[table[image]], scratch, lines, n)
            elif hidden[patch] and (kind == POOL or (kind == COPY and not inplace)):
                here, there = start(patch, n), start(m.source[patch], n)
                for line in lines:
                    move(out, pool if kind == POOL else images, here + line, there + line, n.line)


def arrange(source: Any, copied: Any, readers: Any, to: Any, origin: Any) -> int:
    """Put copies within a batch into an order in which nothing is read after it was written.

    A patch may be written once nobody has yet to read it. Circles are left then; one saved patch (-1) opens each.

    Args:
        source: ``(n,)`` int64, which patch each one copies.
        copied: ``(n,)`` bool, True where one does; is written to.
        readers: ``(n,)`` int64, zeros.
        to: ``(2 n,)`` int64, takes the patches to be written.
        origin: ``(2 n,)`` int64, takes the patches that they are written from.

    Returns:
        How many moves there are.
    """
    moves = 0
    for patch in range(len(source)):
        if copied[patch] and copied[source[patch]]:
            readers[source[patch]] += 1
    for patch in range(len(source)):
        here = patch
        while copied[here] and readers[here] == 0:
            copied[here] = False
            to[moves], origin[moves] = here, source[here]
            moves += 1
            here = source[here]
            readers[here] -= 1
    for patch in range(len(source)):
        if copied[patch]:
            to[moves], origin[moves] = -1, patch
            here = patch
            while copied[here]:
                moves += 1
                to[moves], origin[moves] = here, source[here]
                copied[here] = False
                here = source[here]
            origin[moves] = -1
            moves += 1
    return moves


def move_lines(begin: int, end: int, images: Any, to: Any, origin: Any, saved: Any, lines: Any, n: Layout) -> None:
    """Carry out moves for some lines of every patch: lines do not depend on each other."""
    for i in range(len(to)):
        there, here = start(origin[i], n), start(to[i], n)
        for which in range(begin, end):
            kept = (which - begin) * n.line
            if to[i] < 0:
                move(saved, images, kept, there + lines[which], n.line)
            elif origin[i] < 0:
                move(images, saved, here + lines[which], kept, n.line)
            else:
                move(images, images, here + lines[which], there + lines[which], n.line)


class Loops(NamedTuple):
    """The functions above, compiled for one width of values."""

    write_bands: Any
    arrange: Any
    move_lines: Any


@lru_cache(maxsize=len(_BITS))
def _loops(bits: torch.dtype) -> Loops:
    i64, void = types.int64, types.void
    pixel = {torch.uint8: types.uint8, torch.int16: types.int16, torch.int32: types.int32, torch.int64: i64}[bits]
    pixels, longs, layout = pixel[::1], i64[::1], types.NamedUniTuple(i64, len(Layout._fields), Layout)
    kept = types.Array(i64, 1, "C", readonly=True)
    mixed = compiled(word, types.uint64(types.uint64, types.uint64))
    begin = compiled(start, i64(i64, layout))
    row, tables = (types.Array(pixel, dimensions, "C", readonly=True) for dimensions in (1, 2))
    draws = types.uint8 if bits == torch.uint8 else types.uint16
    scratch = types.Tuple((pixels, types.uint64[::1], draws[::1]))
    drawn = compiled(noise, void(pixels, i64, types.uint64, row, scratch, kept, layout), mixed, begin)
    each = types.NamedTuple((longs, pixel[:, ::1], longs, longs), Merged)
    arguments = (i64, i64, pixels, pixels, pixels, types.boolean[::1], each, longs, tables, kept, scratch, i64, layout)
    return Loops(
        compiled(write_bands, void(*arguments), begin, drawn),
        compiled(arrange, i64(longs, types.boolean[::1], longs, longs, longs)),
        compiled(move_lines, void(i64, i64, pixels, longs, longs, pixels, kept, layout), begin),
    )


@lru_cache(maxsize=64)
def _layout(shape: Sequence[int], grid: Sequence[int], contiguous: bool, byte: bool) -> tuple[Layout, Any]:
    """Return the layout of images, and where the lines of a patch lie from its first one on, to which nobody writes."""
    axes = len(grid)
    depth, rows, columns = grid = (1,) * (3 - axes) + tuple(grid)
    sides = (1,) * (3 - axes) + tuple(shape[-axes:])
    thick, height, width = (side // number for side, number in zip(sides, grid, strict=True))
    channels = shape[-axes - 1]
    n = Layout(
        planes=math.prod(shape[1:-axes]) if contiguous else 1,
        depth=depth,
        rows=rows,
        columns=columns,
        thick=thick,
        height=height,
        line=width * (1 if contiguous else channels),
        channels=channels,
        interleaved=1 if contiguous else channels,
        per_word=8 if byte else 4,
    )
    slices = np.arange(n.planes)[:, None] * depth * thick + np.arange(thick)  # of all planes
    lines = (slices.reshape(-1, 1) * rows * height + np.arange(height)).reshape(-1) * (columns * n.line)
    lines.setflags(write=False)
    return n, lines


@lru_cache(maxsize=16)
def _tables(scales: tuple[tuple[float, float], ...], dtype: torch.dtype) -> bytes:
    """Return the noise of every draw, in the images' dtype, for each mean and spread."""
    if dtype == torch.uint8:
        levels = [torch.arange(256, dtype=dtype, device="cpu")] * len(scales)
    else:
        levels = [scale(normal_levels(), mean, std, dtype) for mean, std in scales]
    return torch.stack(levels).view(torch.uint8).numpy().tobytes()


def _lines(images: Tensor) -> Any:
    """Return the images' bits as they lie in memory."""
    flat = images.detach().as_strided((images.numel(),), (1,))
    return flat.view(_BITS[images.itemsize]).numpy()


def takes(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> bool:
    """Tell whether all images lie in memory without gaps, in the same order."""
    tensors = (images, out) if donors is None else (images, out, donors)
    last = torch.channels_last if mask.ndim == 3 else torch.channels_last_3d
    return images.itemsize in _BITS and (
        all(t.is_contiguous() for t in tensors)
        or (images.ndim == mask.ndim + 1 and all(t.is_contiguous(memory_format=last) for t in tensors))
    )


def write(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> None:
    """Write the images into ``out``; see :mod:`gmml_aug.filling`."""
    bits, inplace, patches = _BITS[images.itemsize], out is images, mask.numel()
    n, lines = _layout(images.shape, mask.shape[1:], images.is_contiguous(), images.dtype == torch.uint8)
    loops, pixels = _loops(bits), len(lines) * n.line
    m = merged(operations, images, mask, fill)
    scales = tuple((operation.mean, operation.std) for operation in operations)
    table = fill.contiguous().numpy()  # one for each fill, though only noise reads it
    hidden = mask.contiguous().view(-1).numpy()
    flat, target = _lines(images), _lines(out)
    pool = flat if donors is None else _lines(donors)
    tables = np.frombuffer(_tables(scales, images.dtype), flat.dtype).reshape(len(scales), -1)
    each = Merged._make(t.numpy() for t in (m.kind, m.value.view(bits), m.source.view(-1), m.key))

    if inplace and any(operation.kind == COPY for operation in operations):
        copies = (m.kind == COPY).view(-1, *(1,) * (mask.ndim - 1))
        copied = (mask & copies).reshape(-1)  # a mask may have any strides
        to, origin = np.empty(2 * patches, np.int64), np.empty(2 * patches, np.int64)
        moves = loops.arrange(each.source, copied.numpy(), np.zeros(patches, np.int64), to, origin)

        def some_lines(begin: int, end: int) -> None:
            saved = np.empty((end - begin) * n.line, flat.dtype)
            loops.move_lines(begin, end, flat, to[:moves], origin[:moves], saved, lines, n)

        share(len(lines), max(1, _LEAST // (moves * n.line * images.itemsize + 1)), some_lines)

    def some_bands(begin: int, end: int) -> None:
        words = np.empty(-(-pixels // n.per_word), np.uint64)
        draws = words.view(np.uint8 if n.per_word == 8 else np.uint16)
        drawn = draws if n.per_word == 8 else np.empty(pixels, flat.dtype)
        scratch = drawn, words, draws
        loops.write_bands(begin, end, flat, target, pool, hidden, each, table, tables, lines, scratch, inplace, n)

    share(patches // n.columns, max(1, _LEAST // (n.columns * pixels * images.itemsize)), some_bands)
