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
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from ..native import compiled, share
from ..rng import NOISE_SLOT, normal_levels, word
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


def start(patch: int, n: Layout) -> int:
    """Return where the first line of a patch begins, counting patches through all images."""
    image, place = patch // (n.rows * n.columns), patch % (n.rows * n.columns)
    down = image * n.planes * n.rows + place // n.columns
    return (down * n.height * n.columns + place % n.columns) * n.line


@intrinsic
def move(typing: Any, to: Any, origin: Any, at: Any, source: Any, length: Any) -> Any:
    """Copy some values that lie side by side, by the C library: a loop over 16 of them takes three times as long."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ends = []
        for kind, array, place in zip(signature.args[:2], arguments[:2], arguments[2:4], strict=True):
            ends.append(builder.gep(context.make_array(kind)(context, builder, array).data, [place]))
        cgutils.raw_memcpy(builder, *ends, arguments[4], to.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(to, origin, types.int64, types.int64, types.int64), build


def noise(to: Any, patch: int, key: int, table: Any, scratch: Any, lines: Any, n: Layout) -> None:
    """Write the noise of one patch, whose values are counted channel by channel."""
    drawn, _, words, draws = scratch
    width, pixels = n.line // n.interleaved, len(lines) * n.line
    number = (pixels + n.per_word - 1) // n.per_word
    first, at = NOISE_SLOT + patch % (n.rows * n.columns) * number, start(patch, n)
    for i in range(number):
        words[i] = word(key, first + i)
    for i in range(pixels):
        drawn[i] = table[draws[i]]  # the same memory, value by value
    for i in range(len(lines)):
        if n.interleaved == 1:
            move(to, drawn, at + lines[i], i * width, width)
        else:  # one plane of lines in which the channels alternate
            for channel in range(n.interleaved):
                for x in range(width):
                    to[at + lines[i] + x * n.interleaved + channel] = drawn[(channel * n.height + i) * width + x]


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
    """Write some rows of images' patches; in place without copies of the batch, which were moved before."""
    drawn, origin, _, _ = scratch
    for band in range(begin, end):
        image, first = band // n.rows, band * n.columns
        kind, band_start = m.kind[image], start(first, n)
        copied = kind == POOL or (kind == COPY and not inplace)
        for across in range(n.columns):  # where copies come from; what follows each other is moved in one go
            if copied and hidden[first + across]:
                origin[across] = start(m.source[first + across], n)
        for i in range(len(lines)):
            line, across = band_start + lines[i], 0
            if kind == CONSTANT and i % n.height == 0:  # another plane
                channel = i // n.height % n.channels
                for c in range(n.interleaved):
                    value = m.value[image, channel + c]
                    for x in range(c, n.columns * n.line, n.interleaved):
                        drawn[x] = value
            while across < n.columns:
                here, visible = across, kind < 0 or not hidden[first + across]
                across += 1
                while across < n.columns and (kind < 0 or not hidden[first + across]) == visible:
                    if copied and not visible and origin[across] != origin[across - 1] + n.line:
                        break
                    across += 1
                at, length = line + here * n.line, (across - here) * n.line
                if visible:
                    if not inplace:
                        move(out, images, at, at, length)
                elif copied:
                    move(out, pool if kind == POOL else images, at, origin[here] + lines[i], length)
                elif kind == CONSTANT:
                    move(out, drawn, at, 0, length)
        if kind == NOISE:
            for patch in range(first, first + n.columns):
                if hidden[patch]:
                    noise(out, patch, m.key[image], tables[table[image]], scratch, lines, n)


def arrange(source: Any, copied: Any, readers: Any, to: Any, origin: Any) -> int:
    """Put copies within a batch into an order in which nothing is read after it was written.

    A patch may be written once nobody has yet to read it. What is left then are circles, each of which one patch that
    is saved (-1) opens.

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
            while source[here] != patch:
                moves += 1
                to[moves], origin[moves] = here, source[here]
                copied[here] = False
                here = source[here]
            moves += 1
            to[moves], origin[moves] = here, -1
            copied[here] = False
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


@lru_cache(maxsize=len(_BITS))
def _loops(bits: torch.dtype) -> tuple[Any, Any, Any]:
    i64, void = types.int64, types.void
    pixel = {torch.uint8: types.uint8, torch.int16: types.int16, torch.int32: types.int32, torch.int64: i64}[bits]
    pixels, longs, layout = pixel[::1], i64[::1], types.NamedUniTuple(i64, len(Layout._fields), Layout)
    mixed = compiled(word, types.uint64(types.uint64, types.uint64))
    begin = compiled(start, i64(i64, layout))
    row, tables = (types.Array(pixel, dimensions, "C", readonly=True) for dimensions in (1, 2))
    draws = types.uint8 if bits == torch.uint8 else types.uint16
    scratch = types.Tuple((pixels, longs, types.uint64[::1], draws[::1]))
    drawn = compiled(noise, void(pixels, i64, types.uint64, row, scratch, longs, layout), mixed, begin)
    each = types.NamedTuple((longs, pixel[:, ::1], longs, longs), Merged)
    arguments = (i64, i64, pixels, pixels, pixels, types.boolean[::1], each, longs, tables, longs, scratch, i64, layout)
    bands = compiled(write_bands, void(*arguments), begin, drawn)
    ordered = compiled(arrange, i64(longs, types.boolean[::1], longs, longs, longs))
    moved = compiled(move_lines, void(i64, i64, pixels, longs, longs, pixels, longs, layout), begin)
    return bands, ordered, moved


@lru_cache(maxsize=16)
def _tables(scales: tuple[tuple[float, float], ...], dtype: torch.dtype) -> bytes:
    """Return the noise of every draw, in the images' dtype, for each mean and spread."""
    if dtype == torch.uint8:
        levels = [torch.arange(256, dtype=dtype)]
    else:
        levels = [scale(normal_levels(), mean, std, dtype) for mean, std in scales or ((0, 1),)]
    return torch.stack(levels).view(torch.uint8).numpy().tobytes()


def _lines(images: Tensor) -> Any:
    """Return the images' bits as they lie in memory."""
    flat = images.detach().as_strided((images.numel(),), (1,))
    return flat.view(_BITS[images.itemsize]).numpy()


def takes(
    images: Tensor, out: Tensor, mask: Tensor, fill: Tensor, operations: Sequence[Operation], donors: Tensor | None
) -> bool:
    """Tell whether the operations are known, and all images lie in memory without gaps, in the same order."""
    tensors = (images, out) if donors is None else (images, out, donors)
    last = torch.channels_last
    known = all(operation.kind in (CONSTANT, NOISE, COPY, POOL) for operation in operations)
    return (
        known
        and images.itemsize in _BITS
        and (
            all(t.is_contiguous() for t in tensors)
            or (images.ndim == 4 and all(t.is_contiguous(memory_format=last) for t in tensors))
        )
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
    lines = (np.arange(n.planes)[:, None] * rows * n.height + np.arange(n.height)).reshape(-1) * (columns * n.line)
    m = merged(operations, images, mask, fill)
    scales = tuple(dict.fromkeys((each.mean, each.std) for each in operations if each.kind == NOISE))
    table = torch.zeros_like(fill)
    for i, operation in enumerate(operations):
        if len(scales) > 1 and operation.kind == NOISE:
            table.masked_fill_(fill == i, scales.index((operation.mean, operation.std)))
    hidden = mask.contiguous().view(-1).numpy()
    flat, target = _lines(images), _lines(out)
    pool = flat if donors is None else _lines(donors)
    tables = np.frombuffer(_tables(scales, images.dtype), flat.dtype).reshape(max(1, len(scales)), -1)
    each = Merged._make(t.numpy() for t in (m.kind, m.value.view(bits), m.source.view(-1), m.key))

    if inplace and any(operation.kind == COPY for operation in operations):
        copied = (mask & (m.kind == COPY)[:, None, None]).reshape(-1)  # a mask may have any strides
        to, origin = np.empty(2 * patches, np.int64), np.empty(2 * patches, np.int64)
        moves = ordered(each.source, copied.numpy(), np.zeros(patches, np.int64), to, origin)

        def some_lines(begin: int, end: int) -> None:
            saved = np.empty((end - begin) * n.line, flat.dtype)
            moved(begin, end, flat, to[:moves], origin[:moves], saved, lines, n)

        share(len(lines), max(1, _LEAST // (moves * n.line * images.itemsize + 1)), some_lines)

    def some_bands(begin: int, end: int) -> None:
        words = np.empty(-(-pixels // n.per_word), np.uint64)
        draws = words.view(np.uint8 if n.per_word == 8 else np.uint16)
        drawn = np.empty(max(pixels, columns * n.line), flat.dtype)
        scratch = drawn, np.empty(columns, np.int64), words, draws
        bands(begin, end, flat, target, pool, hidden, each, table.numpy(), tables, lines, scratch, inplace, n)

    share(batch * rows, max(1, _LEAST // (columns * pixels * images.itemsize)), some_bands)
