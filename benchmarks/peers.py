"""What people use now to draw masks and to hide parts of images, called as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GRID, PATCH = 14, 16
HIDDEN = 98  # half of the 196 patches


def lightly_blocks(batch: int) -> Tensor:
    """Return lightly's block masks, ``(B, 14, 14)`` bool: BEiT's and DINOv2's way, one Python loop for each image."""
    from lightly.models.utils import random_block_mask

    mask: Tensor = random_block_mask(
        size=(batch, GRID, GRID), batch_mask_ratio=1.0, min_image_mask_ratio=0.5, max_image_mask_ratio=0.5
    )
    return mask


def lightly_tokens(batch: int) -> Tensor:
    """Return lightly's masks of single patches, which it gives as indices: MAE's way, batched."""
    from lightly.models.utils import random_token_mask

    _, hidden = random_token_mask(size=(batch, GRID * GRID), mask_ratio=0.5, mask_class_token=True)
    mask = torch.zeros(batch, GRID * GRID, dtype=torch.bool).scatter_(1, hidden, True)
    return mask.view(batch, GRID, GRID)


def kornia_erasing() -> Callable[[Tensor], Tensor]:
    """Return Kornia's random erasing: one rectangle of half the area for each image."""
    from kornia.augmentation import RandomErasing

    erase: Callable[[Tensor], Tensor] = RandomErasing(p=1.0, scale=(0.5, 0.5), ratio=(0.5, 2.0))
    return erase


def torchvision_erasing() -> Callable[[Tensor], Tensor]:
    """Return torchvision's random erasing, image by image: on a batch it would erase the same rectangle in all."""
    from torchvision.transforms import v2

    erase = v2.RandomErasing(p=1.0, scale=(0.5, 0.5), ratio=(0.5, 2.0))
    return lambda images: torch.stack([erase(image) for image in images])


def torchvision_cutmix() -> Callable[[Tensor], Tensor]:
    """Return torchvision's CutMix: one rectangle for the whole batch, filled from the neighbour in it."""
    from torchvision.transforms import v2

    mix = v2.CutMix(num_classes=2)
    return lambda images: mix(images, torch.zeros(len(images), dtype=torch.int64))[0]
