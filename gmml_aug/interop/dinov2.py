"""DINOv2, DINOv3 and lightly-train: masks by number of patches, as their collate functions ask for them."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from ..grid import is_int
from ..inputs import checked_grid
from ..transform import GroupMask


class MaskGenerator:
    """Called with a number of patches, return a grid that hides so many: what DINOv2's ``MaskingGenerator`` does.

    Args:
        corrupt: draws the groups: their size, placement and seed are taken from it. Its ratio is not, since every call
            says how many patches to hide, nor its fill, since no pixel is written. It is copied: neither its ratio nor
            its counter changes here.
        grid: (height, width) in patches.

    Attributes:
        num_patches: of the grid, as lightly-train reads it.

    Raises:
        TypeError: ``corrupt`` is no GroupMask, or ``grid`` no pair of ints.
        ValueError: a side of the grid is below 1 or smaller than the largest group, or ``corrupt.p`` is not 1.

    Example:
        >>> mask_generator = MaskGenerator(GroupMask(seed=0), (16, 16))
        >>> mask_generator(100).shape, mask_generator(100).sum()
        (torch.Size([16, 16]), tensor(100))
    """

    def __init__(self, corrupt: GroupMask, grid: tuple[int, int]) -> None:
        if not isinstance(corrupt, GroupMask):
            raise TypeError(f"MaskGenerator is built from a GroupMask and a grid; got {type(corrupt).__name__} first")
        if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(map(is_int, grid)):
            raise TypeError(f"grid is a pair (height, width) of ints, in patches; got {grid!r}")
        if min(grid) < 1:
            raise ValueError(f"grid is at least 1 patch a side; got {grid!r}")
        if corrupt.p != 1:
            raise ValueError(
                f"every mask has the number of patches it is asked for, so p={corrupt.p:g} has no meaning here; use "
                "p=1, and ask for 0 patches where an image is to be left alone"
            )
        if len(corrupt.patch_size) != 2:
            raise ValueError(f"MaskGenerator draws for images; got a patch_size of three sides, {corrupt.patch_size}")
        self.grid: tuple[int, int] = int(grid[0]), int(grid[1])
        self.num_patches: int = self.grid[0] * self.grid[1]
        # On the CPU, because collate functions run in worker processes, where there is no accelerator.
        self._corrupt = deepcopy(corrupt).cpu()
        # A batch of one image, of which only the shape counts: one element of memory, and quicker than a bare shape.
        height, width = corrupt.patch_size
        sides = self.grid[0] * height, self.grid[1] * width
        checked_grid(sides, corrupt.patch_size, corrupt._sizes.largest)
        self._images = torch.empty((), device="cpu").expand(1, 1, *sides)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._corrupt}, {self.grid})"

    def __call__(self, num_masking_patches: int = 0) -> Tensor:
        """Draw one mask.

        Args:
            num_masking_patches: how many patches to hide, from 0 to all of the grid.

        Returns:
            ``(height, width)`` bool, True = hidden, on the CPU.

        Raises:
            TypeError: the number is no int.
            ValueError: it is negative or larger than the grid.
        """
        if not is_int(num_masking_patches):
            raise TypeError(f"the number of patches to hide is an int; got {num_masking_patches!r}; round it by int()")
        if not 0 <= num_masking_patches <= self.num_patches:
            height, width = self.grid
            raise ValueError(
                f"a grid of {height} x {width} hides 0 to {self.num_patches} patches; got {num_masking_patches}"
            )
        if num_masking_patches == 0:  # asked for once for every image that is left alone
            return torch.zeros(self.grid, dtype=torch.bool, device="cpu")
        self._corrupt.ratio = num_masking_patches / self.num_patches  # round(ratio * patches) is this number again
        return self._corrupt.sample(self._images).mask[0]
