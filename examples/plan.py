"""What a run of pretrain.py will do, said before it does it: images, network, machine, and the minutes of each part."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any, NamedTuple

import torch
from data import Data, Views, cores, in_words
from model import build, masks, parameters

from gmml_aug import patch_to_pixel

FASTER = 1.15  # how many times as fast a step is to be before it takes another thread, or half precision, for it


class Speed(NamedTuple):
    """How a step is taken, and how long one takes."""

    precision: str
    threads: int
    seconds: float


def timed(settings: dict[str, Any], data: Data, device: torch.device, precision: str, threads: int) -> Speed:
    """Take a few steps with weights that are thrown away: of few images, and where that is quick, of a whole batch.

    Reading files, which workers do beside it, is not in it.
    """
    before, part = torch.get_num_threads(), settings["batch_size"] // settings["accumulation"]
    torch.set_num_threads(threads)
    with torch.random.fork_rng():
        model = build(settings, data.channels)[0].to(device)
        optimizer = torch.optim.AdamW(parameters(model, 0.05))
        corrupt, views = masks(settings), Views(data)

        def quickest(size: int) -> float:
            seconds = []
            for raw in data.train.batches([torch.arange(size) % len(data.train)] * 3):
                since = time.perf_counter()
                images = views.augmented(raw.images)
                corrupted, mask = corrupt(images, index=raw.number)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    wrong = (model(corrupted) - images).abs()
                (wrong * patch_to_pixel(mask, settings["patch_size"])).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if device.type != "cpu":
                    torch.accelerator.synchronize()
                seconds.append(time.perf_counter() - since)
            return min(seconds)

        few = min(8, part)
        whole = quickest(few) * part / few
        if whole < 0.5:
            whole = quickest(part)
    torch.set_num_threads(before)
    return Speed(precision, threads, whole * settings["accumulation"])


def choose(args: argparse.Namespace, settings: dict[str, Any], data: Data, device: torch.device) -> Speed:
    """Return how this machine takes a step best: in which precision, and on a CPU with how many threads."""
    precisions = [args.precision] if args.precision != "auto" else ["no", "bf16"] if has_bf16(device) else ["no"]
    most = min(cores(), torch.get_num_threads())
    all_threads = [args.threads] if args.threads else sorted({1, most})
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:  # which say how many
        all_threads = [args.threads or torch.get_num_threads()]
    best: Speed | None = None
    for precision in precisions:
        for threads in all_threads:
            speed = timed(settings, data, device, precision, threads)
            if best is None or speed.seconds * FASTER < best.seconds:
                best = speed
    assert best is not None
    return best


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device may be faster in bf16: a CPU without instructions for it takes ten times as long."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type != "cpu" or any(getattr(torch.cpu, name, bool)() for name in known)


def minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def epochs_in(args: argparse.Namespace, speed: Speed, data: Data, compares: bool) -> int:
    """Return how many epochs fit into ``--minutes``, beside what comes after them.

    Raises:
        SystemExit: not one does.
    """
    per_epoch = len(data.train) // args.batch_size * speed.seconds
    left = 60 * args.minutes - (after(args, speed) if compares else 0)
    if left < per_epoch:
        raise SystemExit(
            f"--minutes {args.minutes:g} is too short: an epoch takes {minutes(per_epoch)} here, and the comparison at "
            f"the end {minutes(after(args, speed))}; give more, fewer --draws or --finetune-steps, or smaller images"
        )
    return int(left / per_epoch)


def after(args: argparse.Namespace, speed: Speed) -> float:
    """Return how many seconds the comparison at the end takes: batches of 50 from scratch, and as many pretrained."""
    seconds: float = 2 * args.draws * args.finetune_steps * speed.seconds * 50 / args.batch_size * 1.1
    return seconds


def describe(args: argparse.Namespace, data: Data, speed: Speed, weights: int, compares: bool, where: str) -> str:
    """Return the plan, a few lines."""
    held = 0 if data.test is None else len(data.test)
    steps = args.epochs * (len(data.train) // args.batch_size)
    side, patch = args.image_size, args.patch_size
    threads = f", {speed.threads} thread{'s' * (speed.threads > 1)}" if where == "cpu" else ""
    seen = "; the middle square, cropped, mirrored and jittered" if data.channels == 3 else ""  # not the digits
    lines = [
        ("images", f"{len(data.train):,} to train on, {held:,} held out" + (f"; {data.sizes}" if data.sizes else "")),
        ("left out", in_words(data.left_out)),
        ("classes", shortened(data.classes) if data.classes else "none: nothing is compared at the end"),
        ("seen as", f"{side}x{side} pixels{seen}"),
        (
            "network",
            f"{args.model}, {weights / 1e6:.1f} million weights, {(side // patch) ** 2} patches of {patch}x{patch}",
        ),
        ("machine", f"{where}{threads}, {'fp32' if speed.precision == 'no' else speed.precision}"),
        ("pretraining", f"{args.epochs:,} epochs, {steps:,} steps: {minutes(steps * speed.seconds)}"),
        ("comparison", f"{2 * args.draws} fine-tunings: {minutes(after(args, speed))}" if compares else "none"),
        ("run folder", f"{args.output}"),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def shortened(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"
