"""Train a classifier of your photographs on a pretrained network, and name what is in others.

    python examples/finetune.py RUN --data PATH            # a finished run of pretrain.py, and one folder a class
    python examples/finetune.py RUN --predict PHOTO...     # the three most probable classes of each photograph
    python examples/finetune.py X.safetensors --predict PHOTO...    # the same, by a classifier of another --output

PATH is as for pretrain.py: a fifth of <class>/* is held out, or there are train/ and test/. All weights are trained, as
evaluate.py does it. It prints the accuracy on the held-out images, and writes classifier.safetensors to RUN with
classifier.json: the names of the classes, and all that --predict needs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from checkpoint import save_tensors, save_text, tensors
from embed import described, find, shown
from evaluate import batch_of, finetune, labels_of, made_by, opened, outputs
from model import Classifier, build

LEAST_STEPS = 200  # where --epochs is not given
SHOWN = 3


def train(args: argparse.Namespace, words: list[str]) -> None:
    output: Path = args.output or args.run / "classifier.safetensors"
    about = output.with_suffix(".json")
    for path in (output, about):
        if path.exists():
            raise SystemExit(f"{path} exists and is not overwritten: delete it, or give another --output")
    evaluation = opened(args.run, args.data)
    data, settings, device = evaluation.data, evaluation.settings, evaluation.device
    assert data.test is not None
    count, held_out = len(data.train), len(data.test)
    per_epoch = max(1, count // batch_of(count))
    epochs = args.epochs or max(20, math.ceil(LEAST_STEPS / per_epoch))
    lr = args.lr or settings["lr_pretrained"]
    print(
        f"trains on {count:,} images of {len(data.classes)} classes: {epochs} epochs, learning rate {lr:g}", flush=True
    )
    model = Classifier(evaluation.autoencoder("pretrained", args.seed), len(data.classes)).to(device)
    bf16, everything = settings["precision"] == "bf16", torch.arange(count)
    finetune(model, data, data.train, everything, lr, epochs * per_epoch, args.seed, bf16, "fine-tuning")
    logits, labels = outputs(model.eval(), data, data.test)
    accuracy = 100 * float((logits.argmax(1) == labels).mean())
    chance = 100 * float(labels_of(data.test).bincount().max()) / held_out
    print(f"accuracy on {held_out:,} held-out images: {accuracy:.1f} %; always the most common class: {chance:.1f} %")

    described_by = {
        "classes": data.classes,
        "accuracy": accuracy,
        "most_common_class": chance,
        "training_images": count,
        "held_out_images": held_out,
        "epochs": epochs,
        "lr": lr,
        "seed": args.seed,
        "timm_config": data.timm_config,
        "pretraining": {"weights": evaluation.fingerprint, **settings},
        **made_by("finetune.py", words, device),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_text(about, json.dumps(described_by, indent=1) + "\n")
    save_tensors(output, model.state_dict())
    print(f"wrote {output} and {about}")


def predict(saved: Path, names: list[Path]) -> None:
    """Print the most probable classes of photographs."""
    if saved.suffix != ".safetensors":
        saved = saved / "classifier.safetensors"
    about = saved.with_suffix(".json")
    for path in (saved, about):
        if not path.exists():
            raise SystemExit(f"there is no {path}: train a classifier first, finetune.py RUN --data PATH")
    known: dict[str, Any] = json.loads(about.read_text())
    if "classes" not in known or "timm_config" not in known:
        raise SystemExit(f"{about} describes no classifier of finetune.py: give the file that it wrote")
    paths, classes, device = find(names), known["classes"], PartialState().device
    model = Classifier(build(known["pretraining"], known["timm_config"]["input_size"][0])[0], len(classes))
    model.load_state_dict(tensors(saved))
    model.to(device).eval()
    probable, kept = described(lambda images: model(images).softmax(1), paths, known["timm_config"], device)
    best = torch.from_numpy(probable).topk(min(SHOWN, len(classes)))
    for path, values, indices in zip(kept, best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = zip(indices, values, strict=True)
        print(f"{shown(path)}: " + ", ".join(f"{classes[index]} {100 * value:.1f} %" for index, value in pairs))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder of pretrain.py")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", help="images to train on, one folder a class; named as for pretrain.py")
    either.add_argument("--predict", type=Path, nargs="+", metavar="PHOTO", help="photographs, or folders of them")
    parser.add_argument("--epochs", type=int, help="passes over the images; default 20, and at least 200 steps")
    parser.add_argument("--lr", type=float, help="peak learning rate; default the run's --lr-pretrained")
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
    if args.predict:
        if args.output:
            parser.error(f"--predict writes no file: to predict with {args.output}, give it in RUN's place")
        predict(args.run, args.predict)
    else:
        train(args, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
