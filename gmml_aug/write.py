"""Pixels: what is visible stays, what is hidden takes its fill's value.

There are three roads to the same result. Functions over all pixels, which autograd follows, take any fill and any
memory layout. For the package's own fills there are two quicker ones behind an operator: on CUDA a kernel; on a CPU,
where memory costs more than arithmetic, moves that touch little more than what is hidden: a patch is some rows of
pixels that lie side by side, and a row moves in one go.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .fills import Alien, Fill, Noise, Shuffle, Zeros
from .grid import patch_to_pixel
from .plan import MaskPlan, kernels_for

_PIECE = 2**22  # bytes of pixels for which a CPU keeps something else as well at a time, so that it stays in its caches
_KINDS = (Zeros, Noise, Alien, Shuffle)
_NUMBER = {kind: i for i, kind in enumerate(_KINDS)}  # torch 2.7 cannot compile _KINDS.index()
_BY_GROUP = len(_KINDS)  # the kind of an Alien(per="group")
_SHORTEST = 16  # bytes of a row for which an index is worth its own eight
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def write(
    images: Tensor,
    plan: MaskPlan,
    fills: Sequence[Fill],
    patch_size: tuple[int, int],
    donors: Tensor | None,
    inplace: bool,
) -> Tensor:
    """Write what a plan says.

    Args:
        images: ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
        plan: of the same batch, on the same device.
        fills: which ``plan.fill`` counts.
        patch_size: (height, width) in pixels.
        donors: ``(N, ...)`` like the images; None where aliens come from the batch.
        inplace: write into the images.

    Returns:
        The images, or new ones with their shape, dtype, device and memory format.

    Raises:
        TypeError: a fill's values do not suit the images.
    """
    tensors = (images,) if donors is None else (images, donors)
    traced = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not torch.compiler.is_compiling():  # forward mode, which the compiler refuses, and views with another sign
        traced = traced or any(t.is_neg() or forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if not traced and all(type(fill) in _KINDS for fill in fills):
        described = _described(fills)
        if inplace:
            torch.ops.gmml_aug.write_(images, *plan, donors, *described, patch_size)
            return images
        out: Tensor = torch.ops.gmml_aug.write(images, *plan, donors, *described, patch_size)
        return out
    if donors is not None:
        plan = plan._replace(donor=plan.pool_donor(len(donors)))
    # Some fills' backward passes need what they read, so it must not be written over.
    source = images.clone() if inplace and traced else images
    out = _write_whole(source, plan, fills, patch_size, source if donors is None else donors)
    return images.copy_(out) if inplace else out


def _write_whole(
    images: Tensor, plan: MaskPlan, fills: Sequence[Fill], patch_size: tuple[int, int], donors: Tensor
) -> Tensor:
    hidden = patch_to_pixel(plan.mask, patch_size)
    hidden = hidden.view(len(images), *(1,) * (images.ndim - 3), *images.shape[-2:])
    out = images
    for i, fill in enumerate(fills):
        here = hidden if len(fills) == 1 else hidden & (plan.fill == i).view(-1, *(1,) * (images.ndim - 1))
        values = fill.values(images, plan, donors)
        if not isinstance(values, Tensor):
            raise TypeError(f"the values of {fill} are a tensor; got {type(values).__name__}")
        if not _broadcasts(values.shape, images.shape):
            raise TypeError(
                f"the values of {fill} broadcast to the images' shape, {tuple(images.shape)}; got "
                f"{tuple(values.shape)}; patch_to_pixel spreads what there is for each patch"
            )
        # where() takes one or the other, so that nothing hidden, not even NaN, reaches the result or a gradient. The
        # images come first: the result has their memory format.
        out = torch.where(~here, out, values)
        if out.dtype != images.dtype:
            raise TypeError(
                f"the values of {fill} are {values.dtype} and the images {images.dtype}; return values.to(images.dtype)"
            )
    return out


def _broadcasts(shape: Sequence[int], images: Sequence[int]) -> bool:
    return len(shape) <= len(images) and all(
        side in (1, wanted) for side, wanted in zip(reversed(shape), reversed(images), strict=False)
    )


class _Rows(NamedTuple):
    """Images as rows of pixels that lie side by side in memory and belong to one patch, a view.

    ``(B, planes, H, grid's width, pixels)``: the planes are channels (and frames); with ``channels_last`` there is one,
    and the channels of each pixel lie side by side as well.
    """

    rows: Tensor
    channels_last: bool

    @property
    def flat(self) -> Tensor:
        return self.rows.flatten(0, 3)

    def hidden(self, mask: Tensor, height: int) -> Tensor:
        """Return which rows of ``flat`` are hidden, in their order: ``(n,)`` int64."""
        planes = self.rows.shape[1]
        return mask[:, None, :, None, :].expand(-1, planes, -1, height, -1).reshape(-1).nonzero()[:, 0]

    def of_patches(self, image: Tensor, place: Tensor, height: int) -> Tensor:
        """Return which rows of ``flat`` patches have, of their images and row-major places: ``(n, rows)`` int64."""
        _, planes, side, width, _ = self.rows.shape
        plane, row = torch.arange(planes, device="cpu")[:, None], torch.arange(height, device="cpu")
        begin = (image * (planes * side) + place // width * height) * width + place % width
        return begin[:, None] + ((plane * side + row) * width).view(-1)

    def arrange(self, patches: Tensor) -> Tensor:
        """Return pixels ``(n, ..., C, height, width)`` of patches as rows, in the order of :meth:`of_patches`."""
        return (patches.movedim(-3, -1) if self.channels_last else patches).reshape(-1, self.rows.shape[-1])


def _as_rows(images: Tensor, patch_size: tuple[int, int]) -> _Rows | None:
    """Return the images as rows, or None where rows are short or their pixels do not lie side by side."""
    pixels = patch_size[1]
    if images.is_contiguous():
        planes, channels_last = images.flatten(1, -3), False
    elif images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last):
        planes, channels_last = images.permute(0, 2, 3, 1).flatten(2)[:, None], True
        pixels *= images.shape[1]
    else:
        return None
    if pixels * images.itemsize < _SHORTEST:
        return None
    return _Rows(planes.unflatten(-1, (-1, pixels)), channels_last)


def _write_rows(
    images: Tensor, source: _Rows, out: _Rows, pool: _Rows | None, plan: MaskPlan, fills: Sequence[Fill], height: int
) -> None:
    """Write the images into ``out``, which may be themselves, with the package's own fills."""
    drawn = sorted(set(plan.fill.tolist()) & set(range(len(fills))))  # another module's plan may say others
    todo = {i: plan.mask if len(fills) == 1 else plan.mask & (plan.fill == i)[:, None, None] for i in drawn}
    aliens = [i for i in drawn if isinstance(fills[i], Alien) and pool is None]
    shuffled = [i for i in drawn if isinstance(fills[i], Shuffle)]
    if out is source:
        if aliens:  # first, while all others are as they were
            mask = torch.stack([todo.pop(i) for i in aliens]).any(0)
            (_aliens_in_place if plan.donor.ndim == 1 else _groups_in_place)(source, mask, plan, height)
    elif aliens or shuffled:
        # What the batch itself gives, be it visible, alien or shuffled, is read from where it is, in one go.
        away = torch.zeros((), dtype=torch.int64, device="cpu")
        for i in aliens + shuffled:
            away = torch.where(todo.pop(i), _away(fills[i], plan, source, height), away)
        _gather(source, out, away, height)
    else:
        out.rows.copy_(source.rows)

    pixels = (*images.shape[1:-2], height, images.shape[-1] // plan.mask.shape[2])  # of a patch
    for i, mask in todo.items():
        fill = fills[i]
        if isinstance(fill, Zeros) and len(fill.channels()) == 1:
            _constant(out, mask, fill.values(images, plan, images), height)
            continue
        patch_bytes = math.prod(pixels) * images.itemsize * (2 if isinstance(fill, Noise) else 1)  # and what it takes
        for image, place in _pieces(mask.flatten(1), patch_bytes, whole=isinstance(fill, Shuffle)):
            rows = out.of_patches(image, place, height)
            if isinstance(fill, Noise):
                noise = fill.patches(plan.key[image], place, math.prod(pixels), images.dtype)
                new = out.arrange(noise.view(-1, *pixels))
            elif isinstance(fill, Zeros):
                new = out.arrange(fill.values(images, plan, images).expand(len(image), *pixels))
            else:
                origin = source if isinstance(fill, Shuffle) or pool is None else pool
                away = _away(fill, plan, source, height).flatten(1)[image, place]
                new = origin.flat.index_select(0, (rows + away[:, None]).view(-1))
            out.flat.index_copy_(0, rows.view(-1), new)


def _constant(out: _Rows, mask: Tensor, value: Tensor, height: int) -> None:
    """Write one value."""
    bits, hidden = _as_bits(out, mask, height)
    if value.view(bits.dtype).any():
        out.flat.index_fill_(0, out.hidden(mask, height), value.view(()))
    else:  # no bit is set
        bits.bitwise_and_(hidden.bitwise_not_())


def _pieces(mask: Tensor, patch_bytes: int, whole: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield row and column of what is True in two dimensions, about a piece at a time, or whole rows."""
    row, column = mask.nonzero(as_tuple=True)
    step = max(1, _PIECE // patch_bytes)
    begin = 0
    while begin < len(row):
        end = min(begin + step, len(row))
        if whole:
            end = int(torch.searchsorted(row, row[end - 1], right=True))
        yield row[begin:end], column[begin:end]
        begin = end


def _away(fill: Fill, plan: MaskPlan, rows: _Rows, height: int) -> Tensor:
    """Return how many rows of ``flat`` away from a patch what it takes is, if it is hidden: ``(B, gh, gw)`` int64."""
    images, planes, side, width, _ = rows.rows.shape
    if not isinstance(fill, Shuffle):
        donor = plan.donor if plan.donor.ndim == 3 else plan.donor[:, None, None]
        own = torch.arange(images, device="cpu")[:, None, None]
        return ((donor - own) * (planes * side * width)).expand(plan.mask.shape)
    patch = fill.sources(plan)
    place = torch.arange(patch.shape[1], device="cpu")
    down, across = patch // width - place // width, patch % width - place % width
    return (down * (height * width) + across).view(plan.mask.shape)


def _gather(source: _Rows, out: _Rows, away: Tensor, height: int) -> None:
    """Write each row from as many rows away as its patch says."""
    written = out.flat.zero_()  # so that the system provides fresh memory in large steps: measured, a fifth faster
    short = torch.int32 if len(written) < 2**31 else torch.int64
    row = torch.arange(len(written), dtype=short, device="cpu")
    row.view(len(away), -1, away.shape[1], height, away.shape[2]).add_(away.to(short)[:, None, :, None, :])
    torch.index_select(source.flat, 0, row, out=written)


def _as_bits(images: _Rows, mask: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Return the images' bits ``(B, planes, gh, height, pixels)`` and, to broadcast, all those of hidden ones."""
    batch, planes, _, width, pixels = images.rows.shape
    bits = images.rows.view(_BITS[images.rows.itemsize]).view(batch, planes, -1, height, width * pixels)
    # Whole lines of pixels, so that a processor works on many at a time.
    hidden = mask.to(bits.dtype).neg_()[..., None].expand(-1, -1, -1, pixels).contiguous()
    return bits, hidden.view(batch, 1, -1, 1, width * pixels)


def _groups_in_place(images: _Rows, mask: Tensor, plan: MaskPlan, height: int) -> None:
    """Write aliens, with a donor for each patch, into the batch that they come from.

    A donor's patch is at the same place, so those of one place in all images are read, then written.
    """
    every = _away(Alien(), plan, images, height).flatten(1)
    patch_bytes = images.rows[0].nbytes // max(1, mask[0].numel())
    for place, image in _pieces(mask.flatten(1).t(), patch_bytes, whole=True):
        rows = images.of_patches(image, place, height)
        away = rows + every[image, place][:, None]
        images.flat.index_copy_(0, rows.view(-1), images.flat.index_select(0, away.view(-1)))


def _aliens_in_place(images: _Rows, mask: Tensor, plan: MaskPlan, height: int) -> None:
    """Write aliens into the batch that they come from, by bands of the same rows of every image."""
    bits, hidden = _as_bits(images, mask, height)
    step = max(1, _PIECE // max(1, 2 * bits[:, 0, 0].nbytes))
    for plane, top in itertools.product(range(bits.shape[1]), range(0, bits.shape[2], step)):
        band, here = bits[:, plane, top : top + step], hidden[:, 0, top : top + step]
        # torch.where() on the bits, x ^ ((x ^ y) & here), which takes a CPU less time.
        band.bitwise_xor_(band.index_select(0, plan.donor).bitwise_xor_(band).bitwise_and_(here))


def _described(fills: Sequence[Fill]) -> tuple[list[int], list[float]]:
    """Return the package's own fills as an operator takes them: their kinds, and as many numbers for each."""
    width = max([2, *(len(fill.channels()) for fill in fills if isinstance(fill, Zeros))])
    values: list[float] = []
    for fill in fills:
        numbers: tuple[float, ...] = ()
        if isinstance(fill, Zeros):
            numbers = fill.channels() if len(fill.channels()) > 1 else fill.channels() * width
        elif isinstance(fill, Noise):
            numbers = (fill.mean, fill.std)
        values += (*map(float, numbers), *(0.0,) * (width - len(numbers)))
    return [_kind(fill) for fill in fills], values


def _kind(fill: Fill) -> int:
    return _BY_GROUP if isinstance(fill, Alien) and fill.per == "group" else _NUMBER[type(fill)]


def _fills(kinds: Sequence[int], values: Sequence[float], channels: int) -> list[Fill]:
    """Return the fills that were described."""
    width, fills = len(values) // len(kinds), list[Fill]()
    for i, kind in enumerate(kinds):
        numbers = tuple(values[i * width : (i + 1) * width])
        if kind == _BY_GROUP:
            fills.append(Alien("group"))
        elif _KINDS[kind] is Zeros:
            by_channel = tuple(numbers[min(channel, width - 1)] for channel in range(channels))
            same = len(set(map(repr, by_channel))) <= 1  # -0.0 is another
            fills.append(Zeros(numbers[0] if same else by_channel))
        else:
            fills.append(Noise(*numbers[:2]) if _KINDS[kind] is Noise else _KINDS[kind]())
    return fills


def share_memory(images: Tensor, donors: Tensor) -> bool:
    """Tell whether two tensors may lie in the same memory."""
    begins, ends = [], []
    for tensor in (images, donors):
        reach = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        begins.append(tensor.data_ptr())
        ends.append(tensor.data_ptr() + reach * tensor.itemsize)
    return max(begins) < min(ends)


def _by_patch(plan: MaskPlan, kinds: Sequence[int], donors: Tensor | None) -> MaskPlan:
    """Return the plan with a donor for each patch, ``(B, gh, gw)``, where some of the fills have one for each group."""
    grouped = torch.zeros_like(plan.fill, dtype=torch.bool)
    for i, kind in enumerate(kinds):
        if kind == _BY_GROUP:
            grouped |= plan.fill == i
    donor = plan.donor if donors is None else plan.pool_donor(len(donors))
    by_group = plan.group_donor(None if donors is None else len(donors))
    return plan._replace(donor=torch.where(grouped[:, None, None], by_group, donor[:, None, None]))


def _write_into(
    images: Tensor,
    out: Tensor,
    mask: Tensor,
    fill: Tensor,
    donor: Tensor,
    key: Tensor,
    group: Tensor,
    donors: Tensor | None,
    kinds: Sequence[int],
    values: Sequence[float],
    patch_size: Sequence[int],
) -> None:
    """Write the images into ``out``, which may be themselves, by the quickest road that takes them."""
    if not images.numel():
        return
    if out is images and donors is not None and share_memory(images, donors):
        donors = donors.clone()
    plan, patch = MaskPlan(mask, fill, donor, key, group), (patch_size[0], patch_size[1])
    kernels = kernels_for(images.device)
    if kernels is not None and kernels.can_write(images, out, kinds, patch, donors):
        sources = Shuffle().sources(plan) if _KINDS.index(Shuffle) in kinds else None
        by_patch = _by_patch(plan, kinds, donors) if _BY_GROUP in kinds else plan
        plain = [_KINDS.index(Alien) if kind == _BY_GROUP else kind for kind in kinds]
        kernels.write(images, out, by_patch, sources, donors, plain, values)
        if out is images and not images.is_inference():
            torch.autograd.graph.increment_version(images)  # as torch's own functions do, for autograd to see
        return
    fills = _fills(kinds, values, images.shape[-3])
    if donors is not None:
        plan = plan._replace(donor=plan.pool_donor(len(donors)))
    if images.device.type == "cpu":
        source = _as_rows(images, patch)
        target = source if out is images else _as_rows(out, patch)
        pool = source if donors is None else _as_rows(donors, patch)
        if source and target and pool and source.channels_last == target.channels_last == pool.channels_last:
            by_patch = _by_patch(plan, kinds, donors) if _BY_GROUP in kinds else plan
            _write_rows(images, source, target, None if donors is None else pool, by_patch, fills, patch[0])
            return
    out.copy_(_write_whole(images, plan, fills, patch, images if donors is None else donors))


def _write_op(images: Tensor, *arguments: Any) -> Tensor:
    out = torch.empty_like(images)
    _write_into(images, out, *arguments)
    return out


def _write_op_(images: Tensor, *arguments: Any) -> None:
    _write_into(images, images, *arguments)


# Opaque to torch.compile, so that a compiled call takes the quick roads as well.
_ARGUMENTS = (
    "Tensor mask, Tensor fill, Tensor donor, Tensor key, Tensor group, Tensor? donors, int[] kinds, float[] values, "
    "SymInt[] patch_size"
)
torch.library.define("gmml_aug::write", f"(Tensor images, {_ARGUMENTS}) -> Tensor")
torch.library.impl("gmml_aug::write", "default", _write_op)
torch.library.register_fake("gmml_aug::write", lambda images, *_: torch.empty_like(images))
torch.library.define("gmml_aug::write_", f"(Tensor(a!) images, {_ARGUMENTS}) -> ()")
torch.library.impl("gmml_aug::write_", "default", _write_op_)
torch.library.register_fake("gmml_aug::write_", lambda images, *_: None)
