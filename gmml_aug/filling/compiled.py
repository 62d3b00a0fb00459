"""Writing on a CPU by loops that Numba compiles: bits are moved, so that a dtype is only a width.

Images are lines here: pixels of one patch that lie side by side in memory, one after another. With ``channels_last``
the channels of each pixel lie side by side as well, and there is one plane; else a plane is a channel of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from torch import Tensor

from ..native import compiled, share
from ..rng import NOISE_SLOT, NORMAL_LEVELS, word
from .operation import CONSTANT, COPY, NOISE, POOL, Merged, Operation, merged, scale

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEAST = 2**16  # bytes of pixels that are worth a thread of their own


class Layout(NamedTuple):
    """Where the lines lie: all in whole numbers."""

    planes: int
    rows: int  # of the grid
    columns: int
    height: int  # lines of a patch in a plane
    line: int  # values in a line
    channels: int
    interleaved: int  # how far apart the pixels of one channel are: 1, or the channels with channels_last
    per_word: int  # noise: how many values a word gives


def start(patch: int, plane: int, y: int, n: Layout) -> int:
    """Return where a line of a patch begins, counting patches through all images."""
    image, place = patch // (n.rows * n.columns), patch % (n.rows * n.columns)
    down = (image * n.planes + plane) * n.rows * n.height + place // n.columns * n.height + y
    return (down * n.columns + place % n.columns) * n.line


def move(to: Any, origin: Any, at: int, source: int, length: int) -> None:
    """Copy some values that lie side by side."""
    for i in range(length):
        to[at + i] = origin[source + i]


def noise(to: Any, patch: int, key: int, table: Any, drawn: Any, n: Layout) -> None:
    """Write the noise of one patch, whose values are counted channel by channel; ``drawn`` is a scratch."""
    bits = 64 // n.per_word
    width = n.line // n.interleaved
    pixels = n.planes * n.height * n.line
    words = (pixels + n.per_word - 1) // n.per_word
    first = NOISE_SLOT + patch % (n.rows * n.columns) * words
    low = len(table) - 1
    for i in range(words):
        z = word(key, first + i)
        for j in range(n.per_word):
            drawn[i * n.per_word + j] = table[(z >> bits * j) & low]
    for plane in range(n.planes):
        for y in range(n.height):
            at = start(patch, plane, y, n)
            for channel in range(n.interleaved):
                begin = ((plane + channel) * n.height + y) * width
                for x in range(width):
                    to[at + x * n.interleaved + channel] = drawn[begin + x]


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
    drawn: Any,
    inplace: int,
    n: Layout,
) -> None:
    """Write some rows of images' patches; in place without copies of the batch, which were moved before."""
    for band in range(begin, end):
        image, first = band // n.rows, band * n.columns
        kind = m.kind[image]
        for plane in range(n.planes):
            for y in range(n.height):
                line, across = start(first, plane, y, n), 0
                while across < n.columns:
                    patch, at = first + across, line + across * n.line
                    across += 1
                    if hidden[patch] == 0 or kind < 0:
                        if inplace:
                            continue
                        while across < n.columns and (hidden[first + across] == 0 or kind < 0):
                            across += 1  # as many as follow each other, in one go
                        move(out, images, at, at, (first + across - patch) * n.line)
                    elif kind in (COPY, POOL):
                        source = m.source[patch]
                        while (
                            across < n.columns
                            and hidden[first + across] != 0
                            and m.source[first + across] == source + first + across - patch
                            and m.source[first + across] % n.columns != 0
                        ):
                            across += 1
                        length = (first + across - patch) * n.line
                        if kind == POOL:
                            move(out, pool, at, start(source, plane, y, n), length)
                        elif not inplace:
                            move(out, images, at, start(source, plane, y, n), length)
                    elif kind == CONSTANT:
                        channel = plane % n.channels
                        for x in range(n.line):
                            if n.interleaved > 1:
                                channel = x % n.interleaved
                            out[at + x] = m.value[image, channel]
        if kind == NOISE:
            for patch in range(first, first + n.columns):
                if hidden[patch] != 0:
                    noise(out, patch, m.key[image], tables[table[image]], drawn, n)


def arrange(source: Any, copied: Any, readers: Any, to: Any, origin: Any) -> int:
    """Put copies within a batch into an order in which nothing is read after it was written.

    A patch may be written once nobody has yet to read it. What is left then are circles, each of which one patch that
    is saved (-1) opens.

    Args:
        source: ``(n,)`` int64, which patch each one copies.
        copied: ``(n,)`` uint8, 1 where one does; is written to.
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
        while copied[here] == 1 and readers[here] == 0:
            copied[here] = 2
            to[moves], origin[moves] = here, source[here]
            moves += 1
            here = source[here]
            readers[here] -= 1
    for patch in range(len(source)):
        if copied[patch] != 1:
            continue
        to[moves], origin[moves] = -1, patch
        here = patch
        while source[here] != patch:
            moves += 1
            to[moves], origin[moves] = here, source[here]
            copied[here] = 2
            here = source[here]
        moves += 1
        to[moves], origin[moves] = here, -1
        copied[here] = 2
        moves += 1
    return moves


def move_lines(begin: int, end: int, images: Any, to: Any, origin: Any, saved: Any, n: Layout) -> None:
    """Carry out moves for some lines of every patch: lines do not depend on each other."""
    for i in range(len(to)):
        for which in range(begin, end):
            plane, y, kept = which // n.height, which % n.height, (which - begin) * n.line
            if to[i] < 0:
                move(saved, images, kept, start(origin[i], plane, y, n), n.line)
            elif origin[i] < 0:
                move(images, saved, start(to[i], plane, y, n), kept, n.line)
            else:
                move(images, images, start(to[i], plane, y, n), start(origin[i], plane, y, n), n.line)


@lru_cache(maxsize=len(_BITS))
def _loops(bits: torch.dtype) -> tuple[Any, Any, Any]:
    i64, void = types.int64, types.void
    pixel = {torch.uint8: types.uint8, torch.int16: types.int16, torch.int32: types.int32, torch.int64: i64}[bits]
    pixels, longs, layout = pixel[::1], i64[::1], types.NamedUniTuple(i64, len(Layout._fields), Layout)
    mixed = compiled(word, types.uint64(types.uint64, types.uint64))
    begin = compiled(start, i64(i64, i64, i64, layout))
    copy = compiled(move, void(pixels, pixels, i64, i64, i64))
    row = types.Array(pixel, 1, "C", readonly=True)
    drawn = compiled(noise, void(pixels, i64, types.uint64, row, pixels, layout), mixed, begin)
    each = types.NamedTuple((longs, pixel[:, ::1], longs, longs), Merged)
    mask, tables = types.uint8[::1], types.Array(pixel, 2, "C", readonly=True)
    arguments = (i64, i64, pixels, pixels, pixels, mask, each, longs, tables, pixels, i64, layout)
    bands = compiled(write_bands, void(*arguments), begin, copy, drawn)
    ordered = compiled(arrange, i64(longs, mask, longs, longs, longs))
    moved = compiled(move_lines, void(i64, i64, pixels, longs, longs, pixels, layout), begin, copy)
    return bands, ordered, moved


@lru_cache(maxsize=16)
def _tables(scales: tuple[tuple[float, float], ...], dtype: torch.dtype) -> bytes:
    """Return the noise of every draw, in the images' dtype, for each mean and spread."""
    if dtype == torch.uint8:
        levels = [torch.arange(256, dtype=dtype)]
    else:
        levels = [scale(NORMAL_LEVELS, *each, dtype) for each in scales or ((0, 1),)]
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
    last = torch.channels_last
    return images.itemsize in _BITS and (
        all(t.is_contiguous() for t in tensors)
        or (images.ndim == 4 and all(t.is_contiguous(memory_format=last) for t in tensors))
    )


def write(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> None:
    """Write the images into ``out``; see :mod:`gmml_aug.filling`."""
    bits, (batch, rows, columns), inplace = _BITS[images.itemsize], mask.shape, out is images
    bands, ordered, moved = _loops(bits)
    channels, contiguous = images.shape[-3], images.is_contiguous()
    n = Layout(
        planes=images[0, ..., 0, 0].numel() if contiguous else 1,
        rows=rows,
        columns=columns,
        height=images.shape[-2] // rows,
        line=images.shape[-1] // columns * (1 if contiguous else channels),
        channels=channels,
        interleaved=1 if contiguous else channels,
        per_word=8 if images.dtype == torch.uint8 else 4,
    )
    pixels, patches = n.planes * n.height * n.line, batch * rows * columns
    m = merged(operations, images, mask, fill)
    scales = tuple(dict.fromkeys((each.mean, each.std) for each in operations if each.kind == NOISE))
    table = torch.zeros_like(fill)
    for i, operation in enumerate(operations):
        if len(scales) > 1 and operation.kind == NOISE:
            table.masked_fill_(fill == i, scales.index((operation.mean, operation.std)))
    hidden = mask.contiguous().view(torch.uint8).view(-1)
    flat, target = _lines(images), _lines(out)
    pool = flat if donors is None else _lines(donors)
    tables = np.frombuffer(_tables(scales, images.dtype), flat.dtype).reshape(max(1, len(scales)), -1)
    each = Merged(m.kind.numpy(), m.value.view(bits).numpy(), m.source.view(-1).numpy(), m.key.numpy())

    if inplace and any(operation.kind == COPY for operation in operations):
        copied = (mask & (m.kind == COPY)[:, None, None]).view(-1).view(torch.uint8)
        to, origin = np.empty(2 * patches, np.int64), np.empty(2 * patches, np.int64)
        moves = ordered(each.source, copied.numpy(), np.zeros(patches, np.int64), to, origin)

        def some_lines(begin: int, end: int) -> None:
            moved(begin, end, flat, to[:moves], origin[:moves], np.empty((end - begin) * n.line, flat.dtype), n)

        share(n.planes * n.height, max(1, _LEAST // (moves * n.line * images.itemsize + 1)), some_lines)

    def some_bands(begin: int, end: int) -> None:
        drawn = np.empty(-(-pixels // n.per_word) * n.per_word, flat.dtype)
        bands(begin, end, flat, target, pool, hidden.numpy(), each, table.numpy(), tables, drawn, inplace, n)

    share(batch * rows, max(1, _LEAST // (columns * pixels * images.itemsize)), some_bands)
