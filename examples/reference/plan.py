"""The plan that is printed before a run: images, network, machine, and the minutes of each part, from timed steps."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .config import Config
from .data.photos import in_words
from .data.sources import Data
from .evaluation import Evaluation, planned
from .finetuning import batch_of, labels_of
from .machine import cores
from .model import Classifier, build, parameters
from .training import donor_block, errors, objective
from .views import Views

LEAST_STEPS = 50  # of a fine-tuning, for --minutes
FASTER = 1.15  # how many times as fast a step is to be before it takes another thread, or half precision, for it


class Speed(NamedTuple):
    """How a step is taken, and how long one takes."""

    precision: str
    threads: int
    seconds: float


def quickest(step: Callable[[int], None], size: int, device: torch.device) -> float:
    """Return the seconds of the fastest of three steps of so many images."""
    seconds = []
    for _ in range(3):
        since = time.perf_counter()
        step(size)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - since)
    return min(seconds)


def timed(step: Callable[[int], None], size: int, device: torch.device) -> float:
    """Return the seconds of a step: from a few images, and where that is quick, of all of them.

    Reading files, which workers do beside it, is not in it.
    """
    few = min(8, size)
    whole = quickest(step, few, device) * size / few
    return quickest(step, size, device) if whole < 0.5 else whole


def timed_pretraining(config: Config, data: Data, device: torch.device, precision: str, threads: int) -> Speed:
    """Take a few steps with weights that are thrown away."""
    before, part = torch.get_num_threads(), config.batch_size // config.accumulation
    torch.set_num_threads(threads)
    with torch.random.fork_rng():
        model, corrupt = objective(config, data.channels)
        model.to(device)
        optimizer, views = torch.optim.AdamW(parameters(model, 0.05)), Views(data)
        raw = next(data.train.batches([torch.arange(part) % len(data.train)]))

        def step(size: int) -> None:
            images = views.augmented(raw.images[:size])
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                wrong, counted = errors(config, model, corrupt, images, raw.number[:size], donor_block(config))
            (wrong * counted).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        seconds = timed(step, part, device)
    torch.set_num_threads(before)
    return Speed(precision, threads, seconds * config.accumulation)


def timed_finetuning(config: Config, data: Data, device: torch.device, labelled: int) -> float:
    """Return the seconds of one step of fine-tuning, with weights that are thrown away."""
    size = batch_of(labelled)
    with torch.random.fork_rng():
        model = Classifier(build(config, data.channels)[0], len(data.classes)).to(device)
        optimizer = torch.optim.AdamW(parameters(model, 0.05))
        views, raw = Views(data), next(data.train.batches([torch.arange(size) % len(data.train)]))
        labels = labels_of(data.train).to(device)[raw.number % len(data.train)]

        def step(size: int) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(views.augmented(raw.images[:size]))
            F.cross_entropy(logits.float(), labels[:size]).backward()
            optimizer.step()
            optimizer.zero_grad()

        return timed(step, size, device)


def choose(config: Config, data: Data, device: torch.device) -> Speed:
    """Return how this machine takes a step best: in which precision, and on a CPU with how many threads."""
    auto = ["no", "bf16"] if has_bf16(device) else ["no"]
    precisions = auto if config.precision == "auto" else [config.precision]
    most = min(cores(), torch.get_num_threads())
    all_threads = [config.threads] if config.threads else sorted({1, most})
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:  # which say how many
        all_threads = [config.threads or torch.get_num_threads()]
    best: Speed | None = None
    for precision in precisions:
        for threads in all_threads:
            speed = timed_pretraining(config, data, device, precision, threads)
            if best is None or speed.seconds * FASTER < best.seconds:
                best = speed
    assert best is not None
    return best


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device may be faster in bf16: a CPU without instructions for it takes ten times as long."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type != "cpu" or any(getattr(torch.cpu, name, bool)() for name in known)


class Cost(NamedTuple):
    """The work of the comparison at the end."""

    fine_tunings: int = 0
    seconds: float = 0.0


def cost(config: Config, data: Data, device: torch.device) -> Cost:
    """Return what the comparison by a run's protocol takes, by timed steps and at most; nothing without labels."""
    if not compares(config, data):
        return Cost()
    work = planned(labels_of(data.train), data.classes, config)
    smallest = round(len(data.train) * min(config.labels) / 100)
    return Cost(work.fine_tunings, 1.1 * work.steps * timed_finetuning(config, data, device, max(2, smallest)))


def compares(config: Config, data: Data) -> bool:
    """Tell whether a comparison on labels comes at the end."""
    labelled = data.test is not None and data.test.labels is not None and data.train.labels is not None
    return config.draws > 0 and labelled and len(data.classes) > 1


def fitted(
    minutes: float, config: Config, speed: Speed, data: Data, after: Cost, may_shorten: bool
) -> tuple[Config, Cost]:
    """Return the settings with as many epochs as fit into ``--minutes``, and what the comparison takes then.

    If it ``may_shorten`` them, fine-tunings get fewer steps, 50 at least, so that the comparison takes a third at most.

    Raises:
        SystemExit: not one epoch fits.
    """
    share = 20 * minutes / max(after.seconds, 1e-9)
    if may_shorten and share < 1:
        shorter = [max(LEAST_STEPS, int(share * steps)) for steps in config.finetune_steps]
        passes = [max(1, int(share * epochs)) for epochs in config.finetune_epochs]
        long = planned(labels_of(data.train), data.classes, config)
        config = replace(config, finetune_steps=tuple(shorter), finetune_epochs=tuple(passes))
        short = planned(labels_of(data.train), data.classes, config)
        after = Cost(short.fine_tunings, after.seconds * short.steps / long.steps)
    per_epoch = len(data.train) // config.batch_size * speed.seconds
    left = 60 * minutes - after.seconds
    if left < per_epoch:
        enough = math.ceil(max(3 * after.seconds, after.seconds + per_epoch) / 60)
        raise SystemExit(
            f"--minutes {minutes:g} is too short: an epoch takes {in_time(per_epoch)} here, and the comparison at the "
            f"end {in_time(after.seconds)}; give --minutes {enough}, fewer --rates, a smaller network, or "
            "--draws 0 to compare nothing"
        )
    return replace(config, epochs=int(left / per_epoch)), after


def in_time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def of_images(config: Config, data: Data) -> list[tuple[str, str]]:
    held = 0 if data.test is None else len(data.test)
    seen = "; the middle square, cropped, mirrored and jittered" if data.channels == 3 else ""  # not the digits
    return [
        ("images", f"{len(data.train):,} to train on, {held:,} held out" + (f"; {data.sizes}" if data.sizes else "")),
        ("left out", in_words(data.left_out)),
        ("classes", counted(data) if data.classes else "none: nothing is compared at the end"),
        ("seen as", f"{config.image_size}x{config.image_size} pixels{seen}"),
    ]


def of_network(config: Config, weights: int, device: torch.device, speed: Speed) -> list[tuple[str, str]]:
    threads = f", {speed.threads} thread{'s' * (speed.threads > 1)}" if device.type == "cpu" else ""
    patches = (config.image_size // config.patch_size) ** 2
    return [
        (
            "network",
            f"{config.model}, {weights / 1e6:.1f} million weights, "
            f"{patches} patches of {config.patch_size}x{config.patch_size}",
        ),
        ("machine", f"{device.type}{threads}, {'fp32' if speed.precision == 'no' else speed.precision}"),
    ]


def of_comparison(after: Cost) -> tuple[str, str]:
    return ("comparison", f"{after.fine_tunings} fine-tunings: {in_time(after.seconds)}" if after.seconds else "none")


def plan_of_pretraining(
    config: Config, data: Data, speed: Speed, after: Cost, weights: int, device: torch.device, run: Path
) -> str:
    """Return the plan, a few lines."""
    steps = config.epochs * (len(data.train) // config.batch_size)
    return "\n".join(
        f"{name:<12} {text}"
        for name, text in [
            *of_images(config, data),
            *of_network(config, weights, device, speed),
            ("pretraining", f"{config.epochs:,} epochs, {steps:,} steps: {in_time(steps * speed.seconds)}"),
            of_comparison(after),
            ("run folder", f"{run}"),
        ]
    )


def plan_of_evaluation(evaluation: Evaluation, config: Config) -> str:
    """Return the plan of evaluate.py, a few lines."""
    data, device = evaluation.data, evaluation.device
    found = evaluation.run / "evaluation.jsonl"
    before = len(found.read_text().splitlines()) if found.exists() else 0
    weights = sum(weight.numel() for weight in evaluation.weights.values())
    shares = ", ".join(f"{percent:g} %" for percent in config.labels)
    rates = f"searched among {', '.join(f'{rate:g}' for rate in config.rates)}"
    return "\n".join(
        f"{name:<12} {text}"
        for name, text in [
            *of_images(config, data),
            *of_network(config, weights, device, Speed(config.precision, torch.get_num_threads(), 0)),
            ("labels", f"{shares}, drawn {config.draws} times"),
            ("rates", rates if len(config.rates) > 1 else f"{config.rates[0]:g}, given"),
            of_comparison(cost(config, data, device)),
            ("done before", f"{before} lines of {found}; the same figures are not made again" if before else "nothing"),
        ]
    )


def plan_of_variants(
    configs: dict[str, Config],
    ahead: dict[str, int],
    data: Data,
    device: torch.device,
    steps: int,
    labelled: int,
    seeds: int,
    folder: Path,
) -> str:
    """Return the plan of ablate.py: the minutes of the runs that are ``ahead``, and of ``steps`` of fine-tuning."""
    base = next(iter(configs.values()))
    speed = choose(base, data, device)
    lines, whole = of_images(base, data), 0.0
    for variant in ahead:
        config = configs[variant]
        one = timed_pretraining(config, data, device, speed.precision, speed.threads).seconds
        seconds = one * config.epochs * (len(data.train) // config.batch_size)
        whole += ahead[variant] * seconds
        lines.append((variant, f"{ahead[variant]} of {seeds} runs to pretrain, {in_time(seconds)} each"))
    judging = steps * timed_finetuning(base, data, device, labelled)
    lines += [("judging", in_time(judging)), ("in all", in_time(whole + judging)), ("folder", f"{folder}")]
    return "\n".join(f"{name:<14} {text}" for name, text in lines)


def counted(data: Data) -> str:
    """Return the classes with how many training images each has."""
    if data.train.labels is None:
        return shortened(data.classes)
    numbers = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    return shortened([f"{name} ({number:,})" for name, number in zip(data.classes, numbers, strict=True)])


def shortened(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"
