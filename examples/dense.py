"""Measure what single patches tell after pretraining: a linear layer on frozen tokens that names every pixel's class.

    python examples/dense.py RUN --data FOLDER                      # a finished run of pretrain.py, and label maps
    python examples/dense.py RUN --data torchvision:OxfordIIITPet   # cats and dogs against what is behind them

FOLDER has ``images/*.jpg`` or ``*.png`` and ``labels/*.png`` of the same names, grey or with a palette: a pixel's value
is its class, 255 is passed over. Of the pets those between animal and background ("not classified") are passed over.
The middle square of each image, made as large as the run's images, is split into patches.

The layer is scikit-learn's logistic regression on standardised tokens, with the class that most pixels of a patch have.
That is convex: there is no learning rate, length or seed that could favour a side. Its penalty is scikit-learn's
default, the same for all. It is fitted to four fifths of the images and judged on the rest, drawn with a fixed seed:
its log-probabilities are made as large as the image, bilinearly, and the most probable class is compared with the label
of each pixel. The figure is the mean over classes of intersection over union, counted over all held-out pixels.

It is compared with an untrained network's tokens, and with colour alone: the mean red, green and blue of each patch.
All figures go to dense.json in RUN. The held-out images may be among those of pretraining, which had no labels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reference.config import Parser, config_of_finished


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    parser.add_argument("--data", required=True, help="a folder with images/ and labels/, or torchvision:OxfordIIITPet")
    args = parser.parse_args(arguments)
    config = config_of_finished(args.run)

    from accelerate import PartialState
    from reference.checkpoint import save_text, tensors
    from reference.dense import PASSED_OVER, SIDES, judged, read, tokens_of
    from reference.evaluation import made_by
    from reference.runs import check_writable
    from sklearn.model_selection import train_test_split

    check_writable(args.run)
    device = PartialState().device
    channels = tensors(args.run / "autoencoder.safetensors")["encoder.patch_embed.proj.weight"].shape[1]
    if channels != 3:
        raise SystemExit(f"{args.run} was pretrained on images of {channels} channels; photographs have 3")
    size, patch_size = config.image_size, config.patch_size
    images, labels = read(args.data, size)
    classes = [c for c in labels.unique().tolist() if c != PASSED_OVER]
    train, test = train_test_split(range(len(images)), test_size=0.2, random_state=0)
    results = {}
    for side in SIDES:
        tokens = tokens_of(side, args.run, config, images, device)
        results[side] = judged(tokens, labels, classes, patch_size, train, test)
    print(
        f"Mean intersection over union, in percent, on {len(test):,} held-out images of {args.data}, {len(classes)} "
        f"classes;\na linear layer on the frozen tokens of {patch_size}x{patch_size} pixels:\n"
    )
    for side, value in results.items():
        print(f"{side:<16}{value:5.1f}")
    words = sys.argv[1:] if arguments is None else arguments
    about = {**made_by("dense.py", words, device), "images": len(images), "held_out": len(test), "classes": classes}
    save_text(args.run / "dense.json", json.dumps({**about, "mean_iou": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
