"""Train a classifier of your photographs on a pretrained network, and name what is in others.

    python examples/finetune.py RUN --data PATH            # a finished run of pretrain.py, and one folder a class
    python examples/finetune.py RUN --predict PHOTO...     # the three most probable classes of each photograph
    python examples/finetune.py X.safetensors --predict PHOTO...    # the same, by a classifier of another --output

PATH is as for pretrain.py: a fifth of <class>/* is held out, or there are train/ and test/. All weights are trained, as
evaluate.py does it. It prints the accuracy on the held-out images, and writes classifier.safetensors to RUN with
classifier.json: the names of the classes, and all that --predict needs.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from reference.config import Parser


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", help="images to train on, one folder a class; named as for pretrain.py")
    either.add_argument("--predict", type=Path, nargs="+", metavar="PHOTO", help="photographs, or folders of them")
    parser.add_argument("--epochs", type=int, help="passes over the images; default 20, and at least 200 steps")
    parser.add_argument("--lr", type=float, help="peak learning rate; default the middle one of the run's --rates")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the crops; default 0")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default RUN/classifier.safetensors")
    args = parser.parse_args(arguments)
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs is at least 1; got {args.epochs}")
    if args.lr is not None and not 0 < args.lr < math.inf:
        parser.error(f"--lr is more than 0 and finite; got {args.lr}")
    if args.seed < 0:
        parser.error(f"--seed is at least 0; got {args.seed}")
    if args.output and args.output.suffix != ".safetensors":
        parser.error(f"--output names a file that ends in .safetensors; got {args.output}")
    from reference.classifier import predict, train

    if args.predict:
        if args.output:
            parser.error(f"--predict writes no file: to predict with {args.output}, give it in RUN's place")
        predict(args.run, args.predict)
    else:
        train(args, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
