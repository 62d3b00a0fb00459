"""Measure what more processes cost the trainer of the examples: seconds, memory and bytes sent a step.

    for n in 1 2 4; do OMP_NUM_THREADS=1 torchrun --nproc_per_node $n benchmarks/processes.py; done

The batch is the same whatever the number of processes. Bytes are those of the loopback device, so that all of it is
counted and nothing else may use it meanwhile; memory is the largest of the processes' peaks, beyond what they had
before the first step. All further options go to pretrain.py, such as --dim and --batch-size.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from reference.config import parse, resolved
from reference.data.sources import Memory
from reference.data.together import photographs
from reference.draws import order
from reference.model import build, masks, parameters
from reference.training import mine, update
from reference.views import Views


def sent() -> int:
    """Return the bytes that went over the loopback device."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="that are timed; default 20")
    here, rest = parser.parse_known_args()
    config = resolved(parse(["--data", "photographs", "--precision", "no", *rest], None).given, gpu=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulation))
    torch.manual_seed(config.seed)
    side, count = round(config.image_size * 8 / 7), 4 * config.batch_size
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    data = photographs("random", [Memory(images, None)], [], config.image_size)
    model = build(config, 3)[0]
    weights = sum(weight.numel() for weight in model.parameters())
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameters(model, weight_decay=0.04)))
    corrupt, views = masks(config), Views(data)
    numbers = order(count, config.batch_size, config.seed, 0, 3 + here.steps)
    batches = data.train.batches(mine(config, accelerator, numbers))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(3):  # warm up
        update(config, step, batches, views, corrupt, model, optimizer, accelerator)
    accelerator.wait_for_everyone()
    since, bytes_before = time.perf_counter(), sent()
    for step in range(3, 3 + here.steps):
        update(config, step, batches, views, corrupt, model, optimizer, accelerator)
    accelerator.wait_for_everyone()
    seconds, over = (time.perf_counter() - since) / here.steps, (sent() - bytes_before) / here.steps
    grown = torch.tensor([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024])
    memory = float(accelerator.gather(grown).max())
    accelerator.print(
        f"{accelerator.num_processes} processes, batch {config.batch_size} of {config.image_size} pixels, "
        f"{weights:,} weights: {seconds:.3f} s and {over / 1e6:.2f} MB a step, {memory:.0f} MiB of memory"
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
