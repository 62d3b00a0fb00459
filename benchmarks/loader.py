"""Time the start of a DataLoader whose workers draw masks: one run in a process of its own, which report.py starts.

python benchmarks/loader.py --how gmml_aug --start spawn
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ITEMS, BATCH = 4096, 64


class Masks(Dataset[Tensor]):
    """Give one mask for each sample, drawn in the worker that is asked for it."""

    def __init__(self, how: str, dinov2: str) -> None:
        self.how, self.dinov2 = how, dinov2
        self.draw: Any = None  # made in the worker

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, i: int) -> Tensor:
        if self.draw is None:
            self.draw = _drawer(self.how, self.dinov2)
        mask: Tensor = self.draw()
        return mask


def _drawer(how: str, dinov2: str) -> Any:
    import peers

    if how.startswith("gmml_aug"):
        from gmml_aug import GroupMask

        corrupt = GroupMask(peers.PATCH, 0.5, seed=0)
        return lambda: corrupt.sample((3, 224, 224)).mask
    draw = peers.lightly_blocks(1, "cpu") if how.startswith("lightly") else peers.dinov2_masks(dinov2, 1, "cpu")
    return lambda: draw()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", required=True)
    parser.add_argument("--start", choices=["fork", "spawn"], required=True)
    parser.add_argument("--dinov2", default="")
    args = parser.parse_args()
    torch.manual_seed(0)
    # Forked workers have already all that a script imports at its top. Nothing is drawn yet.
    _drawer(args.how, args.dinov2)
    loader = DataLoader(Masks(args.how, args.dinov2), BATCH, num_workers=2, multiprocessing_context=args.start)
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    for _ in batches:
        pass
    result = {"first_batch": first - start, "images_per_second": (ITEMS - BATCH) / (time.perf_counter() - first)}
    if args.how.startswith("gmml_aug"):
        draw = _drawer(args.how, args.dinov2)
        start = time.perf_counter()
        draw()
        result["first_mask"] = time.perf_counter() - start
        for _ in range(2000):
            draw()
        result["first_2000_masks"] = time.perf_counter() - start
    print(json.dumps(result))


if __name__ == "__main__":
    main()
