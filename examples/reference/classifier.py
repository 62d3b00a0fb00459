"""A classifier of one's own photographs: trained, saved with its class names, and used."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from .checkpoint import save_tensors, save_text, tensors
from .config import Config
from .embedding import described, find, shown
from .evaluation import evaluation_of, made_by
from .finetuning import batch_of, finetune, labels_of, outputs
from .finished import opened
from .model import Classifier, build
from .runs import check_writable

LEAST_STEPS = 200  # where --epochs is not given
SHOWN = 3


def train(args: argparse.Namespace, words: list[str]) -> None:
    output: Path = args.output or args.run / "classifier.safetensors"
    about = output.with_suffix(".json")
    for path in (output, about):
        if path.exists():
            raise SystemExit(f"{path} exists and is not overwritten: delete it, or give another --output")
    check_writable(output.parent)
    evaluation = evaluation_of(opened(args.run, args.data))
    data, config, device = evaluation.data, evaluation.config, evaluation.device
    assert data.test is not None
    count, held_out = len(data.train), len(data.test)
    per_epoch = max(1, count // batch_of(count))
    epochs = args.epochs or max(20, math.ceil(LEAST_STEPS / per_epoch))
    lr = args.lr or config.rates[len(config.rates) // 2]
    print(
        f"trains on {count:,} images of {len(data.classes)} classes: {epochs} epochs, learning rate {lr:g}", flush=True
    )
    model = Classifier(evaluation.autoencoder("pretrained", args.seed), len(data.classes)).to(device)
    bf16, everything = config.precision == "bf16", torch.arange(count)
    decay = config.layer_decay
    finetune(model, data, data.train, everything, lr, epochs * per_epoch, args.seed, bf16, decay, "fine-tuning")
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
        "pretraining": {"weights": evaluation.fingerprint, "config": asdict(config)},
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
    config = Config(**known["pretraining"]["config"])
    model = Classifier(build(config, known["timm_config"]["input_size"][0])[0], len(classes))
    model.load_state_dict(tensors(saved))
    model.to(device).eval()
    probable, kept = described(lambda images: model(images).softmax(1), paths, known["timm_config"], device)
    best = torch.from_numpy(probable).topk(min(SHOWN, len(classes)))
    for path, values, indices in zip(kept, best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = zip(indices, values, strict=True)
        print(f"{shown(path)}: " + ", ".join(f"{classes[index]} {100 * value:.1f} %" for index, value in pairs))
