"""The dense probe: images with label maps, and a linear layer on frozen patch tokens; dense.py says how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from .checkpoint import tensors
from .config import Config
from .data.photos import square, to_side
from .data.sources import Memory
from .data.together import photographs
from .evaluation import probe
from .model import build
from .views import Views

PASSED_OVER = 255
AT_ONCE = 256  # images
SIDES = ("pretrained", "untrained", "colour alone")
Pair = tuple[Path | str, Image.Image, Image.Image]  # a name, an image and its label map


def from_folder(path: Path) -> Iterator[Pair]:
    """Yield the images of ``path/images`` with their label maps in ``path/labels``; end here if one is missing."""
    images, labels = (
        {file.stem: file for file in sorted((path / part).glob("*")) if file.suffix.lower() in kinds}
        for part, kinds in (("images", (".jpg", ".jpeg", ".png")), ("labels", (".png",)))
    )
    if not images:
        raise SystemExit(f"--data {path} has no images/*.jpg or images/*.png")
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        raise SystemExit(
            f"--data {path}: {len(alone)} files have no other half, images/NAME.jpg with labels/NAME.png, such as "
            f"{alone[0]}"
        )
    for stem, file in images.items():
        try:
            pair = ImageOps.exif_transpose(Image.open(file)), Image.open(labels[stem]).copy()
        except Exception as error:  # Pillow's plug-ins raise what they like for a broken file
            raise SystemExit(f"{file} or {labels[stem]} cannot be read: {error}") from None
        yield file, *pair


def pets() -> Iterator[Pair]:
    """Yield the training part of Oxford-IIIT Pet, from ``data/`` or the network: 0 is animal, 1 is background."""
    try:
        samples = torchvision.datasets.OxfordIIITPet("data", target_types="segmentation", download=True)
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"torchvision:OxfordIIITPet is not in data/ and cannot be downloaded: {error}") from None
    classes = [PASSED_OVER, 0, 1, PASSED_OVER]  # of the file's values: 1 animal, 2 background, 3 not classified
    for i in range(len(samples)):
        image, labels = samples[i]
        yield f"OxfordIIITPet[{i}]", image, labels.point(classes + [PASSED_OVER] * 252)


def read(name: str, side: int) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 3, side, side)`` and their classes ``(N, side, side)``, both uint8."""
    if name == "torchvision:OxfordIIITPet":
        pairs = pets()
    elif Path(name).is_dir():
        pairs = from_folder(Path(name))
    else:
        raise SystemExit(f"--data takes torchvision:OxfordIIITPet, or a folder with images/ and labels/; got {name!r}")
    images, labels = [], []
    for file, image, drawn in pairs:
        if drawn.mode not in ("L", "P"):
            raise SystemExit(f"the label map of {file} has one byte a pixel, grey or of a palette; got {drawn.mode}")
        if image.size != drawn.size:
            raise SystemExit(f"{file} has {image.size} pixels, its label map {drawn.size}")
        images.append(to_side(square(image, side), side))
        middle = v2.functional.center_crop(torch.from_numpy(np.array(drawn))[None], [min(drawn.size)])
        labels.append(v2.functional.resize(middle, [side, side], InterpolationMode.NEAREST_EXACT)[0])
    if len(images) < 5:
        raise SystemExit(f"{name} has {len(images)} images: to be split 4 to 1 there are at least 5")
    return torch.stack(images), torch.stack(labels)


def most_common(labels: Tensor, classes: list[int], patch_size: int) -> tuple[Tensor, Tensor]:
    """Return each patch's most common class, its place in ``classes``, and whether it has one: ``(N, gh, gw)``."""
    shares = torch.stack([F.avg_pool2d((labels == c).float(), patch_size) for c in classes])
    return shares.argmax(0), shares.sum(0) > 0


def mean_iou(confusion: Tensor) -> float:
    """Return the mean intersection over union of ``(K, K)`` pixel counts, labels by predictions.

    It is over the classes that occur, as a label or as a prediction.
    """
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    return float((both[either > 0].double() / either[either > 0]).mean())


@torch.no_grad()
def tokens_of(side: str, run: Path, config: Config, images: Tensor, device: torch.device) -> Tensor:
    """Return what a side knows of each patch of uint8 images: ``(N, patches, width)`` float32."""
    if side == "colour alone":
        return F.avg_pool2d(images.float() / 255, config.patch_size).flatten(2).transpose(1, 2)
    torch.manual_seed(0)
    model = build(config, 3)[0]
    if side == "pretrained":
        model.load_state_dict(tensors(run / "autoencoder.safetensors"))
    model.to(device).eval()
    views = Views(photographs("images", [Memory(images, None)], [], config.image_size))
    return torch.cat([model.features(views.plain(part.to(device))).cpu() for part in images.split(AT_ONCE)])


def judged(
    tokens: Tensor, labels: Tensor, classes: list[int], patch_size: int, train: list[int], test: list[int]
) -> float:
    """Fit the layer to the images ``train``, and return the mean IoU of the images ``test`` in percent.

    Args:
        tokens: ``(N, patches, width)`` float32.
        labels: ``(N, size, size)`` uint8.
        classes: The labels' values, without 255.
        patch_size: In pixels.
        train: Indices of images.
        test: Indices of images.
    """
    targets, has_one = most_common(labels[train], classes, patch_size)
    learnt = targets[has_one].unique()
    if len(learnt) < 2:
        raise SystemExit("the patches of the training images have fewer than two classes: nothing is to be told apart")
    layer = probe(1.0).fit(tokens[train][has_one.flatten(1)].numpy(), targets[has_one].numpy())

    confusion, size = torch.zeros(len(classes), len(classes), dtype=torch.int64), labels.shape[-1]
    for i in test:
        likely = torch.from_numpy(layer.predict_log_proba(tokens[i].numpy())).T
        likely = likely.unflatten(1, (size // patch_size, size // patch_size))[None]
        predicted = learnt[F.interpolate(likely, size=(size, size), mode="bilinear")[0].argmax(0)]
        for place, value in enumerate(classes):
            confusion[place] += predicted[labels[i] == value].bincount(minlength=len(classes))
    return 100 * mean_iou(confusion)
