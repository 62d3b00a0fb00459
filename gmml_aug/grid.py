"""The patch grid: its size, and the ways between patches, pixels and token indices."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor


def grid_size(height: int, width: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many patches fit (down, across) in an image of ``height`` x ``width`` pixels.

    Raises:
        ValueError: a side is not a positive multiple of the patch.
    """
    for name, side, patch in (("height", height, patch_size[0]), ("width", width, patch_size[1])):
        if side == 0 or side % patch:
            lower, upper = side // patch * patch, -(-max(side, 1) // patch) * patch
            nearest = f"{lower} or {upper}" if lower else f"{upper}"
            channels = "; channels come before height and width" if width in (1, 3, 4) and height > 4 else ""
            raise ValueError(
                f"the image's {name} is {side} pixels, which is not a multiple of the patch's {patch}; "
                f"resize, crop or pad it to {nearest}, or choose another patch_size{channels}"
            )
    return height // patch_size[0], width // patch_size[1]


def is_int(value: object) -> bool:
    """Tell whether a value is a whole number, NumPy's and torch.compile's included, but no bool."""
    return type(value) is int or (isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool))


def as_patch_size(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``patch_size`` as (height, width) in pixels.

    Raises:
        TypeError: it is neither an int nor a pair of ints.
        ValueError: a side is below 1.
    """
    pair = tuple(patch_size) if isinstance(patch_size, (tuple, list)) else (patch_size, patch_size)
    if len(pair) != 2 or not all(map(is_int, pair)):
        raise TypeError(f"patch_size is an int or a pair (height, width) of ints, in pixels; got {patch_size!r}")
    if min(pair) < 1:
        raise ValueError(f"patch_size is at least 1 pixel a side; got {patch_size!r}")
    return int(pair[0]), int(pair[1])


def _check_tensor(mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"a patch mask is a tensor; got {type(mask).__module__}.{type(mask).__qualname__}; convert it, by "
            "torch.from_numpy(array) or torch.stack(masks)"
        )


def patch_to_pixel(mask: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Spread a patch mask over its pixels.

    Args:
        mask: ``(B, gh, gw)``, or ``(gh, gw)`` for one image; any dtype.
        patch_size: int or (height, width) in pixels.

    Returns:
        ``(B, 1, gh * height, gw * width)``, or ``(1, ...)`` for one image: broadcasts over the channels.

    Raises:
        TypeError, ValueError: ``patch_size`` is not a positive int or a pair of them, or the mask has other dimensions.
    """
    height, width = as_patch_size(patch_size)
    _check_tensor(mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"a patch mask is (B, gh, gw) or (gh, gw); got {tuple(mask.shape)}")
    rows, columns = mask.shape[-2:]
    spread = mask[..., None, :, None, :, None].expand(*mask.shape[:-2], 1, rows, height, columns, width)
    return spread.reshape(*mask.shape[:-2], 1, rows * height, columns * width)


def masked_indices(mask: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """Return the token indices of the hidden patches, row-major and ascending, as timm and Hugging Face count them.

    Args:
        mask: ``(B, gh, gw)`` bool, True = hidden, with the same number of hidden patches in every image.
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
    if mask.ndim != 3:
        raise ValueError(
            f"a patch mask is (B, gh, gw); got {tuple(mask.shape)}; give one image a batch by mask[None], and a flat "
            "mask its grid by mask.reshape(-1, gh, gw)"
        )
    if not is_int(num_prefix_tokens):
        raise TypeError(f"num_prefix_tokens is an int; got {num_prefix_tokens!r}")
    if num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens is at least 0; got {num_prefix_tokens}")
    counts = mask.flatten(1).sum(1)
    if len(counts) and bool((counts != counts[0]).any()):
        raise ValueError(
            f"indices form a (B, n) tensor only where every image has the same count; this mask's images have "
            f"{int(counts.min())} to {int(counts.max())}. Give GroupMask one ratio, not a range, and p=1"
        )
    return mask.flatten(1).nonzero()[:, 1].reshape(len(mask), -1 if mask.numel() else 0) + num_prefix_tokens


def keep_indices(mask: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """Return the token indices of the visible patches: :func:`masked_indices` of the mask's opposite.

    Args:
        mask: ``(B, gh, gw)`` bool, True = hidden, with the same number of hidden patches in every image.
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
