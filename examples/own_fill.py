"""Fills of one's own: what is hidden goes out of focus, or each group takes its own mean colour.

python examples/own_fill.py [own_fill.png]

A fill is any object with the two methods of `gmml_aug.Fill`: `check` refuses what it cannot fill, before anything is
written, and `values` gives a value for every pixel, of which those of hidden ones are taken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import gaussian_blur

from gmml_aug import GroupMask, MaskPlan


def check_floating(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise TypeError(f"this fill takes floating images (B, C, H, W); got {images.dtype}, {tuple(images.shape)}")


@dataclass(frozen=True)  # so that it can be a key of fill={...}, and shows its arguments
class Blurred:
    """The image itself, out of focus."""

    sigma: float = 12.0  # pixels

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        check_floating(images)

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        width = 2 * round(2 * self.sigma) + 1
        blurred: Tensor = gaussian_blur(images, [width, width], [self.sigma, self.sigma])
        return blurred


@dataclass(frozen=True)
class MeanColour:
    """The mean colour of the whole group: `plan.group` says which group hides a patch."""

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        check_floating(images)

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        rows, columns = plan.mask.shape[1:]
        patches = torch.nn.functional.adaptive_avg_pool2d(images, (rows, columns))
        group = plan.group.flatten(1)
        same = (group[:, :, None] == group[:, None, :]).to(images.dtype)  # (B, patches, patches)
        mean = patches.flatten(2) @ (same / same.sum(1, keepdim=True))
        return torch.nn.functional.interpolate(mean.view_as(patches), images.shape[-2:], mode="nearest")


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "own_fill.png"
    to_square = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize(224), v2.CenterCrop(224)])
    names = ("astronaut", "chelsea", "coffee", "rocket")
    photographs = torch.stack([to_square(getattr(data, name)()) for name in names])

    figure = Figure(figsize=(1.9 * len(names), 3 * 1.9), layout="constrained")
    axes = figure.subplots(3, len(names))
    rows = {"photograph": photographs}
    for fill in (Blurred(), MeanColour()):  # one seed: both hide the same patches
        rows[str(fill)] = GroupMask(16, ratio=0.5, fill=fill, seed=9)(photographs).images
    for row, (name, images) in enumerate(rows.items()):
        axes[row, 0].set_ylabel(name)
        for ax, image in zip(axes[row], images, strict=True):
            ax.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90)
    print(f"drew {path}")


if __name__ == "__main__":
    main()
