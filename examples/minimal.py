"""Group masked pretraining in one file: hide groups of patches, learn to paint them, then classify with few labels.

    python examples/minimal.py    # under a minute on a CPU; the images ship with scikit-learn

The method is that of Atito, Awais and Kittler (arXiv 2205.14986, section 3): a vision transformer sees the whole
corrupted image, a light decoder paints it, and the mean absolute error on hidden pixels is the loss. The encoder then
starts a classifier. The same network from scratch, with the same labels and steps, tells what pretraining was worth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gmml_aug import GroupMask, patch_to_pixel

SIDE, PATCH, GRID, WIDTH = 8, 2, 4, 64  # pixels, pixels, patches, features
LABELS, DRAWS = 10, 3  # labelled images of each class; how often they are drawn


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 1,437 images ``(N, 1, 8, 8)`` and labels ``(N,)`` to train on, and 360 held out; normalised."""
    raw = load_digits()
    images, labels = torch.from_numpy(raw.images).float()[:, None], torch.from_numpy(raw.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    images = (images - images[train].mean()) / images[train].std()
    return images[train], labels[train], images[test], labels[test]


def encoder() -> VisionTransformer:
    """Return a small ViT of timm without a class token: images in, one vector a patch out, ``(B, 16, WIDTH)``."""
    model = VisionTransformer(SIDE, PATCH, 1, 0, "", WIDTH, depth=2, num_heads=4, class_token=False)
    # Sines and cosines, as MAE has them: timm's own start is faint beside such small patches.
    model.pos_embed = nn.Parameter(build_sincos2d_pos_embed([GRID, GRID], WIDTH, interleave_sin_cos=True)[None])
    return model


def moved(images: Tensor) -> Tensor:
    """Move each image by up to one pixel: all the augmentation that digits allow."""
    down, right = torch.randint(0, 3, (2, len(images), 1)) + torch.arange(SIDE)
    wide = F.pad(images, (1, 1, 1, 1), value=float(images.min()))[:, 0]
    return wide[torch.arange(len(images))[:, None, None], down[:, :, None], right[:, None, :]][:, None]


def steps(model: nn.Module, count: int, size: int, rate: float, total: int) -> Iterator[Tensor]:
    """Yield the numbers of each step's samples, ``epoch * count + place``; then take the step that was backed up to."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    warmup, per_epoch = total // 10, count // size
    for step in range(total):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(count)
        yield epoch * count + order[place * size : (place + 1) * size]
        share = (step - warmup) / (total - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = rate * factor
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()


def pretrain(images: Tensor, total: int) -> VisionTransformer:
    """Learn to paint what is hidden. No label is used."""
    vit = encoder()
    decoder = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.GELU(), nn.ConvTranspose2d(WIDTH, 1, PATCH, stride=PATCH))
    corrupt = GroupMask(PATCH, ratio=(0.4, 0.7), fill={"noise": 1, "alien": 1}, group_size=(1, 2), seed=0)
    losses: list[float] = []
    for number in steps(nn.ModuleList([vit, decoder]), len(images), 64, 3e-3, total):
        batch = moved(images[number % len(images)])
        corrupted, mask = corrupt(batch, index=number)
        painted = decoder(vit(corrupted).transpose(1, 2).unflatten(2, (GRID, GRID)))
        hidden = patch_to_pixel(mask, PATCH)
        loss = ((painted - batch).abs() * hidden).sum() / hidden.sum()
        loss.backward()
        losses.append(loss.item())
        if len(losses) % (total // 5) == 0:
            recent = statistics.mean(losses[-total // 5 :])
            print(f"pretraining, step {len(losses):>5,} of {total:,}: loss {recent:.3f} on hidden pixels", flush=True)
    return vit


def accuracy(vit: VisionTransformer, few: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], total: int) -> float:
    """Return the accuracy in percent of a classifier on the mean of the patches, after training all of its weights."""
    # Normed over the batch: what tells images apart in the mean is small beside what they share.
    head = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, 10))
    images, labels = few
    for number in steps(nn.ModuleList([vit, head]), len(labels), min(50, len(labels)), 4e-3, total):
        place = number % len(labels)
        F.cross_entropy(head(vit(moved(images[place])).mean(1)), labels[place]).backward()
    head.eval()
    with torch.no_grad():
        return 100 * float((head(vit(test[0]).mean(1)).argmax(1) == test[1]).float().mean())


def main(pretraining: int = 700, finetuning: int = 100) -> None:
    torch.manual_seed(0)
    images, labels, *test = digits()
    vit = pretrain(images, pretraining)
    found: dict[str, list[float]] = {"from scratch": [], "pretrained": []}
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        shuffled = torch.randperm(len(labels))
        few = torch.cat([shuffled[labels[shuffled] == c][:LABELS] for c in range(10)])
        for side, each in found.items():
            start = encoder()
            if side == "pretrained":
                start.load_state_dict(vit.state_dict())
            each.append(accuracy(start, (images[few], labels[few]), (test[0], test[1]), finetuning))
    print(f"accuracy on {len(test[1])} held-out digits with {LABELS} labels a class, over {DRAWS} draws of the labels:")
    for side, each in found.items():
        print(f"{side:>14}: {statistics.mean(each):.1f} % ± {statistics.stdev(each):.1f}")


if __name__ == "__main__":
    main()
