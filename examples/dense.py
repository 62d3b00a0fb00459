"""What pretraining knows of single patches: a linear layer on frozen tokens that names every pixel's class.

    python examples/dense.py RUN --data FOLDER                      # a finished run of pretrain.py, and label maps
    python examples/dense.py RUN --data torchvision:OxfordIIITPet   # cats and dogs against what is behind them

FOLDER has ``images/*.jpg`` or ``*.png`` and ``labels/*.png`` of the same names, grey or with a palette: a pixel's value
is its class, 255 is passed over. Of the pets those between animal and background ("not classified") are passed over.
The middle square of each image, made as large as the run's images, is split into patches.

The layer is scikit-learn's logistic regression on standardised tokens, with the class that most pixels of a patch have.
That is convex: there is no learning rate, length or seed that could favour a side. Its penalty is scikit-learn's
default, the same for all. It is fitted to four fifths of the images and judged on the rest, drawn with a fixed seed:
its log-probabilities are made as large as the image, bilinearly, and the most probable class is compared with the label
of each pixel. The figure is the mean over classes of intersection over union, counted over all held-out pixels.

It is compared with an untrained network's tokens, and with colour alone: the mean red, green and blue of each patch.
All figures go to dense.json in RUN. What a run was pretrained on, without labels, may be among the held-out images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from accelerate import PartialState
from checkpoint import save_text, tensors
from data import Memory, Views, photographs, square, to_side
from evaluate import made_by, probe, settings_of
from model import build
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

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
def tokens_of(side: str, run: Path, settings: dict[str, Any], images: Tensor, device: torch.device) -> Tensor:
    """Return what a side knows of each patch of uint8 images: ``(N, patches, width)`` float32."""
    if side == "colour alone":
        return F.avg_pool2d(images.float() / 255, settings["patch_size"]).flatten(2).transpose(1, 2)
    torch.manual_seed(0)
    model = build(settings, 3)[0]
    if side == "pretrained":
        model.load_state_dict(tensors(run / "autoencoder.safetensors"))
    model.to(device).eval()
    views = Views(photographs("images", [Memory(images, None)], [], settings["image_size"]))
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    parser.add_argument("--data", required=True, help="a folder with images/ and labels/, or torchvision:OxfordIIITPet")
    args = parser.parse_args(arguments)
    settings, device = settings_of(args.run), PartialState().device
    channels = tensors(args.run / "autoencoder.safetensors")["encoder.patch_embed.proj.weight"].shape[1]
    if channels != 3:
        raise SystemExit(f"{args.run} was pretrained on images of {channels} channels; photographs have 3")
    size, patch_size = settings["image_size"], settings["patch_size"]
    images, labels = read(args.data, size)
    classes = [c for c in labels.unique().tolist() if c != PASSED_OVER]
    train, test = train_test_split(range(len(images)), test_size=0.2, random_state=0)
    results = {}
    for side in SIDES:
        tokens = tokens_of(side, args.run, settings, images, device)
        results[side] = judged(tokens, labels, classes, patch_size, train, test)
    print(
        f"Mean intersection over union, in percent, on {len(test):,} held-out images of {args.data}, {len(classes)} "
        f"classes;\na linear layer on the frozen tokens of {patch_size}x{patch_size} pixels:\n"
    )
    for side, value in results.items():
        print(f"{side:<16}{value:5.1f}")
    words = sys.argv[1:] if arguments is None else arguments
    about = {**made_by("dense.py", words, device), "images": len(images), "held_out": len(test), "classes": classes}
    save_text(args.run / "dense.json", json.dumps({**about, "mean_iou": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
