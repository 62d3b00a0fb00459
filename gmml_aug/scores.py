"""Masks from scores: the patches of each image that somebody's measure puts highest."""

from __future__ import annotations

import torch
from torch import Tensor

from . import rng
from .grid import is_int
from .inputs import as_index, as_patches, as_seed


def from_scores(
    scores: Tensor,
    count: Tensor | int,
    valid: Tensor | None = None,
    *,
    seed: int = 0,
    index: Tensor | int | None = None,
) -> Tensor:
    """Hide the patches of each image that score highest: exactly ``count`` of them, for ``GroupMask(...)(mask=)``.

    Args:
        scores: ``(B, gh, gw)``, ``(gh, gw)`` for one image, or ``(B, gd, gh, gw)`` of volumes (one as
            ``scores[None]``): real numbers. NaN is the lowest, as -inf is: refusing it would mean a wait.
        count: how many patches to hide: an int, or ``(B,)`` int64, one for each image. A tensor's numbers are not
            looked at, so that nothing waits for them: fewer than 0 hide none, and more than there are hide all.
        valid: a bool tensor like ``scores``: only these patches are hidden, and all of them where they are too few.
        seed: which patches of equal scores come first.
        index: ``(B,)`` int64 (an int for one image), the images' numbers, on which that depends too; by default their
            places in the batch.

    Returns:
        A bool tensor like ``scores``, True = hidden, on their device.

    Raises:
        TypeError, ValueError: something has the wrong dtype, shape or device, or ``count`` is out of range.

    Example:
        >>> from_scores(torch.tensor([[0.1, 0.7, 0.3], [0.9, 0.2, 0.7]]), 3)
        tensor([[False,  True, False],
                [ True, False,  True]])
    """
    if not isinstance(scores, Tensor) or scores.is_complex():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"scores are a tensor of real numbers, one for each patch; got {got}")
    if scores.is_floating_point() and scores.itemsize == 1:
        raise TypeError(f"torch does not sort {scores.dtype}; convert the scores, by scores.float()")
    if scores.is_nested or scores.layout != torch.strided:
        kind = "nested" if scores.is_nested else str(scores.layout)
        raise TypeError(f"scores are a dense tensor; got a {kind} one; convert them, by scores.to_dense() or so")
    if scores.ndim < 2:
        raise ValueError(f"scores are (B, gh, gw), or (gh, gw) for one image; got {tuple(scores.shape)}")
    batch = scores.shape[:1] if scores.ndim > 2 else ()
    flat = scores.flatten(1) if batch else scores.reshape(1, -1)
    images, patches = flat.shape
    if is_int(count):
        if not 0 <= count <= patches:
            raise ValueError(f"count is from 0 to the {patches} patches of an image; got {count}")
    elif not isinstance(count, Tensor) or count.dtype != torch.int64 or count.shape != batch:
        what = f"{count.dtype} {tuple(count.shape)}" if isinstance(count, Tensor) else repr(count)
        raise TypeError(f"count is an int, or an int64 tensor of shape {tuple(batch)}; got {what}; round it by int()")
    if isinstance(count, Tensor) and count.device != scores.device:
        there = str(scores.device)
        raise ValueError(f"count is on {count.device}, not on {there}; move it by count.to({there!r})")
    if not is_int(seed):
        raise TypeError(f"seed is an int; got {seed!r}")
    number = torch.arange(images, device=scores.device) if index is None else as_index(index, batch).to(scores.device)
    ties = torch.ops.gmml_aug.ties(rng.at_hand(number), as_seed(seed), patches).to(scores.device)
    order = ties.argsort(dim=1, stable=True)
    if flat.is_floating_point():
        flat = flat.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    order = order.gather(1, flat.gather(1, order).argsort(dim=1, descending=True, stable=True))
    most: Tensor | int = count.reshape(-1, 1) if isinstance(count, Tensor) else count
    if valid is not None:
        allowed = as_patches("valid", valid, scores.shape, scores.device).reshape(flat.shape)
        order = order.gather(1, allowed.gather(1, order).to(torch.uint8).argsort(dim=1, descending=True, stable=True))
        most = allowed.sum(1, keepdim=True).clamp(max=most)
    first = (torch.arange(patches, device=scores.device) < most).expand(flat.shape)
    return torch.zeros_like(first).scatter(1, order, first).reshape(scores.shape)


def _ties(number: Tensor, seed: int, patches: int) -> Tensor:
    return rng.words(rng.keys(rng.root(seed, 0), number), rng.TIE_SLOT, patches)


rng.operator(
    "ties(Tensor number, int seed, SymInt patches) -> Tensor",
    _ties,
    lambda number, _, patches: number.new_empty(number.shape[0], patches),
)
