"""A whole batch by torch functions, on any device: the bits of the sequential definition, in integer arithmetic alone.

Many rectangles of many images are drawn at once, and each patch takes the number of the first rectangle that covers it;
hiding the first n patches in the order of these numbers is what the loop would have done, with the last rectangle cut
to reach n exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..plan import MaskPlan, Numbers, Settings
from ..shapes import ENTRY, WORD
from . import Samples, numbers_on

_CPU_CELLS = 2**17  # int64 cells that one step of a batch may use on a CPU: its tensors then stay in the caches
_CELLS = 2**22  # the same elsewhere, a limit on memory


def takes(root: object, samples: Samples, settings: Settings) -> bool:
    """Tell that every call is taken."""
    return True


def draw(root: int | Tensor, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch; see :mod:`gmml_aug.sampling`."""
    n, batch = settings.numbers(), samples.number
    own = torch.arange(batch, device=samples.device)
    key = rng.keys(root, own + samples.first if samples.named is None else samples.named)
    head = rng.words(key, 0, rng.RECTANGLE_SLOT)
    for_fill, for_donor = rng.halves(head[:, rng.FILL_SLOT])
    fill = torch.zeros_like(key)
    for share in settings.shares():
        fill += for_fill >= share
    donor = rng.another(own, for_donor, batch)
    limits = None if samples.valid is None else settings.limits(samples.valid)
    count = counts(head[:, rng.COUNT_SLOT], n, limits)
    covered = count
    if n.invert:
        total = n.patches if samples.valid is None else samples.valid.sum(1)
        covered = torch.where(count > 0, total - count, 0)
    group = hide(key, covered, head[:, rng.CUT_SLOT] < 0, samples.valid, n, settings.table())
    if n.invert:
        hidden = (group < 0) & (count > 0)[:, None]
        group = (hidden if samples.valid is None else hidden & samples.valid).to(torch.int32) - 1
    group = group.view(*samples.batch, *settings.grid)
    fill, donor, key = (each.view(samples.batch) for each in (fill, donor, key))
    return MaskPlan(group >= 0, fill, donor, key, group)


def counts(word: Tensor, n: Numbers, limits: Tensor | None = None) -> Tensor:
    """Return how many patches each image hides, of a random word each: ``(B,)`` int64 both."""
    for_ratio, for_p = rng.halves(word)
    bounds: Any = (n.start, n.stop, n.least, n.most) if limits is None else limits.unbind(1)
    start, stop, least, most = bounds
    exact = start + (((for_ratio >> 8) * (stop - start)) >> 24)
    count = (exact + 2**15) >> 16
    tie = (exact & 0xFFFF) == 2**15
    count = (count - (tie & (count % 2 == 1)).to(torch.int64)).clamp(least, most)
    return torch.where(for_p < n.p, count, 0)


def _bit_sets(key: Tensor, begin: int, n: Numbers, sizes: tuple[int, ...]) -> list[Tensor]:
    """Draw ``n.rectangles`` from number ``begin`` on: which of them cover each place of each axis, as bits.

    Returns:
        ``(B, n.rectangles / 63, side)`` int64 for each axis.
    """
    # An axis of n patches has n + 1 cells, the last one for spans that end with the grid; the cells of the axes follow
    # each other, and those of the next 63 rectangles follow these. Below, a column for each rectangle and axis.
    each = (n.depth, n.rows, n.columns)[3 - n.axes :]
    cells, k = sum(each) + n.axes, torch.arange(n.rectangles, device=key.device)[:, None]
    sides = numbers_on(each, key.device)
    before = numbers_on(tuple(sum(each[:i]) + i for i in range(n.axes)), key.device)
    places = (sides + (1 if n.inside else -1)).repeat(n.rectangles)  # there are so many, without the group's size
    start = (k // WORD * cells + before).flatten()
    end = start + sides.repeat(n.rectangles)
    bit = (torch.ones_like(k) << k % WORD).expand(-1, n.axes).flatten()
    entries = numbers_on(sizes, key.device).view(-1, ENTRY)
    table, begins = entries[:, ENTRY - 2 * n.axes :], entries[:, 0].contiguous()
    word = rng.words(key, rng.RECTANGLE_SLOT + n.axes * begin, n.axes * n.rectangles)
    if len(table) == 1:
        table = table.expand(n.rectangles, -1)
    else:
        entry = torch.searchsorted(begins, rng.halves(word[:, :: n.axes].contiguous())[0], right=True) - 1
        table = table[entry]
    low, many = table[..., ::2].flatten(-2), table[..., 1::2].flatten(-2)
    smallest = (low << 32) + many * 2**31  # and half of the sizes, for a signed draw
    size = (word >> 32).mul_(many).add_(smallest).bitwise_right_shift_(32)  # the upper half, signed
    place = word.bitwise_and_(2**32 - 1)
    if any(0 in sizes[i::ENTRY] for i in (2, 4, 6)):  # from end to end: the middle one of all places
        place.masked_fill_(many == 0, 2**31)
    if n.inside:
        first = place.mul_(places - size).bitwise_right_shift_(32).add_(start)
        last = first + size
    else:
        last = place.mul_(places + size).bitwise_right_shift_(32).add_(start).add_(1)
        first = torch.maximum(last - size, start)
        last = torch.minimum(last, end)
    # A span adds its bit where it begins and takes it away where it ends, so a running sum holds it in between. Every
    # span has a bit of its own, therefore nothing carries.
    steps = word.new_zeros(len(key), n.rectangles // WORD * cells)
    steps.scatter_add_(1, first, bit.expand_as(first)).scatter_add_(1, last, (-bit).expand_as(last))
    sets = steps.view(len(key), n.rectangles // WORD, cells).cumsum(2)
    return [part[..., :-1] for part in sets.split([side + 1 for side in each], 2)]


def _first(axes: Sequence[Tensor]) -> Tensor:
    """Return the number of the first rectangle that covers each patch.

    Args:
        axes: which of some rectangles cover each place of each axis, ``(B, rectangles / 63, side)`` int64 each.

    Returns:
        ``(B, patches)`` int32, row-major; their number where no rectangle covers the patch.
    """
    covering = axes[0]
    for axis in axes[1:]:
        covering = (covering[..., :, None] & axis[..., None, :]).flatten(2)
    covering &= -covering  # the lowest bit
    # A power of two is exact in float32, and its exponent is the number of the bit; without one it is -127.
    bit = covering.to(torch.float32).view(torch.int32)
    bit.bitwise_right_shift_(23).sub_(127).bitwise_and_(2**30 - 1)
    words = bit.shape[1]
    if words > 1:
        bit = bit.add_(torch.arange(words, device=bit.device, dtype=torch.int32)[:, None] * WORD).amin(1, keepdim=True)
    return bit.clamp_(max=words * WORD).flatten(1)


def _covered(
    key: Tensor, count: Tensor, valid: Tensor | None, n: Numbers, sizes: tuple[int, ...]
) -> tuple[Tensor, int]:
    """Return the number of the first rectangle that covers each patch, ``(B, patches)`` int32, and how many were drawn.

    That many is also the number of a patch that none of them covers. A CPU draws no more of them than the counts need;
    elsewhere all are drawn, since to ask would be to wait.
    """
    on_cpu, patches = key.device.type == "cpu", n.patches
    step = max(1, (_CPU_CELLS if on_cpu else _CELLS) // (max(1, len(key)) * patches)) * WORD
    drawn = min(step, n.rectangles)
    group = _first(_bit_sets(key, 0, n._replace(rectangles=drawn), sizes))
    while drawn < n.rectangles:
        if on_cpu:
            covered = group < drawn if valid is None else (group < drawn) & valid
            if bool((covered.sum(1) >= count).all()):
                break
        more = n._replace(rectangles=min(step, n.rectangles - drawn))
        group = torch.where(group == drawn, _first(_bit_sets(key, drawn, more, sizes)).add_(drawn), group)
        drawn += more.rectangles
    return group, drawn


def _random(key: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """Choose ``count`` ``(B, 1)`` of the patches ``among`` ``(B, patches)`` bool at random."""
    patches = among.shape[1]
    rank = rng.words(key, rng.PATCH_SLOT, patches).bitwise_and_(2**20 - 1)
    order = (rank << 22).add_(torch.arange(patches, device=key.device))  # unique: 2^22 places
    order.masked_fill_(~among, 2**63 - 1)
    last = order.sort(1).values.gather(1, (count - 1).clamp(min=0))
    return (order <= last).logical_and_(count > 0)


def hide(
    key: Tensor, count: Tensor, backwards: Tensor, valid: Tensor | None, n: Numbers, table: tuple[int, ...]
) -> Tensor:
    """Draw which patches are hidden, and by which group.

    Args:
        key: ``(B,)`` int64, one for each image.
        count: ``(B,)`` int64, how many patches each image hides.
        backwards: ``(B,)`` bool, which images have their last group cut from its beginning rather than from its end.
        valid: ``(B, patches)`` bool, which patches may be hidden; None where all may.
        n: the settings' numbers.
        table: the sizes of groups.

    Returns:
        ``(B, patches)`` int32: the number of the rectangle that hides each patch, the first of those that cover
        it; ``n.rectangles`` + the row-major place for a patch that is hidden by itself; -1 for visible ones.
    """
    patches = n.patches
    cells = len(key) * max(patches * max(1, n.rectangles // WORD), n.axes * n.rectangles)
    parts = -(-cells // (_CPU_CELLS if key.device.type == "cpu" else _CELLS))
    if parts > 1 and len(key) > 1:
        some: list[Any] = [
            [None] * parts if t is None else t.tensor_split(parts) for t in (key, count, backwards, valid)
        ]
        return torch.cat([hide(k, c, b, v, n, table) for k, c, b, v in zip(*some, strict=True) if len(k)])
    count, backwards = count[:, None], backwards[:, None]
    alone = torch.arange(n.rectangles, n.rectangles + patches, dtype=torch.int32, device=key.device)
    if not n.rectangles:
        among = valid
        if among is None:
            among = torch.ones((), dtype=torch.bool, device=key.device).expand(len(key), patches)
        return torch.where(_random(key, count, among), alone, -1)
    group, drawn = _covered(key, count[:, 0], valid, n, table)
    if valid is not None:
        group.masked_fill_(~valid, drawn + 1)  # after all that may be hidden
    first = group.to(torch.int64)
    # How many patches each rectangle adds, and the one with which the count is reached.
    adds = first.new_zeros(len(key), drawn + 2)
    adds.scatter_add_(1, first, first.new_ones(()).expand_as(first))
    total = adds.cumsum(1)
    last = torch.searchsorted(total, count)
    whole = adds.gather(1, last)
    rest = count - total.gather(1, last) + whole
    # Of the last one `rest` patches are hidden, from its beginning or its end.
    rank = (first == last).cumsum(1)
    rank.mul_(1 - 2 * backwards.to(torch.int64)).add_((whole + 1) * backwards)
    hidden = rank.add_(first, alpha=2**23) <= last * 2**23 + rest  # a rank is at most 2^22
    ran_out = last == drawn
    if key.device.type != "cpu" or bool(ran_out.any()):
        uncovered = first == drawn
        hidden = torch.where(ran_out, (first < drawn) | _random(key, rest, uncovered), hidden)
        group = torch.where(uncovered, alone, group)
    return torch.where(hidden, group, -1)
