"""Search the learning rates that pretrain.py uses for fine-tuning: the same grid and the same steps for both sides.

    python examples/tune.py runs/digits [--steps 200 500]

Accuracy is measured on training images that are not among the labelled ones, over draws of labels that pretrain.py
does not use, so that nothing is chosen on the held-out images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from data import load, pick_labelled
from pretrain import accuracy, build, finetune
from safetensors.torch import load_model
from torch.utils.data import DataLoader, Subset

RATES = (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3)
DRAWS = (100, 101, 102)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of pretrain.py")
    parser.add_argument("--steps", type=int, nargs="+", help="of fine-tuning; those of the run if not given")
    options = parser.parse_args()
    args = argparse.Namespace(**json.loads((options.run / "config.json").read_text()))
    data = load(args.data, args.image_size)
    encoder = build(args, data)
    load_model(encoder, str(options.run / "autoencoder.safetensors"))

    print(f"{'steps':>6}{'side':>14}{'rate':>9}{'mean':>8}{'stdev':>7}")
    for steps in options.steps or [args.finetune_steps]:
        args.finetune_steps = steps
        for side, start in (("from scratch", None), ("pretrained", encoder)):
            for rate in RATES:
                reached = []
                for draw in DRAWS:
                    labelled = pick_labelled(data.train_labels, args.labels_per_class, draw)
                    shuffled = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(draw))
                    others = [i for i in shuffled.tolist() if i not in labelled][:5000]
                    model = finetune(args, data, start, labelled, rate, draw, f"{side}, {rate:g}")
                    reached.append(accuracy(model, DataLoader(Subset(data.train_plain, others), 256)))
                mean, spread = statistics.mean(reached), statistics.stdev(reached)
                print(f"{steps:>6}{side:>14}{rate:>9g}{mean:>8.1f}{spread:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
