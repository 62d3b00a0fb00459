"""Draw the README's picture: photographs of scikit-image, hidden in groups and filled in each way.

python examples/picture.py [examples/fills.jpg]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from skimage import data
from torchvision.transforms import v2

from gmml_aug import GroupMask

mpl.use("Agg")
from matplotlib import pyplot as plt


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/fills.jpg")
    to_square = v2.Compose([v2.ToImage(), v2.Resize(224), v2.CenterCrop(224)])
    names = ("astronaut", "chelsea", "coffee", "rocket")
    photographs = torch.stack([to_square(getattr(data, name)()) for name in names])

    fills = ("zeros", "noise", "alien", "shuffle")
    columns = {"photograph": photographs}
    for fill in fills:  # one seed: each fill hides the same patches
        columns[f'fill="{fill}"'] = GroupMask(16, ratio=0.5, fill=fill, seed=9)(photographs).images
    columns["noise,\ngroup_size=(1, 1)"] = GroupMask(16, ratio=0.5, group_size=(1, 1), seed=9)(photographs).images

    rows = len(photographs)
    figure, axes = plt.subplots(rows, len(columns), figsize=(1.9 * len(columns), 1.9 * rows + 0.4))
    for column, (name, images) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=10)
        for row, image in enumerate(images):
            axes[row, column].imshow(image.permute(1, 2, 0).numpy())
            axes[row, column].axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=90)
    print(f"drew {path}")


if __name__ == "__main__":
    main()
