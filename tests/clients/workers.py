"""Functions that these tests run in other processes: kept apart, because every spawned process imports it."""

from __future__ import annotations

import torch
from torch import Tensor

from gmml_aug.interop.dinov2 import MaskGenerator


class CollateByNumber:
    """A collate function as DINOv2's: another number of patches for each image, and 0 for the last one."""

    def __init__(self, mask_generator: MaskGenerator, numbers: tuple[int, ...]) -> None:
        self.mask_generator, self.numbers = mask_generator, numbers

    def __call__(self, samples: list[Tensor]) -> dict[str, Tensor]:
        numbers = [*self.numbers[: len(samples) - 1], 0]
        masks = torch.stack([torch.BoolTensor(self.mask_generator(int(n))) for n in numbers]).flatten(1)
        return {"masks": masks, "indices": masks.flatten().nonzero().flatten()}
