"""Settings, which are asked of every image alike; and MaskPlan, drawn for a batch before a pixel is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import rng
from .shapes import ENTRY, WORD, begins, rectangles_needed, sizes_table

_MOST_CELLS = 2**31  # int64 cells of one image's bit sets: on an accelerator all are worked through


class MaskPlan(NamedTuple):
    """A plan for a batch, as :meth:`GroupMask.sample` draws it. Applied twice it gives the same result, to any images.

    For one image ``(C, H, W)`` every field lacks the dimension B. Plans may be put together and cut apart, field by
    field: ``torch.utils.data.default_collate`` makes one plan of the plans of single images. An image whose donor is
    then no other image of its batch gets a new one when the plan is applied, drawn from its key.

    Attributes:
        mask: ``(B, gh, gw)`` bool, True = hidden; ``(B, gd, gh, gw)`` for volumes, here and below.
        fill: ``(B,)`` int64, the place of each image's fill in ``GroupMask.fills``.
        donor: ``(B,)`` int64, the image of the batch that alien patches come from: never the image itself; -1 where
            there is no other. Where :meth:`GroupMask.apply` is given ``donors``, :meth:`pool_donor` tells instead, and
            that is what a fill finds here.
        key: ``(B,)`` int64, from which noise, shuffled places, donors of a pool and of groups are drawn.
        group: ``(B, gh, gw)`` int32, the number of the group that hides each patch; -1 = visible. Groups are numbered
            in the order in which they were drawn; one that lies under earlier ones hides nothing, so numbers may skip.
            With ``invert=True`` all that is hidden is group 0.
    """

    mask: Tensor
    fill: Tensor
    donor: Tensor
    key: Tensor
    group: Tensor

    def to(self, device: torch.device | str | int) -> MaskPlan:
        """Return the plan on another device."""
        return MaskPlan(*(field.to(device) for field in self))

    def pool_donor(self, size: int) -> Tensor:
        """Return which of ``size`` separate donors each image takes: ``(B,)`` int64, whatever the batch."""
        key = rng.at_hand(self.key)
        word: Tensor = torch.ops.gmml_aug.words(key.reshape(-1), rng.FILL_SLOT, 1)
        return rng.below(rng.halves(word.reshape(key.shape))[1], size).to(self.key.device)

    def group_donor(self, pool: int | None = None) -> Tensor:
        """Return the donor of the group that hides each patch: ``(B, gh, gw)`` int64; meaningless where none does.

        Args:
            pool: how many separate donors there are to take from; ``None`` takes another image of the batch, and -1
                in a batch of one.
        """
        key, group = rng.at_hand(self.key), rng.at_hand(self.group)
        every = (*key.shape, *(1,) * (group.ndim - key.ndim))
        word: Tensor = torch.ops.gmml_aug.words_at(key.view(every), group.to(torch.int64) + rng.DONOR_SLOT)
        draw = rng.halves(word)[1]
        if pool is not None:
            return rng.below(draw, pool).to(self.key.device)
        batch = 1 if key.ndim == 0 else key.shape[0]
        own = torch.arange(batch, device=draw.device).view(every)
        return rng.another(own, draw, batch).to(self.key.device)


def alone(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Return the groups of a mask ``(..., *grid)`` that nobody drew: each hidden patch is one by itself."""
    place = torch.arange(math.prod(grid), dtype=torch.int32, device=mask.device)
    return torch.where(mask, place.view(*grid), -1)


def fitted(plan: MaskPlan, fills: int) -> MaskPlan:
    """Return a plan whose donors are in its batch, on a device that has the arithmetic; refuse one of more fills.

    Args:
        plan: of a batch or of one image.
        fills: how many there are to choose from; one takes the place of whatever the plan was drawn for.

    Raises:
        ValueError: the plan was drawn for more fills. On an accelerator, which is not waited for, an assertion fails.
    """
    plan = MaskPlan(*map(rng.at_hand, plan))
    if fills == 1:
        plan = plan._replace(fill=torch.zeros_like(plan.fill))
    fill, donor, key = (each.reshape(-1) for each in (plan.fill, plan.donor, plan.key))
    donor = torch.ops.gmml_aug.fitted(fill, donor, key, fills)
    return plan._replace(donor=donor.reshape(plan.donor.shape))


def _fitted(fill: Tensor, donor: Tensor, key: Tensor, fills: int) -> Tensor:
    known = (fill >= 0) & (fill < fills)
    if fill.device.type == "cpu" and not known.all():
        raise ValueError(
            f"this plan was drawn for at least {int(fill.max()) + 1} fills, and this GroupMask has {fills}: some "
            "images would not be filled; apply it by a GroupMask with the fills of the one that drew it"
        )
    if fill.device.type == "cuda":
        torch._assert_async(known.all(), f"a plan was drawn for more fills than the {fills} of this GroupMask")
    own = torch.arange(fill.shape[0], device=fill.device)
    other = (donor >= 0) & (donor < fill.shape[0]) & (donor != own)
    draw = rng.halves(rng.words(key, rng.FILL_SLOT, 1)[:, 0])[1]
    return torch.where(other, donor, rng.another(own, draw, fill.shape[0]))


rng.operator(
    "fitted(Tensor fill, Tensor donor, Tensor key, int fills) -> Tensor",
    _fitted,
    lambda _, donor, *__: torch.empty_like(donor),
)


class Numbers(NamedTuple):
    """The settings in whole numbers: all that a backend needs beside the fills' shares."""

    axes: int  # 3, or 2 where there is one slice
    depth: int
    rows: int
    columns: int
    patches: int
    wide: int  # the largest width of a group, in patches
    inside: int  # 1: groups lie wholly on the grid; 0: they may hang over its border
    invert: int  # 1: groups are what stays visible
    rectangles: int  # how many to draw, at most
    start: int  # the lowest and the highest ratio times the patches, in units of 2^-16
    stop: int
    least: int  # the same, rounded
    most: int
    p: int  # the probability that an image is corrupted, in units of 2^-32


class Settings(NamedTuple):
    """The settings, which are asked of every image alike.

    Attributes:
        grid: (height, width) or (depth, height, width) in patches.
        ratio: (low, high) of the uniform distribution of each image's share of hidden patches.
        sizes: of a group in patches, as :func:`~gmml_aug.shapes.sizes_table` takes them.
        inside: groups lie wholly on the grid, rather than hanging over its border.
        p: probability that an image is corrupted.
        weights: of the fills.
        invert: groups are what stays visible.
        limited: only some patches of each image may be hidden.
        size_weights: of the sizes; () where these are ranges.
    """

    grid: tuple[int, ...]
    ratio: tuple[float, float]
    sizes: tuple[int, ...] | None
    inside: bool
    p: float
    weights: tuple[float, ...]
    invert: bool = False
    limited: bool = False
    size_weights: tuple[float, ...] = ()

    def numbers(self) -> Numbers:
        """Return what follows, computed once for the same settings.

        Raises:
            ValueError: they need more groups than can be drawn in good time.
        """
        return _numbers(self)

    def shares(self) -> tuple[int, ...]:
        """Return where, in units of 2^-32, each fill after the first begins."""
        return begins(self.weights)[1:]

    def table(self) -> tuple[int, ...]:
        """Return the sizes of groups as the backends read them; see :func:`~gmml_aug.shapes.sizes_table`."""
        return sizes_table(self.grid, self.sizes, self.size_weights)

    def limits(self, valid: Tensor) -> Tensor:
        """Return start, stop, least and most of :class:`Numbers` for the valid patches of each image: ``(B, 4)`` int64.

        Args:
            valid: ``(B, patches)`` bool.
        """
        low, high = (valid.sum(1).to(torch.float64) * share for share in self.ratio)
        return torch.stack([(low * 2**16).round(), (high * 2**16).round(), low.round(), high.round()], 1).to(
            torch.int64
        )


@lru_cache(maxsize=1024)
def _numbers(settings: Settings) -> Numbers:
    grid, ratio, _, inside, p, _, invert, limited, _ = settings
    depth, rows, columns = (1,) * (3 - len(grid)) + grid
    patches, table = depth * rows * columns, settings.table()
    least, most = (round(share * patches) for share in ratio)
    rectangles, (fewest, largest) = 0, (patches - most, patches - least) if invert else (least, most)
    if fewest < patches:  # otherwise all are hidden (or visible), and none needs an order
        rectangles = rectangles_needed((depth, rows, columns), largest, table, inside, limited)
    if rectangles // WORD * patches > _MOST_CELLS:
        many = f"up to {largest} of {patches} patches in groups of these sizes"
        other = " another ratio or"
        if limited:  # whatever the ratio, the valid patches may be those that groups cover last
            many, other = f"groups of these sizes that are to reach any of the {patches} patches, with valid=,", " or"
        raise ValueError(
            f"{many} take some {rectangles} groups an image, which is too many; use larger groups,{other} a "
            "larger patch_size, or single patches by group_size=(1, 1)"
        )
    start, stop = (round(share * patches * 2**16) for share in ratio)
    wide = max(low + max(sizes - 1, 0) for low, sizes in zip(table[5::ENTRY], table[6::ENTRY], strict=True))
    sides = 2 if depth == 1 else 3, depth, rows, columns, patches, wide
    return Numbers(*sides, int(inside), int(invert), rectangles, start, stop, least, most, round(p * 2**32))
