"""Measure what the trainer of the examples loses beside its network: images a second of its loop, against the same
network, optimiser and loss on one batch that stays on the device.

    python benchmarks/trainer.py --model vit_small_patch16_224 --image-size 224 --batch-size 128 --images 2000

Both take turns of ten steps, so that other work on the machine slows both alike. The loop's turn takes images from
memory, crops, jitters, gathers and corrupts them, and looks at the losses at its end, as pretrain.py does. All other
options go to pretrain.py, such as --dim, --depth, --precision and --compile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from report import about_machine, print_markdown

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from reference.config import parse, resolved
from reference.data.sources import Memory
from reference.data.together import photographs
from reference.draws import order
from reference.model import build, masks, parameters
from reference.training import look_at, mine, update
from reference.views import Views

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
    config = resolved(parse(["--data", "photographs", *rest], None).given, torch.accelerator.is_available())
    if here.images < config.batch_size or here.rounds < 2:
        parser.error(f"--images is at least --batch-size, {config.batch_size}, and --rounds at least 2")

    config = replace(config, precision="no" if config.precision == "auto" else config.precision)
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation),
    )
    device = accelerator.device
    torch.manual_seed(config.seed)
    stored = here.stored_size or round(config.image_size * 8 / 7)
    images = torch.randint(0, 256, (here.images, 3, stored, stored), dtype=torch.uint8).to(device)
    data = photographs("random", [Memory(images, None)], [], config.image_size)
    model = build(config, data.channels)[0]
    if config.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameters(model, weight_decay=0.04)))
    corrupt, views = masks(config), Views(data)

    numbers = order(here.images, config.batch_size, config.seed, 0, 10**9)
    batches = data.train.batches(mine(config, accelerator, numbers))
    steps = iter(range(10**9))

    def loop() -> None:
        recent = [
            update(config, next(steps), batches, views, corrupt, model, optimizer, accelerator) for _ in range(STEPS)
        ]
        look_at(recent, config, Path(), accelerator, here.images, 0)

    part = config.batch_size // config.accumulation // accelerator.num_processes
    target = torch.randn(part, data.channels, config.image_size, config.image_size, device=device)
    corrupted, mask = corrupt(target)
    counted = patch_to_pixel(mask, config.patch_size)

    def network_alone() -> None:
        for _ in range(STEPS * config.accumulation):
            with accelerator.accumulate(model):
                wrong = (model(corrupted) - target).abs() * counted
                accelerator.backward(wrong.sum() / (counted.sum() * data.channels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), config.clip)
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
                speeds[side].append(STEPS * config.batch_size / (time.perf_counter() - start))
    if not accelerator.is_main_process:
        return
    machine = about_machine(device.type, torch.get_num_threads())
    machine["accelerate"] = importlib.metadata.version("accelerate")
    ratios = [a / b for a, b in zip(speeds["loop"], speeds["network alone"], strict=True)]
    rows: dict[str, Any] = {side: {"images_per_second": values, **spread(values)} for side, values in speeds.items()}
    rows["loop / network alone"] = {"ratios": ratios, **spread(ratios)}
    print("; ".join(f"{key}: {value}" for key, value in machine.items()))
    title = (
        f"{config.model}, {config.image_size} pixels, batches of {config.batch_size} (median of {here.rounds} rounds)"
    )
    lines = [
        [name, f"{row['median']:.4g}", "{:.4g} to {:.4g}".format(*row["middle_half"])] for name, row in rows.items()
    ]
    print_markdown(title, ["", "images/s", "middle half"], lines)
    if here.output is not None:
        options = {name: value for name, value in asdict(config).items() if name != "data"}
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
