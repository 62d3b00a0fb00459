"""Pictures of a pretrained network."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from accelerate import Accelerator
from data import Data, Views
from torch import nn

from gmml_aug import GroupMask, patch_to_pixel

mpl.use("Agg")
from matplotlib import pyplot as plt


@torch.no_grad()
def draw_reconstructions(
    model: nn.Module, data: Data, corrupt: GroupMask, path: Path, accelerator: Accelerator
) -> None:
    """Draw a dozen held-out images, how they were corrupted, what the model made of them, and the masks."""
    source = data.test or data.train
    chosen = torch.linspace(0, len(source) - 1, min(12, len(source))).long()
    views = Views(data)
    images = views.plain(next(source.batches([chosen])).images)
    plan = corrupt.sample(images, index=chosen)
    corrupted, mask = corrupt.apply(images, plan)
    hidden = patch_to_pixel(mask, corrupt.patch_size)
    model.eval()
    filled = torch.where(hidden, model(corrupted), images)
    model.train()
    if not accelerator.is_main_process:
        return
    rows = {
        "original": views.shown(images),
        "corrupted": views.shown(corrupted),
        "reconstruction": views.shown(filled),
        "mask (white: hidden)": hidden.double(),
    }
    figure, axes = plt.subplots(len(rows), len(images), figsize=(1.1 * len(images) + 1.2, 1.2 * len(rows) + 0.5))
    for row, (name, pictures) in enumerate(rows.items()):
        for column, picture in enumerate(pictures.cpu()):
            axis = axes[row, column]
            axis.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(name.replace(" (", "\n("), rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
