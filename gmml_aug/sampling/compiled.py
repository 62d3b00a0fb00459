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


@lru_cache(maxsize=1)
def _loop() -> Any:
    i64, u64 = types.int64, types.uint64
    longs, pair = i64[::1], types.UniTuple(i64, 2)
    numbers = types.NamedUniTuple(i64, len(Numbers._fields), Numbers)
    word_ = compiled(word, u64(u64, u64))
    halves = compiled(sequential.halves, pair(u64, i64), word_)
    span = compiled(sequential.span, pair(u64, i64, i64, i64, i64, i64), halves)
    count = compiled(sequential.count, i64(u64, numbers), halves)
    smallest = compiled(sequential.smallest, i64(longs, i64, i64))
    drawn = (types.uint8[::1], types.int32[::1])
    arguments = (u64, numbers, *drawn, i64, longs)
    hide = compiled(sequential.hide, types.void(*arguments), halves, span, count, smallest)
    arguments = (i64, i64, longs, i64, i64, i64, numbers, longs, longs, longs, *drawn, longs)
    return compiled(sequential.draw_images, types.void(*arguments), word_, halves, hide)


def takes(root: object, samples: Samples, settings: Settings) -> bool:
    """Tell that every call is taken."""
    return True


def draw(root: int, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch; see :func:`gmml_aug.sampling.draw`."""
    n, batch, loop = settings.numbers(), samples.number, _loop()
    patches = n.rows * n.columns
    plan = samples.empty((n.rows, n.columns))
    heads = torch.empty((3, batch), dtype=torch.int64)
    index = np.empty(0, np.int64) if samples.index is None else samples.index.contiguous().numpy()
    flat, shares = heads.view(-1).numpy(), np.array(settings.shares(), np.int64)
    mask, group = plan.mask.view(torch.uint8).view(-1).numpy(), plan.group.view(-1).numpy()

    def work(begin: int, end: int) -> None:
        order = np.empty(patches, np.int64)
        loop(root, samples.first, index, begin, end, batch, n, shares, flat, flat[2 * batch :], mask, group, order)

    share(batch, max(1, _LEAST // patches), work)
    return plan._replace(**dict(zip(("fill", "donor", "key"), heads.unbind(), strict=True)))
