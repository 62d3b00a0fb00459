"""Checks of all that is passed to GroupMask, with their errors; and the images within a sample."""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import dispatches, mapped
from .filling import share_memory
from .filling.fills import as_weights
from .grid import grid_size, is_int
from .plan import MaskPlan
from .rng import signed

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
_MOST_PATCHES = 2**22  # what the order of the patches has bits for


def check_dimensions(shape: Sequence[int], axes: int) -> None:
    """Refuse what is no shape of images, or with three axes of volumes."""
    if axes == 3 and len(shape) not in (4, 5):
        raise ValueError(
            "with three sides of a patch, images are volumes (B, C, D, H, W) or one volume (C, D, H, W); got "
            f"{tuple(shape)}"
        )
    if axes == 2 and len(shape) not in (3, 4, 5):
        raise ValueError(f"images are (B, C, H, W), one image (C, H, W) or clips (B, T, C, H, W); got {tuple(shape)}")
    if min(shape) < 0:
        raise ValueError(f"a shape has no negative sizes; got {tuple(shape)}")
    if axes == 2 and len(shape) == 5 and 1 <= shape[1] <= 4 < shape[2]:
        raise ValueError(
            f"{tuple(shape)} would be clips (B, T, C, H, W) of {shape[1]} frames and {shape[2]} channels; for volumes "
            "(B, C, D, H, W) give patch_size=(depth, height, width), for clips with the channels first "
            "images.transpose(1, 2), and for such clips images.flatten(1, 2)"
        )


def checked_grid(shape: Sequence[int], patch_size: tuple[int, ...], largest: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the grid of the images, in patches; ``largest`` are the largest sides of groups, if any.

    Raises:
        ValueError: they are no whole number of patches, too many of them, or fewer than a group's side.
    """
    grid = grid_size(shape[-len(patch_size) :], patch_size)
    if math.prod(grid) > _MOST_PATCHES:
        raise ValueError(
            f"a grid of {' x '.join(map(str, grid))} patches has more than {_MOST_PATCHES}; use a larger patch_size"
        )
    for side, most in zip(grid, largest, strict=False):
        if most > side:
            raise ValueError(
                f"group_size asks for groups of up to {most} patches a side, but this image's grid has a side of "
                f"{side}; use a smaller group_size, a smaller patch_size or a larger image"
            )
    return grid


def plain(images: Tensor) -> Tensor:
    """Return the images as a plain tensor."""
    # A class that dispatches by itself stays: torch 2.7 cannot make a plain tensor of it.
    return images if type(images) is Tensor or dispatches(images) else images.as_subclass(Tensor)


def places_of_images(leaves: Sequence[object]) -> list[int]:
    """Return which leaves of a sample are its images, by the rule of torchvision's v2 transforms."""
    tv_tensors, pil = sys.modules.get("torchvision.tv_tensors"), sys.modules.get("PIL.Image")
    images = (tv_tensors.Image, tv_tensors.Video) if tv_tensors else ()
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (*images, *((pil.Image,) if pil else ())))]
    if places:
        return places
    special = (tv_tensors.TVTensor,) if tv_tensors else ()
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and not isinstance(leaf, special)][:1]


def within(leaves: Sequence[Any], inplace: bool, axes: int) -> tuple[list[int], Tensor, bool]:
    """Return which leaves of a sample are its images, the first as a batch, and whether it stands for one image.

    Raises:
        TypeError, ValueError: it has none, or they do not suit each other.
    """
    places = places_of_images(leaves)
    if not places and len(leaves) == 1:
        places = [0]  # whatever it is, the error names it
    if not places:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise TypeError(f"this sample has no image, which is a tv_tensor or a plain tensor; it has {kinds}")
    (first, single), *others = (as_batch(leaves[place], axes) for place in places)
    for batch, alone in others:
        same = (single, len(first), *first.shape[-axes:], first.device)
        if (alone, len(batch), *batch.shape[-axes:], batch.device) != same:
            each = (f"{tuple(leaves[place].shape)} on {leaves[place].device}" for place in places)
            raise ValueError(
                "the images of a sample get the same mask, so they have the same size and device; got "
                f"{' and '.join(each)}"
            )
    distinct = {id(leaves[place]): leaves[place] for place in places}.values()  # one may stand in it twice
    known = not torch.compiler.is_compiling() and not first.is_meta  # where in memory they are
    if inplace and known and any(share_memory(*pair) for pair in itertools.combinations(distinct, 2)):
        raise ValueError(
            "inplace=True cannot write into images of a sample that share memory with each other; pass clones"
        )
    return places, first, single


def as_batch(images: object, axes: int) -> tuple[Tensor, bool]:
    """Return a view of the images with a batch dimension, and whether it was added; refuse what is no image."""
    if not isinstance(images, Tensor):
        kind = f"{type(images).__module__}.{type(images).__qualname__}"
        hint = "give a torch.Tensor"
        if kind.startswith("PIL."):
            hint = "convert it first, by torchvision.transforms.v2.functional.pil_to_tensor(image) or v2.ToImage()"
        elif kind.startswith("numpy."):
            hint = "convert it first, by torch.from_numpy(array), with the channels in front of height and width"
        raise TypeError(f"GroupMask takes tensors of images; got {kind}; {hint}")
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors and isinstance(images, tv_tensors.TVTensor):
        if not isinstance(images, (tv_tensors.Image, tv_tensors.Video)):
            raise TypeError(f"GroupMask takes images; got a tv_tensors.{type(images).__name__}, which is none")
        if axes == 3:
            raise TypeError(
                "with three sides of a patch, GroupMask takes plain tensors (C, D, H, W), or (C, T, H, W) with "
                f"channels first; got a tv_tensors.{type(images).__name__}; give it images.as_subclass(torch.Tensor)"
            )
    batch = plain(images)
    if hasattr(batch, "to_local"):  # without importing torch.distributed.tensor
        raise TypeError(
            "GroupMask takes plain tensors; got a DTensor; give it images.to_local(), and shard by the batch"
        )
    if batch.is_nested or batch.is_quantized or batch.layout != torch.strided:
        kind = "nested" if batch.is_nested else "quantised" if batch.is_quantized else str(batch.layout)
        raise TypeError(f"GroupMask takes dense tensors of one size; got a {kind} one; convert it, by to_dense() or so")
    if batch.dtype not in _DTYPES:
        raise TypeError(
            f"images are {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}; got {batch.dtype}; they come "
            "before labels, and torchvision.transforms.v2.functional.to_dtype(images, torch.float32) converts them"
        )
    check_dimensions(batch.shape, axes)
    clip = batch.ndim == 4 and tv_tensors is not None and isinstance(images, tv_tensors.Video)
    single = batch.ndim == axes + 1 or clip
    return (batch[None] if single else batch), single


def check_plan(plan: MaskPlan, images: Tensor, batch: Tensor, grid: tuple[int, ...], single: bool) -> None:
    """Refuse a plan that was drawn for other images, or is elsewhere."""
    expected = grid if single else (batch.shape[0], *grid)
    shapes = {name: expected if name in ("mask", "group") else expected[: -len(grid)] for name in MaskPlan._fields}
    patch = tuple(side // n for side, n in zip(batch.shape[-len(grid) :], grid, strict=True))
    for name, shape in shapes.items():
        if getattr(plan, name).shape != shape:
            raise ValueError(
                f"the plan is for a {name} of {tuple(getattr(plan, name).shape)}, but images of "
                f"{tuple(images.shape)} with patches of {patch} need {tuple(shape)}; draw it by sample() with these "
                "images or their shape"
            )
    if plan.mask.dtype != torch.bool:
        raise TypeError(f"a plan's mask is bool, True = hidden; got {plan.mask.dtype}")
    for name, field in zip(MaskPlan._fields[1:], plan[1:], strict=True):
        if field.dtype != (wanted := torch.int32 if name == "group" else torch.int64):
            raise TypeError(f"a plan's {name} is {str(wanted).removeprefix('torch.')}; got {field.dtype}")
    for field in plan:
        if field.device != batch.device:
            raise ValueError(
                f"the plan is on {field.device} and the images on {batch.device}; "
                f"move it by plan.to({str(batch.device)!r})"
            )


def as_index(index: Tensor | int, batch: Sequence[int]) -> Tensor:
    """Return the samples' numbers as ``(B,)`` int64, of a batch (B,) or () for one image."""
    if is_int(index):
        if not -(2**63) <= int(index) < 2**63:
            raise ValueError(f"index is a number of 64 bits with a sign; got {index!r:.60}; count from 0")
        index = torch.tensor(int(index), device="cpu")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index is an int64 tensor of the samples' numbers, or an int for one image; got {got}")
    if mapped(index):
        raise ValueError("index cannot be mapped by vmap; draw before it: plan = corrupt.sample(images, index=index)")
    if index.is_meta:
        raise ValueError("index is on the meta device, so it has no numbers; give the samples' numbers on a real one")
    wanted = tuple(batch) or (1,)
    if index.shape != wanted and not (not batch and index.ndim == 0):
        raise ValueError(f"index has one number for each sample, shape {wanted}; got {tuple(index.shape)}")
    return index.reshape(-1)


def as_patches(name: str, patches: object, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return a mask of the caller's, of this shape and device."""
    if not isinstance(patches, Tensor) or patches.dtype != torch.bool:
        got, way = type(patches).__name__, f"torch.as_tensor({name})"
        if isinstance(patches, Tensor):
            got, way = str(patches.dtype), f"{name} > 0"
        raise TypeError(f"{name} is a bool tensor, one value for each patch; got {got}; convert it, as by {way}")
    if patches.is_nested or patches.layout != torch.strided:
        kind = "nested" if patches.is_nested else str(patches.layout)
        raise TypeError(f"{name} is a dense tensor; got a {kind} one; convert it, by {name}.to_dense() or so")
    if patches.shape != tuple(shape):
        raise ValueError(f"{name} has a value for each patch, shape {tuple(shape)}; got {tuple(patches.shape)}")
    if patches.device != device:
        raise ValueError(f"{name} is on {patches.device}, not on {device}; move it by {name}.to({str(device)!r})")
    if mapped(patches):
        raise ValueError(f"{name} cannot be mapped by vmap; draw before it, by sample(images, {name}={name})")
    return plain(patches)


def check_writable(images: Tensor) -> None:
    """Refuse images that cannot be written to in place."""
    compiling = torch.compiler.is_compiling()
    leaf = images if compiling or images._base is None else images._base
    if torch.is_grad_enabled() and leaf.requires_grad and leaf.is_leaf:
        raise ValueError("inplace=True cannot write into a leaf that requires gradients; use inplace=False")
    if compiling:
        return  # no order of symbolic strides; torch itself refuses to write into memory that is shared
    reach = 1
    for stride, side in sorted((s, n) for s, n in zip(images.stride(), images.shape, strict=True) if n > 1):
        if stride < reach:
            raise ValueError(
                f"inplace=True cannot write into images that share memory with each other (strides {images.stride()}, "
                "as expand and unfold make them); pass images.clone()"
            )
        reach = stride * side


def _like(batch: Tensor) -> str:
    """Return the shape of donors in words, for errors alone: sizes that a compiler has as symbols have none."""
    return f"(N, {', '.join(map(str, batch.shape[1:]))})"


def check_donors(donors: object, batch: Tensor) -> None:
    """Refuse donors that are not like the images."""
    if not isinstance(donors, Tensor):
        raise TypeError(f"donors is a tensor of images {_like(batch)}; got {type(donors).__name__}")
    if donors.ndim != batch.ndim or donors.shape[1:] != batch.shape[1:] or donors.shape[0] == 0:
        raise ValueError(
            f"donors have the images' shape, {_like(batch)} with N at least 1; got {tuple(donors.shape)}; crop or "
            "resize them"
        )
    if donors.dtype != batch.dtype or donors.device != batch.device:
        raise ValueError(
            f"donors have the images' dtype and device, {batch.dtype} on {batch.device}; got {donors.dtype} on "
            f"{donors.device}; convert them by donors.to(images)"
        )


def as_share(name: str, value: object) -> float:
    """Return a number in [0, 1]."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} is a number in [0, 1]; got {value!r}")
    if not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name} is in [0, 1]; got {value!r:.60}")
    return float(value)


def as_flag(name: str, value: object) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False; got {value!r}")
    return value


def lies_inside(placement: object) -> bool:
    """Tell whether groups lie wholly on the grid."""
    if placement not in ("uniform", "inside"):
        raise ValueError(f"placement is 'uniform' or 'inside'; got {placement!r}")
    return placement == "inside"


def as_ratio(ratio: object) -> tuple[float, float]:
    """Return the range of a ratio."""
    if not isinstance(ratio, (tuple, list)):
        return (as_share("ratio", ratio),) * 2
    if len(ratio) != 2:
        raise ValueError(f"ratio is a number or a pair (low, high); got {ratio!r}")
    low, high = as_share("ratio", ratio[0]), as_share("ratio", ratio[1])
    if low > high:
        raise ValueError(f"ratio is (low, high), but {ratio!r} is reversed; write {(high, low)}")
    return low, high


class Sizes(NamedTuple):
    """Sizes of groups and their weights, as :class:`~gmml_aug.plan.Settings` has them; the largest of each axis."""

    sizes: tuple[int, ...] | None
    weights: tuple[float, ...]
    largest: tuple[int, ...]


GroupSize = tuple[int, int] | tuple[tuple[int, int], ...] | Mapping[Any, float] | None


def as_group_size(group_size: Any, axes: int) -> tuple[Any, Sizes]:
    """Return what was given, in plain tuples, and the same for grids of so many axes."""
    if group_size is None:
        return None, Sizes(None, (), ())
    kinds = f"a pair (low, high) of ints, one for each of the {axes} axes, or a mapping of sizes to weights, in patches"
    if isinstance(group_size, Mapping):
        weights = as_weights("size", group_size)
        for size in group_size:
            if not isinstance(size, tuple) or len(size) != axes or not all(is_int(n) or n == "all" for n in size):
                raise TypeError(f"a size is a tuple of {axes} numbers of patches, or 'all' for an axis; got {size!r}")
            if any(n != "all" and n < 1 for n in size):
                raise ValueError(f"a size has at least 1 patch a side; got {size!r}")
        flat = tuple(0 if n == "all" else int(n) for size in group_size for n in size)
        return dict(group_size), Sizes(flat, weights, tuple(max(flat[i::axes]) for i in range(axes)))
    pairs = group_size
    if isinstance(pairs, (tuple, list)) and all(map(is_int, pairs)):
        pairs = (pairs,) * axes
    if (
        not isinstance(pairs, (tuple, list))
        or len(pairs) != axes
        or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_int, pair)) for pair in pairs)
    ):
        raise TypeError(f"group_size is None, {kinds}; got {group_size!r}")
    for low, high in pairs:
        if not 1 <= low <= high:
            raise ValueError(f"group_size is (low, high) with 1 <= low <= high, in patches; got {group_size!r}")
    pairs = tuple((int(low), int(high)) for low, high in pairs)
    sizes = Sizes(tuple(n for pair in pairs for n in pair), (), tuple(high for _, high in pairs))
    return pairs[0] if pairs == pairs[:1] * axes else pairs, sizes


def as_seed(seed: object) -> int | None:
    """Return a seed as int64, or None."""
    if seed is None:
        return None
    if not is_int(seed):
        raise TypeError(f"seed is None or an int; got {seed!r}")
    number: int = int(seed)  # type: ignore[call-overload]
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"seed has 64 bits, from -2**63 to 2**64 - 1; got {number}")
    return signed(number)
