"""Measure what the trainer of the examples loses beside its network: images a second of its loop, against the same
network, optimiser and loss on one batch that stays on the device.

    python benchmarks/trainer.py --model vit_small_patch16_224 --image-size 224 --batch-size 128 --images 2000

Both take turns of ten steps, so that what else the machine does slows both alike. The loop's turn takes images from
memory, crops, jitters, gathers and corrupts them, and looks at the losses at its end, as pretrain.py does. What follows
the options here goes to pretrain.py, such as --dim, --depth, --precision and --compile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from report import about_machine, print_markdown

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import pretrain
from data import Memory, Views, order, photographs
from model import build, masks, parameters

from gmml_aug import patch_to_pixel

STEPS = 10  # of a turn: the loop looks at its losses as often


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=int, default=2000, help="random ones, held in memory; default 2000")
    parser.add_argument("--stored-size", type=int, help="pixels a side in memory; 8/7 of --image-size if not given")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each; default 10")
    parser.add_argument("--output", type=Path, help="a file for the numbers")
    here, rest = parser.parse_known_args()
    args = pretrain.parse(["--data", "photographs", *rest])
    if here.images < args.batch_size or here.rounds < 2:
        parser.error(f"--images is at least --batch-size, {args.batch_size}, and --rounds at least 2")

    args.precision = "no" if args.precision == "auto" else args.precision
    settings = vars(args)
    accelerator = Accelerator(
        mixed_precision=args.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.accumulation),
    )
    device = accelerator.device
    torch.manual_seed(args.seed)
    stored = here.stored_size or round(args.image_size * 8 / 7)
    images = torch.randint(0, 256, (here.images, 3, stored, stored), dtype=torch.uint8).to(device)
    data = photographs("random", [Memory(images, None)], [], args.image_size)
    model = build(settings, data.channels)[0]
    if args.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameters(model, weight_decay=0.04)))
    corrupt, views = masks(settings), Views(data)

    numbers = order(here.images, args.batch_size, args.seed, 0, 10**9)
    batches = data.train.batches(pretrain.mine(args, accelerator, numbers))
    steps = iter(range(10**9))

    def loop() -> None:
        recent = [
            pretrain.update(args, next(steps), batches, views, corrupt, model, optimizer, accelerator)
            for _ in range(STEPS)
        ]
        pretrain.look_at(recent, args, accelerator, here.images, 0)

    part = args.batch_size // args.accumulation // accelerator.num_processes
    target = torch.randn(part, data.channels, args.image_size, args.image_size, device=device)
    corrupted, mask = corrupt(target)
    counted = patch_to_pixel(mask, args.patch_size)

    def network_alone() -> None:
        for _ in range(STEPS * args.accumulation):
            with accelerator.accumulate(model):
                wrong = (model(corrupted) - target).abs() * counted
                accelerator.backward(wrong.sum() / (counted.sum() * data.channels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip)
                optimizer.step()
                optimizer.zero_grad()

    sides = {"loop": loop, "network alone": network_alone}
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(here.rounds + 1):
        for side, turn in sides.items():
            _wait(device)
            start = time.perf_counter()
            turn()
            _wait(device)
            if round_:  # the first one warms up
                speeds[side].append(STEPS * args.batch_size / (time.perf_counter() - start))
    if not accelerator.is_main_process:
        return
    machine = about_machine(device.type, torch.get_num_threads())
    machine["accelerate"] = importlib.metadata.version("accelerate")
    ratios = [a / b for a, b in zip(speeds["loop"], speeds["network alone"], strict=True)]
    rows: dict[str, Any] = {side: {"images_per_second": values, **spread(values)} for side, values in speeds.items()}
    rows["loop / network alone"] = {"ratios": ratios, **spread(ratios)}
    print("; ".join(f"{key}: {value}" for key, value in machine.items()))
    title = f"{args.model}, {args.image_size} pixels, batches of {args.batch_size} (median of {here.rounds} rounds)"
    lines = [
        [name, f"{row['median']:.4g}", "{:.4g} to {:.4g}".format(*row["middle_half"])] for name, row in rows.items()
    ]
    print_markdown(title, ["", "images/s", "middle half"], lines)
    if here.output is not None:
        options = {name: value for name, value in settings.items() if name not in ("output", "data")}
        report = {**machine, "processes": accelerator.num_processes, "images": here.images, "stored_size": stored}
        here.output.write_text(json.dumps({**report, "options": options, "rows": rows}, indent=1) + "\n")
    accelerator.end_training()


def spread(values: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "middle_half": (low, high)}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


if __name__ == "__main__":
    main()
