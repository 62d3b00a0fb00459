"""The default, which needs no download: scikit-learn's handwritten digits."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from .sources import Data, Memory
from .together import fingerprint


def digits(image_size: int, device: torch.device) -> Data:
    """1,797 scanned digits of 8x8 pixels (UCI, Optical Recognition of Handwritten Digits), shipped by scikit-learn."""
    raw = load_digits()
    if image_size != 8:
        raise SystemExit(f"the digits are 8 pixels a side; --image-size {image_size} is for other data")
    images = torch.from_numpy(raw.images).float()[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
    labels = torch.from_numpy(raw.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return Data(
        name="digits",
        train=Memory(images[train].to(device), labels[train]),
        test=Memory(images[test].to(device), labels[test]),
        classes=[str(name) for name in raw.target_names],
        image_size=image_size,
        mean=[images[train].mean().item()],
        std=[images[train].std().item()],
        augmentation=K.ImageSequential(K.RandomCrop((8, 8), padding=1)),  # by one pixel; digits are not to be mirrored
        fingerprint=fingerprint("digits"),
    )
