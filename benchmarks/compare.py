"""Print what each way of masking gives on a 14x14 grid when half of the patches are asked for: the README's table.

    python -m benchmarks.compare

Speed is the median of rounds that take turns, on this machine's CPU; the spread is that of the middle half.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import peers
from gmml_aug import GroupMask

BATCH, ROUNDS, IMAGES = 256, 15, 20_000


def main() -> None:
    torch.manual_seed(0)
    groups, tokens = GroupMask(16, 0.5, seed=0), GroupMask(16, 0.5, group_size=(1, 1), seed=0)
    ways: dict[str, Callable[[int], Tensor]] = {
        "gmml_aug, groups": lambda batch: groups.sample((batch, 3, 224, 224)).mask,
        "gmml_aug, `group_size=(1, 1)`": lambda batch: tokens.sample((batch, 3, 224, 224)).mask,
        "lightly `random_block_mask`": peers.lightly_blocks,
        "lightly `random_token_mask`": peers.lightly_tokens,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, draw in ways.items():
            start = time.perf_counter()
            draw(BATCH)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightly"))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {versions}; {IMAGES:,} masks each\n")
    print("| 98 of 196 patches asked for | masks/s (middle half) | got | exact | most : least hidden patch |")
    print("|---|---|---|---|---|")
    for name, draw in ways.items():
        mask = torch.cat([draw(500) for _ in range(IMAGES // 500)])
        count, often = mask.flatten(1).sum(1), mask.double().mean(0)
        low, middle, high = statistics.quantiles([BATCH / s for s in seconds[name]], n=4)
        print(
            f"| {name} | {middle:,.0f} ({low:,.0f} to {high:,.0f}) | {count.min()} to {count.max()} | "
            f"{100 * (count == peers.HIDDEN).double().mean():.0f} % | {often.max() / often.min():.2f} : 1 |"
        )


if __name__ == "__main__":
    main()
