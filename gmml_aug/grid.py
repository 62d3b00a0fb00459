"""The patch grid: its size, and the ways between patches, pixels and token indices."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor


def grid_size(sides: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return how many patches fit along each side of an image, in pixels: (height, width), or depth before these.

    Raises:
        ValueError: a side is not a positive multiple of the patch.
    """
    grid = []
    for i, (side, patch) in enumerate(zip(sides, patch_size, strict=True)):
        if side == 0 or side % patch:
            name = ("depth", "height", "width")[i - len(patch_size)]
            lower, upper = side // patch * patch, -(-max(side, 1) // patch) * patch
            nearest = f"{lower} or {upper}" if lower else f"{upper}"
            channels = "; channels come before height and width" if sides[-1] in (1, 3, 4) and sides[-2] > 4 else ""
            raise ValueError(
                f"the image's {name} is {side} pixels, which is not a multiple of the patch's {patch}; "
                f"resize, crop or pad it to {nearest}, or choose another patch_size{channels}"
            )
        grid.append(side // patch)
    return tuple(grid)


def is_int(value: object) -> bool:
    """Tell whether a value is a whole number, NumPy's and torch.compile's included, but no bool."""
    return type(value) is int or (isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool))


def as_patch_size(patch_size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return ``patch_size`` as (height, width), or (depth, height, width), in pixels.

    Raises:
        TypeError: it is neither an int nor two or three ints.
        ValueError: a side is below 1.
    """
    sides = tuple(patch_size) if isinstance(patch_size, (tuple, list)) else (patch_size, patch_size)
    if len(sides) not in (2, 3) or not all(map(is_int, sides)):
        raise TypeError(
            "patch_size is an int, a pair (height, width) of ints, or (depth, height, width) for volumes, in pixels; "
            f"got {patch_size!r}"
        )
    if min(sides) < 1:
        raise ValueError(f"patch_size is at least 1 pixel a side; got {patch_size!r}")
    return tuple(map(int, sides))


def spread(mask: Tensor, patch: Sequence[int]) -> Tensor:
    """Repeat patches along each of their sides, in pixels: ``(..., gh, gw)`` -> ``(..., gh * height, gw * width)``."""
    for axis, length in enumerate(reversed(patch), 1):
        mask = mask.repeat_interleave(length, -axis) if length > 1 else mask
    return mask


def _check_tensor(mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"a patch mask is a tensor; got {type(mask).__module__}.{type(mask).__qualname__}; convert it, by "
            "torch.from_numpy(array) or torch.stack(masks)"
        )


def patch_to_pixel(mask: Tensor, patch_size: int | tuple[int, ...]) -> Tensor:
    """Spread a patch mask over its pixels.

    Args:
        mask: ``(B, gh, gw)``, or ``(gh, gw)`` for one image; any dtype. With three sides of a patch
            ``(B, gd, gh, gw)``, or ``(gd, gh, gw)`` for one volume.
        patch_size: int, (height, width) or (depth, height, width) in pixels.

    Returns:
        ``(B, 1, gh * height, gw * width)``, or ``(1, ...)`` for one image: broadcasts over the channels. With three
        sides ``(B, 1, gd * depth, gh * height, gw * width)``.

    Raises:
        TypeError, ValueError: ``patch_size`` is no positive int or tuple of them, or the mask has other dimensions.
    """
    patch = as_patch_size(patch_size)
    _check_tensor(mask)
    if mask.ndim - len(patch) not in (0, 1):
        grid = ", ".join(("gd", "gh", "gw")[-len(patch) :])
        raise ValueError(f"a patch mask is (B, {grid}) or ({grid}) with patches of {patch}; got {tuple(mask.shape)}")
    return spread(mask, patch).unsqueeze(-len(patch) - 1)


def masked_indices(mask: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """Return the token indices of the hidden patches, row-major and ascending, as timm and Hugging Face count them.

    Args:
        mask: ``(B, gh, gw)`` or ``(B, gd, gh, gw)`` bool, True = hidden, with the same number of hidden patches in
            every image; of one image or volume ``mask[None]``.
        num_prefix_tokens: how many class and register tokens come before the patches (timm's name for it).

    Returns:
        ``(B, n)`` int64 on the mask's device. The size of the result depends on the mask's content, so on an
        accelerator this waits for it.

    Raises:
        TypeError: the mask is not bool, or the number of prefix tokens no int.
        ValueError: the mask has other dimensions, the images differ in their count, or the number is negative.
    """
    _check_tensor(mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"a patch mask is bool, True = hidden; got {mask.dtype}")
    if mask.ndim not in (3, 4):
        raise ValueError(
            f"a patch mask is (B, gh, gw), or (B, gd, gh, gw) of volumes; got {tuple(mask.shape)}; give one image "
            "a batch by mask[None], and a flat mask its grid by mask.reshape(-1, gh, gw)"
        )
    if not is_int(num_prefix_tokens):
        raise TypeError(f"num_prefix_tokens is an int; got {num_prefix_tokens!r}")
    if num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens is at least 0; got {num_prefix_tokens}")
    counts = mask.flatten(1).sum(1)
    if len(counts) and bool((counts != counts[0]).any()):
        raise ValueError(
            f"indices form a (B, n) tensor only where every image has the same count; this mask's images have "
            f"{int(counts.min())} to {int(counts.max())}. Give GroupMask one ratio, not a range, p=1, and with valid= "
            "as many valid patches in every image"
        )
    return mask.flatten(1).nonzero()[:, 1].reshape(len(mask), -1 if mask.numel() else 0) + num_prefix_tokens


def keep_indices(mask: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """Return the token indices of the visible patches: :func:`masked_indices` of the mask's opposite.

    Args:
        mask: ``(B, gh, gw)`` or ``(B, gd, gh, gw)`` bool, True = hidden, with the same number of hidden patches in
            every image; of one image or volume ``mask[None]``.
        num_prefix_tokens: how many class and register tokens come before the patches (timm's name for it). They are
            kept: their indices come first.

    Returns:
        ``(B, num_prefix_tokens + n)`` int64, ascending.

    Raises:
        TypeError, ValueError: as :func:`masked_indices`.
    """
    _check_tensor(mask)
    patches = masked_indices(mask.logical_not() if mask.dtype == torch.bool else mask, num_prefix_tokens)
    prefix = torch.arange(num_prefix_tokens, device=mask.device).expand(len(mask), -1)
    return torch.cat([prefix, patches], dim=1) if num_prefix_tokens else patches
