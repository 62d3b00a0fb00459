"""What is drawn for a batch before a pixel is touched: groups and masks, fills, donors and the keys of the noise."""

from __future__ import annotations

import importlib.util
import os
import warnings
from array import array
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import groups, rng, single

_MOST_CELLS = 2**27  # int64 cells (1 GiB) that the bit sets of one image may take
_FEW_RECTANGLES, _FEW_PATCHES = 1024, 4096  # are drawn in Python's integers on a CPU: measured, see benchmarks/
_AHEAD, _AHEAD_PATCHES = 64, 1024  # so many samples of a counted stream are drawn at once, on grids up to this size


class MaskPlan(NamedTuple):
    """What :meth:`GroupMask.sample` drew. Applied twice it gives the same result, to whatever images it is applied.

    For one image ``(C, H, W)`` every field lacks the dimension B.

    Attributes:
        mask: ``(B, gh, gw)`` bool, True = hidden.
        fill: ``(B,)`` int64, the place of each image's fill in ``GroupMask.fills``.
        donor: ``(B,)`` int64, the image of the batch that alien patches come from: never the image itself; -1 in a
            batch of one. Where :meth:`GroupMask.apply` is given ``donors``, :meth:`pool_donor` tells instead, and that
            is what a fill finds here.
        key: ``(B,)`` int64, from which noise, shuffled places, donors of a pool and of groups are drawn.
        group: ``(B, gh, gw)`` int32, the number of the group that hides each patch; -1 = visible. Groups are numbered
            in the order in which they were drawn; one that lies under earlier ones hides nothing, so numbers may skip.
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
        word: Tensor = torch.ops.gmml_aug.words(self.key.reshape(-1), rng.FILL_SLOT, 1)
        return rng.below(rng.halves(word.reshape(self.key.shape))[1], size)

    def group_donor(self, pool: int | None = None) -> Tensor:
        """Return the donor of the group that hides each patch: ``(B, gh, gw)`` int64; of no meaning where none does.

        Args:
            pool: how many separate donors there are to take from; ``None`` takes another image of the batch, and -1
                in a batch of one.
        """
        slot = self.group.to(torch.int64) + rng.DONOR_SLOT
        word: Tensor = torch.ops.gmml_aug.words_at(self.key[..., None, None], slot)
        draw = rng.halves(word)[1]
        if pool is not None:
            return rng.below(draw, pool)
        batch = 1 if self.key.ndim == 0 else len(self.key)
        own = torch.arange(batch, device=draw.device).view(*self.key.shape, 1, 1)
        return rng.another(own, draw, batch)


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


@lru_cache(maxsize=16)
def kernels_for(device: torch.device) -> ModuleType | None:
    """Return :mod:`gmml_aug.kernels` where it runs: on a GPU of compute capability 8.0 or more, with Triton."""
    if device.type != "cuda" or torch.version.hip or importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        kernels = importlib.import_module(".kernels", __package__)
        kernels.draw(0, 0, None, 1, device, Settings((2, 2), (0.5, 0.5), ((1, 1), (1, 1)), False, 1.0, (1.0,), 0))
    except Exception as error:  # no C compiler, say, which Triton needs at run time
        warnings.warn(f"gmml_aug does without its Triton kernels, which failed here: {error}", stacklevel=2)
        return None
    return kernels


class Settings(NamedTuple):
    """What is asked of every image alike; group sizes are (smallest, largest) for the height and for the width."""

    grid: tuple[int, int]
    ratio: tuple[float, float]
    group_size: tuple[tuple[int, int], tuple[int, int]]
    inside: bool
    p: float
    weights: tuple[float, ...]
    rectangles: int  # how many to draw

    def shares(self) -> list[int]:
        """Return where, in units of 2^-32, each fill after the first begins."""
        return [round(sum(self.weights[:i]) / sum(self.weights) * 2**32) for i in range(1, len(self.weights))]


Drawn = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # the fields of a MaskPlan


def _draw_batch(root: int | Tensor, samples: Tensor, settings: Settings) -> Drawn:
    batch, (rows, columns) = len(samples), settings.grid
    key = rng.keys(root, samples)
    head = rng.words(key, 0, rng.RECTANGLE_SLOT)
    count = groups.counts(head[:, rng.COUNT_SLOT], rows * columns, settings.ratio, settings.p)
    backwards = head[:, rng.CUT_SLOT] < 0
    group = groups.hide(key, count, backwards, settings.grid, settings.group_size, settings.inside, settings.rectangles)
    for_fill, for_donor = rng.halves(head[:, rng.FILL_SLOT])
    fill = torch.zeros_like(key)
    for share in settings.shares():
        fill += for_fill >= share
    donor = rng.another(torch.arange(batch, device=key.device), for_donor, batch)
    return group >= 0, fill, donor, key, group


def _draw_few(root: int, samples: list[int], settings: Settings) -> Drawn:
    """Draw image by image: the same bits, and quicker for a few of them."""
    batch, (rows, columns) = len(samples), settings.grid
    shares = settings.shares()
    hidden, fills, donors, keys = array("i"), array("q"), array("q"), array("q")
    for place, sample in enumerate(samples):
        key = rng.mix(root + sample * rng.GAMMA)
        backwards = rng.mix(key + rng.CUT_SLOT * rng.GAMMA) >> 63 == 1
        count = single.count(rng.mix(key), rows * columns, settings.ratio, settings.p)
        numbers = single.hide(
            key, count, backwards, settings.grid, settings.group_size, settings.inside, settings.rectangles
        )
        if numbers is None:
            return _draw_batch(root, torch.tensor([rng.signed(s) for s in samples], device="cpu"), settings)
        hidden += numbers
        for_fill, for_donor = divmod(rng.mix(key + rng.FILL_SLOT * rng.GAMMA), 2**32)
        fills.append(sum(for_fill >= share for share in shares))
        donors.append((place + 1 + (for_donor * (batch - 1) >> 32)) % batch if batch > 1 else -1)
        keys.append(rng.signed(key))
    fill, donor, key_ = (torch.frombuffer(numbers, dtype=torch.int64) for numbers in (fills, donors, keys))
    group = torch.frombuffer(hidden, dtype=torch.int32).view(batch, rows, columns)
    return group >= 0, fill, donor, key_, group


@lru_cache(maxsize=64)
def _singles(root: int, settings: Settings) -> list[int]:
    """Return the number of the last single image that was drawn so, and how many came close to each other."""
    return [-3, 0]


@lru_cache(maxsize=64)
def _draw_ahead(root: int, block: int, settings: Settings) -> Drawn:
    samples = torch.arange(_AHEAD, device="cpu") + rng.signed(block * _AHEAD)
    return _draw_batch(root, samples, settings)


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
) -> Drawn:
    rows, columns = grid
    patches = rows * columns
    heights, widths = (group_size[0], group_size[1]), (group_size[2], group_size[3])
    least, most = round(ratio[0] * patches), round(ratio[1] * patches)
    rectangles = 0
    if least < patches:  # otherwise all are hidden, and none needs an order
        rectangles = groups.rectangles_needed(rows, columns, most, heights, widths, inside)
    if rectangles // groups.WORD * patches > _MOST_CELLS:
        raise ValueError(
            f"hiding up to {most} of {patches} patches in groups of {heights} x {widths} takes some {rectangles} "
            "groups an image, which is more than fits; use larger groups, a lower ratio or a larger patch_size, or "
            "single patches by group_size=(1, 1)"
        )
    settings = Settings((rows, columns), (ratio[0], ratio[1]), (heights, widths), inside, p, tuple(weights), rectangles)

    root: int | Tensor
    if seed is None:
        # From the generator of the images' device: nothing to copy or to wait for, and a CUDA graph replays it afresh.
        root = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    else:
        root = rng.root(seed, 0 if index is not None else _stream(home_rank))
    first: int | Tensor = 0
    if index is None and seed is not None:
        # A counter in host memory enters as a kernel's argument, so it costs no copy to an accelerator.
        first = int(counter) if counter.device.type == "cpu" else counter.to(device)
    on_host = device.type == "cpu" and isinstance(first, int) and (index is None or index.device.type == "cpu")
    if index is not None:
        index = index.to(device, non_blocking=index.device.type == "cpu")
    one_by_one = False
    if on_host and batch == 1 and index is None and isinstance(root, int) and patches <= _AHEAD_PATCHES:
        row = _singles(root, settings)
        if row[0] != first:  # the same one once more is what a second view or its twin draws
            row[:] = int(first), row[1] + 1 if 0 < int(first) - row[0] <= 2 else 0
        one_by_one = row[1] > 1  # not where each image has another ratio: what was drawn ahead would be for nothing
    if one_by_one:  # as a DataLoader's worker counts them, so that the next ones will be asked for as well
        block, place = divmod(int(first), _AHEAD)
        ahead = _draw_ahead(int(root), block, settings)
        mask, fill, _, key, group = (field[place : place + 1].clone() for field in ahead)
        drawn = mask, fill, torch.full_like(key, -1), key, group
    elif on_host and 0 < batch * rectangles <= _FEW_RECTANGLES and patches <= _FEW_PATCHES:
        numbers = index.tolist() if index is not None else list(range(int(first), int(first) + batch))
        drawn = _draw_few(int(root), numbers, settings)
    elif (kernels := kernels_for(device)) and patches <= kernels.MOST_PATCHES:
        drawn = kernels.draw(root, first, index, batch, device, settings)
    else:
        samples = torch.arange(batch, device=device) + first if index is None else index
        drawn = _draw_batch(root, samples, settings)
    if index is None or seed is None:
        counter.add_(batch)
    return drawn


def _draw_fake(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: int,
    grid: Sequence[int],
    device: torch.device,
    *_: object,
) -> Drawn:
    mask, group = (torch.empty((batch, *grid), dtype=dtype, device=device) for dtype in (torch.bool, torch.int32))
    fill, donor, key = (torch.empty(batch, dtype=torch.int64, device=device) for _ in range(3))
    return mask, fill, donor, key, group


# Drawing is one opaque operator to torch.compile, so eager and compiled numbers are equal by construction: traced, the
# generator's wrapping arithmetic overflows, and the state of workers and ranks cannot be read at all. The counter is
# written inside, with no seed too: it keeps two calls of one graph from being taken for the same value.
torch.library.define(
    "gmml_aug::draw",
    "(Tensor(a!) counter, Tensor? index, int? seed, int? home_rank, SymInt batch, SymInt[] grid, Device device, "
    "float[] ratio, int[] group_size, bool inside, float p, float[] weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("gmml_aug::draw", "default", _draw)
torch.library.register_fake("gmml_aug::draw", _draw_fake)
