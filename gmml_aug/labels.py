"""Which image each patch shows, and soft labels for images that show parts of one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .filling.fills import Alien, Fill
from .grid import is_int
from .plan import MaskPlan, fitted


def mix_labels(labels: Tensor, owner: Tensor, num_classes: int) -> Tensor:
    """Mix labels as the images were mixed: in proportion to the patches that each image owns.

    CutMix does so for one box (Yun et al., arXiv 1905.04899, section 3.1), for connected groups and per sample.

    Args:
        labels: ``(B,)`` int64, the class of each image.
        owner: ``(B, gh, gw)`` or ``(B, gd, gh, gw)`` int64, the image that each patch shows: ``corrupt.owner(plan)``.
        num_classes: how many classes there are.

    Returns:
        ``(B, num_classes)`` float32 on the labels' device: the share of each class; a row adds up to 1.

    Raises:
        TypeError, ValueError: something has the wrong dtype or shape, or is on another device; or a label is not one of
            ``num_classes``, or an owner not in the batch (on an accelerator torch says so, some time later).

    Example:
        >>> corrupt = GroupMask(16, ratio=(0.1, 0.5), fill="alien")
        >>> plan = corrupt.sample(images)
        >>> mixed, soft = corrupt.apply(images, plan).images, mix_labels(labels, corrupt.owner(plan), num_classes=10)
    """
    if not isinstance(owner, Tensor):
        raise TypeError(
            f"mix_labels takes the image that each patch shows, by corrupt.owner(plan) of the plan = "
            f"corrupt.sample(images) that was applied; got {type(owner).__name__}"
        )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or owner.dtype != torch.int64:
        got = f"{labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"labels and owner are int64 tensors; got {got} and {owner.dtype}; convert numbers of classes by "
            "labels.long(), and one-hot labels by labels.argmax(1)"
        )
    if labels.ndim != 1 or owner.ndim not in (3, 4) or len(labels) != len(owner):
        raise ValueError(
            f"labels are (B,) and owner is (B, gh, gw), or (B, gd, gh, gw) of volumes; got {tuple(labels.shape)} and "
            f"{tuple(owner.shape)}; one-hot labels become numbers of classes by labels.argmax(1)"
        )
    if not is_int(num_classes) or num_classes < 1:
        raise ValueError(f"num_classes is an int of at least 1; got {num_classes!r}")
    if labels.device != owner.device:
        raise ValueError(f"labels are on {labels.device} and owner on {owner.device}; move one to the other")
    if labels.device.type == "cpu" and bool((wrong := (labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(
            f"labels are classes from 0 to {num_classes - 1}; got {int(labels[wrong][0])}; leave out images without a "
            "label, which other functions are told to ignore by -100"
        )
    if owner.device.type == "cpu" and bool((wrong := (owner < 0) | (owner >= len(owner))).any()):
        raise ValueError(
            f"owner is the place in the batch, from 0 to {len(owner) - 1}, of the image that each patch shows; got "
            f"{int(owner[wrong][0])}; take it from corrupt.owner(plan)"
        )
    shown = labels[owner.flatten(1)]
    patches = torch.zeros(len(labels), num_classes, dtype=torch.int64, device=labels.device)
    return patches.scatter_add_(1, shown, torch.ones_like(shown)).to(torch.float32) / shown.shape[1]


def owners(plan: MaskPlan, fills: Sequence[Fill]) -> Tensor:
    """Return which image of the batch each patch shows; see :meth:`GroupMask.owner`."""
    if not isinstance(plan, MaskPlan):
        raise TypeError(f"owner takes a MaskPlan, as sample(images) draws it; got {type(plan).__name__}")
    if plan.key.ndim != 1:
        raise ValueError("a plan of one image has no other image to show; draw it for a batch (B, C, H, W)")
    device, plan = plan.mask.device, fitted(plan, len(fills))
    every = (-1, *(1,) * (plan.mask.ndim - 1))
    owner = torch.arange(len(plan.mask), device=plan.mask.device).view(every).expand(plan.mask.shape)
    for i, fill in enumerate(fills):
        if isinstance(fill, Alien):
            if len(plan.mask) == 1:
                raise ValueError("this plan is for a batch of one, which has no other image to take aliens from")
            donor = plan.donor.view(every) if fill.per == "image" else plan.group_donor()
            here = plan.mask if len(fills) == 1 else plan.mask & (plan.fill == i).view(every)
            owner = torch.where(here, donor, owner)
    return owner.contiguous().to(device)
