"""Pretrain a small ViT by group masking, fine-tune it on few labels, and hold it against the same ViT from scratch.

    python examples/pretrain.py                              # scikit-learn's digits, about two minutes on a CPU
    python examples/pretrain.py --data PATH --output DIR     # a folder of images, one folder a class; PATH/train and
                                                             # PATH/test where it has them

The run folder holds config.json, metrics.jsonl (a line for every ten steps and for every fine-tuning),
autoencoder.safetensors, encoder.safetensors (the keys of a timm VisionTransformer) and reconstructions.png; files of an
earlier run there are replaced. Method and schedule follow arXiv 2205.14986, sections 3 and 4.1; README.md here
names the differences.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from data import Data, load, pick_labelled
from model import Autoencoder, Classifier
from safetensors.torch import save_model
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from gmml_aug import GroupMask, patch_to_pixel

mpl.use("Agg")
from matplotlib import pyplot as plt

# What suits 8x8 digits and a folder of small photographs; every one of them is also an option.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 8, "patch_size": 2, "dim": 64, "depth": 4, "heads": 4, "group_size": (1, 2),
        "steps": 1500, "batch_size": 64, "base_lr": 1.2e-2,
        "finetune_steps": 200, "finetune_batch_size": 50, "lr_scratch": 2e-3, "lr_pretrained": 4e-3,
    },
    "folder": {
        "image_size": 32, "patch_size": 4, "dim": 192, "depth": 6, "heads": 3, "group_size": (1, 3),
        "steps": 2000, "batch_size": 128, "base_lr": 4e-3,
        "finetune_steps": 200, "finetune_batch_size": 50, "lr_scratch": 1e-3, "lr_pretrained": 1e-3,
    },
}  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="'digits', or a folder of images with one folder a class")
    parser.add_argument("--output", type=Path, help="the run folder; runs/<data> if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels-per-class", type=int, default=10, help="for fine-tuning")
    parser.add_argument("--draws", type=int, default=3, help="how often the labelled images are drawn anew")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--data", default="digits")
    known = first.parse_known_args(arguments)[0].data
    for name, value in DEFAULTS["digits" if known == "digits" else "folder"].items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            parser.add_argument(option, type=int, nargs=2, default=value, help=f"default {value}")
        else:
            parser.add_argument(option, type=type(value), default=value, help=f"default {value}")
    args = parser.parse_args(arguments)
    args.group_size = tuple(args.group_size)
    if args.draws < 1:
        parser.error(f"--draws is at least 1; got {args.draws}")
    args.output = args.output or Path("runs") / Path(args.data).name
    return args


def tuned(args: argparse.Namespace) -> bool:
    """Tell whether the fine-tuning rates were searched for: on the digits, at the default settings."""
    searched = {**DEFAULTS["digits"], "data": "digits", "labels_per_class": 10}
    return all(getattr(args, name) == value for name, value in searched.items())


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def build(args: argparse.Namespace, data: Data) -> Autoencoder:
    return Autoencoder(args.image_size, args.patch_size, data.channels, args.dim, args.depth, args.heads)


def pretrain(
    args: argparse.Namespace, data: Data, accelerator: Accelerator, metrics: list[dict[str, Any]]
) -> Autoencoder:
    set_seed(args.seed)
    model = build(args, data)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.04)
    workers = 0 if data.name == "digits" else min(4, os.cpu_count() or 1)
    loader = DataLoader(
        data.train,
        args.batch_size,
        shuffle=True,
        drop_last=len(data.train_labels) >= args.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    peak_lr = args.base_lr * args.batch_size * accelerator.num_processes / 256
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    warmup = max(1, min(10 * len(loader), args.steps // 4))

    corrupt = GroupMask(
        args.patch_size,
        ratio=(0.4, 0.7),
        fill={"noise": 1, "alien": 1},
        group_size=args.group_size,
        seed=args.seed,
    )
    average = None
    batches = endless(loader)
    progress = tqdm(range(args.steps), desc="pretraining", unit="step", disable=not accelerator.is_main_process)
    for step in progress:
        lr = (
            peak_lr * (step + 1) / warmup
            if step < warmup
            else cosine(peak_lr, 1e-6, (step - warmup) / (args.steps - warmup))
        )
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, cosine(0.04, 0.4, step / args.steps)

        images, _ = next(batches)
        corrupted, mask = corrupt(images)
        hidden = patch_to_pixel(mask, args.patch_size)
        with accelerator.autocast():
            reconstruction = model(corrupted)
        loss = ((reconstruction - images).abs() * hidden).sum() / (hidden.sum() * data.channels)

        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()

        if (step + 1) % 10 == 0:
            value = loss.item()
            if not math.isfinite(value):
                raise SystemExit(f"the loss is {value} at step {step + 1}; try a smaller --base-lr than {args.base_lr}")
            average = value if average is None else 0.9 * average + 0.1 * value
            progress.set_postfix(loss=f"{average:.3f}")
            metrics.append({"step": step + 1, "loss": value, "lr": lr})
    unwrapped: Autoencoder = accelerator.unwrap_model(model)
    return unwrapped


def finetune(
    args: argparse.Namespace,
    data: Data,
    encoder: Autoencoder | None,
    labelled: list[int],
    lr: float,
    seed: int,
    label: str,
) -> Classifier:
    """Train all weights on the labelled images: from ``encoder``, or from scratch where it is None."""
    torch.manual_seed(seed)
    model = Classifier(build(args, data), len(data.classes))
    if encoder is not None:
        model.body.load_state_dict(encoder.state_dict())
    device = PartialState().device
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    batch_size = min(args.finetune_batch_size, len(labelled))
    batches = endless(DataLoader(Subset(data.train, labelled), batch_size, shuffle=True, drop_last=True))
    steps, warmup = args.finetune_steps, max(1, args.finetune_steps // 10)
    for step in tqdm(range(steps), desc=label, unit="step", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * (step + 1) / warmup if step < warmup else cosine(lr, 0, (step - warmup) / (steps - warmup))
            )
        images, labels = next(batches)
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: Classifier, loader: DataLoader[Any]) -> float:
    """Return the share of images, in percent, that the model names rightly."""
    model.eval()
    device = model.head.weight.device
    hits = torch.cat([model(images.to(device)).argmax(1).cpu() == labels for images, labels in loader])
    return 100 * hits.double().mean().item()


def nearest_pixels(data: Data, labelled: list[int]) -> float:
    """Return the accuracy, in percent, of the nearest labelled image in raw pixels: what no network at all reaches."""

    def flat(dataset: Any, indices: Iterable[int]) -> tuple[Tensor, list[int]]:
        images, labels = zip(*(dataset[i] for i in indices), strict=True)
        return torch.stack(images).flatten(1), list(labels)

    classifier = KNeighborsClassifier(1).fit(*flat(data.train_plain, labelled))
    return 100 * float(classifier.score(*flat(data.test, range(len(data.test)))))  # type: ignore[arg-type]


@torch.no_grad()
def draw_reconstructions(args: argparse.Namespace, data: Data, model: Autoencoder, path: Path) -> None:
    """Draw a dozen held-out images, how they were corrupted, what the model made of them, and the masks."""
    model.eval()
    chosen = torch.linspace(0, len(data.test) - 1, 12).long().tolist()  # type: ignore[arg-type]
    samples = [data.test[i] for i in chosen]
    images = torch.stack([image for image, _ in samples])
    corrupt = GroupMask(
        args.patch_size, ratio=0.5, fill={"noise": 1, "alien": 1}, group_size=args.group_size, seed=args.seed
    )
    plan = corrupt.sample(images)
    corrupted, mask = corrupt.apply(images, plan)
    hidden = patch_to_pixel(mask, args.patch_size)
    filled = torch.where(hidden, model(corrupted), images)
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]

    rows = {
        "original": images * std + mean,
        "corrupted": corrupted * std + mean,
        "reconstruction": filled * std + mean,
        "mask (white: hidden)": hidden.double(),
    }
    figure, axes = plt.subplots(len(rows), len(images), figsize=(1.1 * len(images) + 1.2, 1.2 * len(rows) + 0.5))
    for row, (name, pictures) in enumerate(rows.items()):
        for column, picture in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                filling = ("noise", "alien")[int(plan.fill[column])]
                axis.set_title(f"{data.classes[samples[column][1]]}\n({filling})", fontsize=9)
        axes[row, 0].set_ylabel(name.replace(" (", "\n("), rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(
        "Held-out images; in the reconstruction hidden patches are the model's, visible ones as they were", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_metrics(args: argparse.Namespace, metrics: list[dict[str, Any]]) -> None:
    (args.output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    data = load(args.data, args.image_size)
    if args.data == "digits" and args.image_size != data.image_size:
        raise SystemExit(
            f"the digits are {data.image_size} pixels a side; --image-size {args.image_size} is for folders"
        )
    pick_labelled(data.train_labels, args.labels_per_class, 0)  # says now if a class has too few images
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    metrics: list[dict[str, Any]] = []
    model = pretrain(args, data, accelerator, metrics).cpu()
    if not accelerator.is_main_process:
        return

    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "config.json").write_text(json.dumps(vars(args), indent=2, default=str) + "\n")
    save_model(model, str(args.output / "autoencoder.safetensors"))
    save_model(model.encoder, str(args.output / "encoder.safetensors"))
    write_metrics(args, metrics)
    draw_reconstructions(args, data, model, args.output / "reconstructions.png")

    test = DataLoader(data.test, 256)
    sides = {"from scratch": (None, args.lr_scratch), "pretrained": (model, args.lr_pretrained)}
    results: dict[str, list[float]] = {side: [] for side in [*sides, "nearest pixels"]}
    for draw in range(args.draws):
        labelled = pick_labelled(data.train_labels, args.labels_per_class, draw)
        for side, (encoder, lr) in sides.items():
            label = f"fine-tuning {side}, {draw + 1} of {args.draws}"
            results[side].append(accuracy(finetune(args, data, encoder, labelled, lr, draw, label), test))
            metrics.append({"finetune": side, "draw": draw, "lr": lr, "accuracy": results[side][-1]})
        results["nearest pixels"].append(nearest_pixels(data, labelled))
    write_metrics(args, metrics)

    images, classes = len(data.test), len(data.classes)  # type: ignore[arg-type]
    rates = "as searched beforehand for each side by tune.py" if tuned(args) else "not tuned for this; see tune.py"
    print(
        f"\nAccuracy on {images} held-out images of {classes} classes after fine-tuning for {args.finetune_steps} "
        f"steps on\n{args.labels_per_class} labelled images a class; mean and standard deviation over {args.draws} "
        f"draws of the labelled images;\nlearning rates {rates}.\n"
    )
    print(f"{'':14}{'accuracy':>18}{'learning rate':>16}   each draw")
    for side, values in results.items():
        rate = f"{sides[side][1]:g}" if side in sides else "no network"
        spread = f"± {statistics.stdev(values):>4.1f}" if len(values) > 1 else ""
        each = "  ".join(f"{value:.1f}" for value in values)
        print(f"{side:14}{statistics.mean(values):>9.1f} % {spread:6}{rate:>16}   {each}")
    gain = statistics.mean(results["pretrained"]) - statistics.mean(results["from scratch"])
    print(f"\nPretraining changed the accuracy by {gain:+.1f} points. Pictures, weights and metrics: {args.output}/")


if __name__ == "__main__":
    main()
