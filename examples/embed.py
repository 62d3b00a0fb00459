"""Features of photographs by a pretrained network, and which photographs are alike.

    python examples/embed.py RUN PHOTO_OR_FOLDER...              # a finished run folder of pretrain.py
    python examples/embed.py RUN PHOTO_OR_FOLDER... --output X   # into the folder X instead of RUN

It writes features.npz with ``features`` (N, dim) float32, those that evaluate.py evaluates (the mean of the fused patch
tokens), and ``paths`` (N,); and draws neighbours.png, some photographs, each with its nearest neighbours by cosine.
Folders are searched to any depth. A photograph that cannot be read is named and left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reference.config import Parser, config_of_finished


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    parser.add_argument("photographs", type=Path, nargs="+", metavar="PHOTO_OR_FOLDER", help="any number of them")
    parser.add_argument("--output", type=Path, help="the folder to write to; RUN if not given")
    args = parser.parse_args(arguments)
    output: Path = args.output or args.run
    config = config_of_finished(args.run)

    import numpy as np
    from accelerate import PartialState
    from reference.checkpoint import tensors, write_whole
    from reference.embedding import described, draw_neighbours, find
    from reference.model import build
    from reference.runs import check_writable

    check_writable(output)
    paths = find(args.photographs)
    for name in args.photographs:
        if name.is_dir() and output.resolve().is_relative_to(name.resolve()):
            raise SystemExit(f"{output} is inside {name}, whose photographs are looked for: give another --output")
    for_timm = json.loads((args.run / "encoder.json").read_text())
    device = PartialState().device
    body = build(config, for_timm["in_chans"])[0]
    body.load_state_dict(tensors(args.run / "autoencoder.safetensors"))
    features, kept = described(body.to(device).eval().pooled, paths, for_timm["pretrained_cfg"], device)

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
