"""The sequential definition compiled by Numba, for batches of any size on a CPU."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import types

from ..native import compiled, share
from ..plan import MaskPlan, Numbers, Settings
from ..rng import word
from . import Samples, sequential

_LEAST = 2**16  # patches that are worth a thread of their own: 256 masks of 14x14 take 317 us with two, 254 with one
_NO_NUMBERS, _NO_VALID = np.empty(0, np.int64), np.empty(0, np.bool_)


@lru_cache(maxsize=256)
def _array(numbers: tuple[int, ...]) -> Any:
    return np.array(numbers, np.int64)


@lru_cache(maxsize=1)
def _loop() -> Any:
    i64, u64 = types.int64, types.uint64
    longs, pair = i64[::1], types.UniTuple(i64, 2)
    numbers = types.NamedUniTuple(i64, len(Numbers._fields), Numbers)
    word_ = compiled(word, u64(u64, u64))
    halves = compiled(sequential.halves, pair(u64, i64), word_)
    span = compiled(sequential.span, pair(u64, i64, i64, i64, i64, i64), halves)
    count = compiled(sequential.count, i64(u64, numbers, longs, i64), halves)
    cutoff = compiled(sequential.cutoff, i64(longs, i64, i64))
    drawn = types.int32[::1], longs
    choice = compiled(sequential.entry, i64(i64, longs))
    asked = numbers, longs, longs, types.boolean[::1]
    hide = compiled(sequential.hide, types.void(u64, *asked, i64, *drawn), halves, span, choice, count, cutoff)
    arguments = (i64, i64, longs, i64, i64, i64, numbers, longs, *asked[1:], longs, longs, longs, *drawn)
    return compiled(sequential.draw_images, types.void(*arguments), word_, halves, hide)


def takes(root: object, samples: Samples, settings: Settings) -> bool:
    """Tell that every call is taken."""
    return True


def draw(root: int, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch; see :mod:`gmml_aug.sampling`."""
    n, batch, loop = settings.numbers(), samples.number, _loop()
    patches, shares, table = n.patches, _array(settings.shares()), _array(settings.table())
    # Allocated by NumPy, flat, which takes a fraction of the time that views of tensors do.
    fill, donor, key = np.empty(batch, np.int64), np.empty(batch, np.int64), np.empty(batch, np.int64)
    group = np.empty(batch * patches, np.int32)
    group.fill(-1)
    index = _NO_NUMBERS if samples.named is None else samples.named.contiguous().numpy()
    limits, valid = _NO_NUMBERS, _NO_VALID
    if samples.valid is not None:
        limits, valid = (t.reshape(-1).numpy() for t in (settings.limits(samples.valid), samples.valid))

    def work(begin: int, end: int) -> None:
        order = np.empty(patches, np.int64)
        asked = root, samples.first, index, begin, end, batch, n, shares, table, limits, valid
        loop(*asked, fill, donor, key, group, order)

    share(batch, max(1, _LEAST // patches), work)
    each, grid, tensor = samples.batch, (*samples.batch, *settings.grid), torch.from_numpy
    heads = tensor(fill.reshape(each)), tensor(donor.reshape(each)), tensor(key.reshape(each))
    return MaskPlan(tensor((group >= 0).reshape(grid)), *heads, tensor(group.reshape(grid)))
