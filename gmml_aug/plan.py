"""What is drawn for a batch before a pixel is touched: masks, fills, donors and the keys of the noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import groups, rng

_MOST_CELLS = 2**27  # int64 cells (1 GiB) that the bit sets of one image may take


class MaskPlan(NamedTuple):
    """What :meth:`GroupMask.sample` drew. Applied twice it gives the same result, to whatever images it is applied.

    For one image ``(C, H, W)`` every field lacks the dimension B.

    Attributes:
        mask: ``(B, gh, gw)`` bool, True = hidden.
        fill: ``(B,)`` int64, the place of each image's fill in ``GroupMask.fills``.
        donor: ``(B,)`` int64, the image of the batch that alien patches come from: never the image itself; -1 in a
            batch of one. Where :meth:`GroupMask.apply` is given ``donors``, :meth:`pool_donor` tells instead, and that
            is what a fill finds here.
        key: ``(B,)`` int64, from which noise, shuffled places and donors of a pool are drawn.
    """

    mask: Tensor
    fill: Tensor
    donor: Tensor
    key: Tensor

    def to(self, device: torch.device | str | int) -> MaskPlan:
        """Return the plan on another device."""
        return MaskPlan(*(field.to(device) for field in self))

    def pool_donor(self, size: int) -> Tensor:
        """Return which of ``size`` separate donors each image takes: ``(B,)`` int64, whatever the batch."""
        word: Tensor = torch.ops.gmml_aug.words(self.key.reshape(-1), rng.FILL_SLOT, 1)
        return rng.below(rng.halves(word.reshape(self.key.shape))[1], size)


def group_rank() -> int | None:
    """Return this process's rank in its process group, or None where it is in none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return None


def _stream(home_rank: int | None) -> int:
    """Return the stream of this process: 0 in a single process, and another in every worker of every rank.

    A DataLoader worker that was spawned has no process group; what was pickled with the transform tells it
    (``home_rank``). Before a process group is there, the launcher's environment does.
    """
    rank = group_rank()
    if rank is None:
        rank = home_rank
    if rank is None:
        rank = int(os.environ.get("RANK") or 0)
    worker = torch.utils.data.get_worker_info()
    return rank << 32 | (0 if worker is None else worker.id + 1)


def _draw(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: int,
    grid: Sequence[int],
    device: torch.device,
    ratio: Sequence[float],
    group_size: Sequence[int],
    inside: bool,
    p: float,
    weights: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = grid
    patches = rows * columns
    heights, widths = (group_size[0], group_size[1]), (group_size[2], group_size[3])
    least, most = round(ratio[0] * patches), round(ratio[1] * patches)
    rectangles = 0
    if least < patches:  # otherwise all are hidden, and none needs an order
        rectangles = groups.rectangles_needed(rows, columns, most, heights, widths, inside)
    if rectangles // 64 * patches > _MOST_CELLS:
        raise ValueError(
            f"hiding up to {most} of {patches} patches in groups of {heights} x {widths} takes some {rectangles} "
            "groups an image, which is more than fits; use larger groups, a lower ratio or a larger patch_size, or "
            "single patches by group_size=(1, 1)"
        )

    root: int | Tensor
    if seed is None:
        # From the generator of the images' device: nothing to copy or to wait for, and a CUDA graph replays it afresh.
        root = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    else:
        root = rng.root(seed, 0 if index is not None else _stream(home_rank))
    place = torch.arange(batch, device=device)
    if index is not None:
        samples = index.to(device, non_blocking=index.device.type == "cpu")
    elif seed is None:
        samples = place
    else:
        # A counter in host memory enters as a kernel's argument, so it costs no copy to an accelerator.
        samples = place + (counter if counter.device.type == "cpu" else counter.to(device))
    if index is None or seed is None:
        counter.add_(batch)
    key = rng.keys(root, samples)

    count = groups.counts(key, patches, (ratio[0], ratio[1]), p)
    mask = groups.masks(key, count, (rows, columns), (heights, widths), inside, rectangles)

    for_fill, for_donor = rng.halves(rng.words(key, rng.FILL_SLOT, 1)[:, 0])
    fill = torch.zeros_like(key)
    for i in range(1, len(weights)):
        fill += for_fill >= round(sum(weights[:i]) / sum(weights) * 2**32)
    donor = (place + 1 + rng.below(for_donor, batch - 1)) % batch if batch > 1 else torch.full_like(key, -1)
    return mask, fill, donor, key


def _draw_fake(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: int,
    grid: Sequence[int],
    device: torch.device,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = torch.empty((batch, *grid), dtype=torch.bool, device=device)
    fill, donor, key = (torch.empty(batch, dtype=torch.int64, device=device) for _ in range(3))
    return mask, fill, donor, key


# Drawing is one opaque operator to torch.compile, so eager and compiled numbers are equal by construction: traced, the
# generator's wrapping arithmetic overflows, and the state of workers and ranks cannot be read at all. The counter is
# written inside, with no seed too: it keeps two calls of one graph from being taken for the same value.
torch.library.define(
    "gmml_aug::draw",
    "(Tensor(a!) counter, Tensor? index, int? seed, int? home_rank, SymInt batch, SymInt[] grid, Device device, "
    "float[] ratio, int[] group_size, bool inside, float p, float[] weights) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("gmml_aug::draw", "default", _draw)
torch.library.register_fake("gmml_aug::draw", _draw_fake)
