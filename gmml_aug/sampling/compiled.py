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

_LEAST = 2**14  # patches that are worth a thread of their own
_NO_LIMITS, _NO_VALID = np.empty(0, np.int64), np.empty(0, np.bool_)


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
    above = compiled(sequential.above, i64(longs, i64, i64))
    drawn = (types.boolean[::1], types.int32[::1])
    choice = compiled(sequential.entry, i64(i64, longs))
    asked = numbers, longs, longs, types.boolean[::1]
    hide = compiled(sequential.hide, types.void(u64, *asked, i64, *drawn, longs), halves, span, choice, count, above)
    arguments = (i64, i64, longs, i64, i64, i64, numbers, longs, *asked[1:], longs, longs, longs, *drawn, longs)
    return compiled(sequential.draw_images, types.void(*arguments), word_, halves, hide)


def takes(root: object, samples: Samples, settings: Settings) -> bool:
    """Tell that every call is taken."""
    return True


def draw(root: int, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch; see :func:`gmml_aug.sampling.draw`."""
    n, batch, loop = settings.numbers(), samples.number, _loop()
    patches = n.depth * n.rows * n.columns
    # Allocated by NumPy, which takes a fraction of the time that a view of a tensor does.
    heads = [np.empty(samples.batch, np.int64) for _ in range(3)]
    mask, group = (np.empty((*samples.batch, *settings.grid), kind) for kind in (np.bool_, np.int32))
    index = np.empty(0, np.int64) if samples.named is None else samples.named.contiguous().numpy()
    to = [field.reshape(-1) for field in (*heads, mask, group)]
    limits, valid = _NO_LIMITS, _NO_VALID
    if samples.valid is not None:
        limits, valid = (t.reshape(-1).numpy() for t in (settings.limits(samples.valid), samples.valid))

    tables = _array(settings.shares()), _array(settings.table())

    def work(begin: int, end: int) -> None:
        loop(root, samples.first, index, begin, end, batch, n, *tables, limits, valid, *to, np.empty(patches, np.int64))

    share(batch, max(1, _LEAST // patches), work)
    fill, donor, key = map(torch.from_numpy, heads)
    return MaskPlan(torch.from_numpy(mask), fill, donor, key, torch.from_numpy(group))
