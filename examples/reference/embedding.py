"""Features of photographs wherever they lie, and sheets of those that are alike."""

from __future__ import annotations

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
from matplotlib.figure import Figure
from torch import Tensor

from .data.photos import below, in_words, read, to_side
from .data.sources import Memory, skipped
from .data.together import photographs
from .finetuning import outputs
from .machine import cores
from .pictures import show

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
        found += below(name, left_out) if name.is_dir() else [name]
    if left_out.total():
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
