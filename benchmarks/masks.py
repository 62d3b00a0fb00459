"""Compare the masks of this library with those of others: 20,000 of each, in one table.

    python benchmarks/masks.py [--dinov2 PATH] [--dinov3 PATH] [--unilm PATH] [--ijepa PATH] [--vjepa2 PATH]
        [--mmpretrain PATH] [--stable-pretraining PATH] [--output masks.json]

The paths are checkouts of the libraries that are on no package index (MMPretrain's needs `pip install mmengine
mmcv-lite` too); a row whose library or checkout is missing is left out. The grid has 14x14 patches, and half of them
are asked for where a library takes a share. The columns:

- got: the smallest and largest share that a mask hides, and how many masks hide just the share asked for
- most : least: how often the most often hidden patch is hidden, over the least often hidden one
- last row: how often a patch of the last row is hidden, over all patches; 1 is even, 0 never
- components: connected regions of a mask, on average
- fork: whether two processes that are forked from one draw the same masks. DataLoader seeds its workers apart; other
  pools do not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from torch import Tensor

from gmml_aug import GroupMask, __version__, describe

MASKS, HALF = 20_000, peers.HIDDEN / peers.GRID**2
Draw = Callable[[int], Tensor]  # how many masks -> (B, gh, gw) bool


def ours(**how: Any) -> Draw:
    corrupt = GroupMask(peers.PATCH, 0.5, **how)
    return lambda batch: corrupt.sample((batch, 1, *(peers.GRID * peers.PATCH,) * 2)).mask


def every(paths: dict[str, str | None]) -> dict[str, tuple[float | None, Draw]]:
    """Return each row's name, the share that is asked for, if one is, and how masks are drawn."""

    def of(function: Callable[..., Tensor], name: str, *more: object) -> Draw:
        return lambda batch: function(paths[name], batch, *more)

    return {
        "gmml_aug GroupMask": (HALF, ours()),
        "gmml_aug, seed=0": (HALF, ours(seed=0)),
        "gmml_aug, placement='inside'": (HALF, ours(placement="inside")),
        "gmml_aug, group_size=(1, 1)": (HALF, ours(group_size=(1, 1))),
        "lightly random_block_mask": (HALF, lambda batch: peers.lightly_blocks(batch, "cpu")()),
        "lightly random_token_mask": (HALF, lambda batch: peers.lightly_tokens(batch, "cpu")()),
        "lightly random_grid_token_mask, grid_size=2": (HALF, peers.lightly_grid),
        "lightly random_inverse_block_mask": (HALF, peers.lightly_inverse),
        "BEiT MaskingGenerator": (HALF, of(peers.beit_masks, "unilm")),
        "DINOv2 MaskingGenerator": (HALF, lambda batch: peers.dinov2_masks(paths["dinov2"], batch, "cpu")()),
        "DINOv3 MaskingGenerator": (HALF, of(peers.dinov3_masks, "dinov3")),
        "MMPretrain BEiTMaskGenerator": (HALF, of(peers.mmpretrain_beit, "mmpretrain")),
        "MMPretrain SimMIMMaskGenerator": (HALF, of(peers.mmpretrain_simmim, "mmpretrain")),
        "stable-pretraining PatchMasking": (HALF, of(peers.stable_pretraining_masks, "stable_pretraining", 1)),
        "stable-pretraining, block_size=4": (HALF, of(peers.stable_pretraining_masks, "stable_pretraining", 4)),
        "I-JEPA, targets": (None, of(peers.ijepa_targets, "ijepa")),
        "V-JEPA 2, targets of a frame": (None, of(peers.vjepa2_targets, "vjepa2")),
    }


def repeats(draw: Draw) -> bool:
    """Tell whether two processes that are forked from this one draw the same masks."""
    context = multiprocessing.get_context("fork")
    ends = []
    for _ in range(2):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=lambda end: end.send(draw(8).tolist()), args=(there,))
        process.start()
        ends.append((here, process))
    first, second = (here.recv() for here, _ in ends)
    for _, process in ends:
        process.join()
    return bool(first == second)


def figures(asked: float | None, draw: Draw) -> dict[str, Any]:
    """Return what a row of the table says."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    masks = draw(MASKS)[:MASKS]
    found = describe(masks)
    exact = None if asked is None else float((masks.sum((1, 2)) == round(asked * masks[0].numel())).float().mean())
    return {
        "asked": asked,
        "got": [float(found.share.min()), float(found.share.max())],
        "exact": exact,
        "most_to_least": float(found.most_to_least),
        "last_row": float(found.frequency[-1].mean() / found.frequency.mean()),
        "components": float(found.components.double().mean()),
        "fork_repeats": repeats(draw),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dinov2", "dinov3", "unilm", "ijepa", "vjepa2", "mmpretrain", "stable-pretraining"):
        parser.add_argument(f"--{name}", metavar="PATH", help="a checkout")
    parser.add_argument("--output", type=Path, metavar="FILE", help="for all figures, as JSON")
    paths = vars(parser.parse_args())
    output = paths.pop("output")
    torch.set_num_threads(1)  # so that a fork finds no threads of a pool
    rows: dict[str, Any] = {}
    print("| | got, % | exact | most : least | last row | components | fork |\n|---|---|---|---|---|---|---|")
    for name, (asked, draw) in every(paths).items():
        try:
            row = rows[name] = figures(asked, draw)
        except (ImportError, FileNotFoundError) as reason:
            print(f"left out: {name}: {reason}")
            continue
        got = " to ".join(f"{100 * share:.0f}" for share in sorted(set(row["got"])))
        evenness = f"{row['most_to_least']:,.{2 * (row['most_to_least'] < 10)}f} : 1"
        exact = "" if row["exact"] is None else f"{100 * row['exact']:.0f} %"
        print(
            f"| {name} | {got} | {exact} | {evenness} | {row['last_row']:.2f} "
            f"| {row['components']:.1f} | {'repeats' if row['fork_repeats'] else 'differs'} |",
            flush=True,
        )
    if output:
        versions = {"gmml_aug": __version__, "torch": torch.__version__}
        output.write_text(json.dumps({"masks": MASKS, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
