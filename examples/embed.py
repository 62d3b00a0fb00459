"""Features of photographs by a pretrained network, and which photographs are alike.

    python examples/embed.py RUN PHOTO_OR_FOLDER...              # a finished run folder of pretrain.py
    python examples/embed.py RUN PHOTO_OR_FOLDER... --output X   # into the folder X instead of RUN

It writes features.npz with ``features`` (N, dim) float32, those that evaluate.py evaluates (the mean of the fused patch
tokens), and ``paths`` (N,); and draws neighbours.png, some photographs, each with its nearest neighbours by cosine.
Folders are searched to any depth. A photograph that cannot be read is named and left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from checkpoint import tensors, write_whole
from data import Memory, cores, in_words, photographs, read, skipped, to_side, why_not
from evaluate import outputs, settings_of
from matplotlib.figure import Figure
from model import build
from torch import Tensor
from visualise import show

AT_ONCE = 1024  # photographs in memory
SHOWN = 8  # rows of the sheet
NEIGHBOURS = 5


def find(names: list[Path]) -> list[Path]:
    """Return the photographs that are named, and those in named folders, at any depth; say what is left out."""
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for name in names:
        if not name.exists():
            raise SystemExit(f"there is no {shown(name)}: give photographs, or folders with photographs")
        if not name.is_dir():
            found.append(name)
        for parent, folders, files in os.walk(name, followlinks=True):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for path in (Path(parent, file) for file in sorted(files)):
                reason = why_not(path)
                if reason is None:
                    found.append(path)
                else:
                    left_out[reason] += 1
    if left_out:
        print(f"left out: {in_words(left_out)}", file=sys.stderr)
    if not found:
        raise SystemExit(f"there are no photographs in {', '.join(map(shown, names))}, nor in folders inside")
    return list(dict.fromkeys(found))


def shown(path: Path) -> str:
    """Return a path that any terminal and font can show."""
    return os.fsencode(path).decode("utf-8", "replace")


def described(
    function: Callable[[Tensor], Tensor], paths: list[Path], timm_config: dict[str, Any], device: torch.device
) -> tuple[np.ndarray, list[Path]]:
    """Return what a function makes of photographs ``(N, width)``, and their paths; those that can be read."""
    channels, size, _ = timm_config["input_size"]
    if channels != 3:
        raise SystemExit(f"the network takes {channels} channels, photographs have 3: give a run on photographs")
    side = math.floor(size / timm_config["crop_pct"])
    parts: list[np.ndarray] = []
    kept: list[Path] = []
    for start in range(0, len(paths), AT_ONCE):
        some = paths[start : start + AT_ONCE]
        images: list[Tensor] = []
        with ThreadPoolExecutor(cores()) as pool:
            for number, image in enumerate(pool.map(lambda path: read(path, side), some), start):
                if isinstance(image, Exception):
                    skipped(shown(paths[number]), image, number + 1 - len(kept))
                    continue
                images.append(to_side(image, side))
                kept.append(paths[number])
        if images:
            source = Memory(torch.stack(images).to(device), torch.zeros(len(images), dtype=torch.int64))
            parts.append(outputs(function, photographs("photographs", [source], [], size), source)[0])
    if not parts:
        raise SystemExit(f"none of the {len(paths)} photographs can be read")
    return np.concatenate(parts), kept


def draw_neighbours(features: np.ndarray, paths: list[Path], path: Path) -> None:
    """Draw some photographs, evenly spaced in their order, each with its nearest neighbours by cosine."""
    rows, columns = min(SHOWN, len(paths)), min(NEIGHBOURS, len(paths) - 1)
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    chosen = torch.arange(rows) * len(paths) // rows
    cosine = unit[chosen] @ unit.T
    cosine[torch.arange(rows), chosen] = -torch.inf  # not its own neighbour
    nearest = cosine.topk(columns)
    figure = Figure(figsize=(1.6 * (columns + 1), 1.75 * rows + 0.5), layout="compressed")
    figure.suptitle("Photographs (left) and their nearest neighbours by cosine of the features", fontsize=9)
    axes = figure.subplots(rows, columns + 1, squeeze=False)
    for row, query in enumerate(chosen.tolist()):
        others = zip(nearest.indices[row].tolist(), nearest.values[row].tolist(), strict=True)
        for axis, (number, near) in zip(axes[row], [(query, None), *others], strict=True):
            picture = read(paths[number], 160)
            if isinstance(picture, Tensor):  # it may be gone by now
                show(axis, picture / 255)
            name = shown(Path(*paths[number].parts[-2:]))
            name = name if len(name) <= 24 else "…" + name[-23:]
            axis.set_title(name if near is None else f"{name}\n{near:.3f}", fontsize=6, parse_math=False)
    figure.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    parser.add_argument("photographs", type=Path, nargs="+", metavar="PHOTO_OR_FOLDER", help="any number of them")
    parser.add_argument("--output", type=Path, help="the folder to write to; RUN if not given")
    args = parser.parse_args(arguments)
    output: Path = args.output or args.run
    settings, paths = settings_of(args.run), find(args.photographs)
    for name in args.photographs:
        if name.is_dir() and output.resolve().is_relative_to(name.resolve()):
            raise SystemExit(f"{output} is inside {name}, whose photographs are looked for: give another --output")
    config = json.loads((args.run / "encoder.json").read_text())
    if "pretrained_cfg" not in config:
        raise SystemExit(
            f"{args.run}/encoder.json is of an earlier pretrain.py, and lacks the crop: pretrain again, elsewhere"
        )
    device = PartialState().device
    body = build(settings, config["in_chans"])[0]
    body.load_state_dict(tensors(args.run / "autoencoder.safetensors"))
    features, kept = described(body.to(device).eval().pooled, paths, config["pretrained_cfg"], device)

    output.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"features": features, "paths": np.array([str(path) for path in kept])}

    def write(unfinished: Path) -> None:
        with open(unfinished, "wb") as file:  # by its name NumPy would add .npz
            np.savez(file, **arrays)

    write_whole(output / "features.npz", write)
    print(f"wrote {output}/features.npz: {len(kept)} photographs, {features.shape[1]} features each")
    if len(kept) > 1:
        draw_neighbours(features, kept, output / "neighbours.png")
        print(f"drew {output}/neighbours.png")


if __name__ == "__main__":
    main()
