"""What matters in pretraining: variants of one base configuration, pretrained and judged alike, in one table.

    python examples/ablate.py runs/ablation --variants groups tokens --seeds 2 -- --data PATH --epochs 16 --dim 96

Everything after ``--`` goes to pretrain.py for every variant. Each variant and seed is a run folder of its own inside
runs/ablation, pretrained by pretrain.py and judged by evaluate.py's code: linear probe and nearest neighbours on frozen
features with all labels, and fine-tuning with ``--labels`` percent of them at ``--rate`` for ``--steps``, which are the
same for all variants (search them once, with evaluate.py on the base). What is finished is not done again. The
table is printed and written to ablation.json: mean and standard deviation over pretraining seeds, each of which has a
draw of labels of its own; and, paired over the seeds, the difference from the first variant. The same command goes on
where it was stopped; with other variants or more seeds it adds to what is there. It begins with a plan; ``--dry-run``
ends there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pretrain
from reference.config import Parser, config_of_finished, parse, resolved

if TYPE_CHECKING:
    from reference.data.sources import Data

# What each adds to the base's options; the base hides groups of noise or alien patches, 40 to 70 %.
VARIANTS: dict[str, tuple[str, ...]] = {
    "groups": (),
    "tokens": ("--group-size", "1", "1"),
    "groups-1-2": ("--group-size", "1", "2"),
    "groups-1-3": ("--group-size", "1", "3"),
    "zeros": ("--fill", "zeros"),
    "noise": ("--fill", "noise"),
    "alien": ("--fill", "alien"),
    "ratio-0.15": ("--ratio", "0.15", "0.15"),
    "ratio-0.3": ("--ratio", "0.3", "0.3"),
    "ratio-0.55": ("--ratio", "0.55", "0.55"),
    "ratio-0.75": ("--ratio", "0.75", "0.75"),
    "ratio-0.9": ("--ratio", "0.9", "0.9"),
    "last-block": ("--fuse", "last"),
    "learned-fusion": ("--fuse", "learned"),
    "loss-on-all": ("--loss", "all"),
    "normalised-targets": ("--targets", "patches"),
    "beta2-0.95": ("--beta2", "0.95"),
    "mae": ("--method", "mae"),
    "simmim": ("--method", "simmim"),
    "epochs-x2": ("--epochs", "x2"),
    "epochs-x4": ("--epochs", "x4"),
}


def command(args: argparse.Namespace, variant: str, seed: int) -> list[str]:
    """Return the arguments of pretrain.py; the variant's come last and so win."""
    words = list(VARIANTS[variant])
    if words[:1] == ["--epochs"]:
        place = len(args.base) - 1 - args.base[::-1].index("--epochs")
        words[1] = str(int(args.base[place + 1]) * int(words[1][1:]))
    return [*args.base, "--draws", "0", "--seed", str(seed), "--output", str(folder(args, variant, seed)), *words]


def folder(args: argparse.Namespace, variant: str, seed: int) -> Path:
    path: Path = args.folder / f"{variant}-seed{seed}"
    return path


def judge(run: Path, args: argparse.Namespace, data: Data, seed: int) -> dict[str, float]:
    """Return the accuracies, in percent, of one pretrained run; each is kept in its evaluation.jsonl."""
    from accelerate import PartialState
    from reference.data import the_same_images
    from reference.draws import draw
    from reference.evaluation import Evaluation, probe
    from reference.finetuning import labels_of
    from sklearn.neighbors import KNeighborsClassifier
    from torch import arange

    config = config_of_finished(run)
    the_same_images(run, config, data)
    evaluation = Evaluation(run, config, data, PartialState().device, config.data, planned=1)
    labels = labels_of(data.train)
    everything = arange(len(labels))
    job = {"purpose": "ablation", "seed": seed, "percent": 100}
    labelled = draw(labels, args.labels, seed, data.classes)
    assert data.test is not None
    one = {"purpose": "ablation", "seed": seed, "percent": args.labels, "lr": args.rate, "steps": args.steps}
    return {
        "probe": evaluation.frozen({**job, "side": "probe"}, probe(args.penalty), "pretrained", everything),
        "neighbours": evaluation.frozen(
            {**job, "side": "neighbours"}, KNeighborsClassifier(20, metric="cosine"), "pretrained", everything
        ),
        "fine-tuned": evaluation.finetuned({**one, "side": "pretrained"}, labelled, (data.test, None)),
    }


def arguments_of(given: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the variants' run folders")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME",
                        help=f"of {', '.join(VARIANTS)}; default all")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="of pretraining; default 1")
    parser.add_argument("--labels", type=float, default=10.0, help="percent, for fine-tuning; default 10")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of fine-tuning; default 1e-3")
    parser.add_argument("--steps", type=int, default=600, help="of fine-tuning; default 600")
    parser.add_argument("--penalty", type=float, default=1.0, help="scikit-learn's C of the probe; default 1")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and how long it takes, and end")
    split = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:split])
    args.base = given[split + 1 :]
    if not args.base:
        parser.error("give the base configuration after --, such as: -- --data PATH --epochs 16")
    mine = {"--seed", "--draws", "--output", "--dry-run"} & {word.partition("=")[0] for word in args.base}
    if mine:
        parser.error(f"{', '.join(sorted(mine))} after --: ablate.py sets it for each run itself; leave it out")
    if any(variant.startswith("epochs") for variant in args.variants) and "--epochs" not in args.base:
        parser.error("the variants of the epochs need --epochs in the base configuration, after --")
    if len(set(args.variants)) < len(args.variants):
        parser.error(f"--variants names one twice: {' '.join(args.variants)}")
    for name in ("seeds", "rate", "steps", "penalty"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} is more than 0 and finite; got {getattr(args, name)}")
    if not 0 < args.labels <= 100:
        parser.error(f"--labels is a percentage above 0 and at most 100; got {args.labels:g}")
    return args


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    args = arguments_of(given)
    settings = {
        name: value for name, value in vars(args).items() if name not in ("folder", "variants", "seeds", "dry_run")
    }
    kept = args.folder / "base.json"
    if kept.exists():
        before = json.loads(kept.read_text())
        for name, value in settings.items():
            if before[name] != value:
                raise SystemExit(f"{args.folder} was made with {name} {before[name]}, not {value}; take another folder")
    calls = {variant: parse(command(args, variant, 0), pretrain.__doc__) for variant in args.variants}

    import torch
    from accelerate import PartialState
    from reference.checkpoint import save_text
    from reference.data import of_run
    from reference.draws import draw
    from reference.evaluation import made_by, mean_spread, written
    from reference.finetuning import to_classify
    from reference.plan import plan_of_variants

    configs = {variant: resolved(call.given, torch.accelerator.is_available()) for variant, call in calls.items()}
    device = PartialState().device
    data = of_run(configs[args.variants[0]], device)
    labelled = len(draw(to_classify(data), args.labels, 0, data.classes))  # says now what it cannot do
    finished = [
        (variant, seed)
        for seed in range(args.seeds)
        for variant in args.variants
        if (folder(args, variant, seed) / "encoder.safetensors").exists()
    ]
    ahead = {v: args.seeds - sum(v == done for done, _ in finished) for v in args.variants}
    print(plan_of_variants(configs, ahead, data, device, args.steps, labelled, args.seeds, args.folder), flush=True)
    if args.dry_run:
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    save_text(kept, json.dumps(settings, indent=1) + "\n")

    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in args.variants}
    for seed in range(args.seeds):  # all variants once, then again: a table is there early
        for variant in args.variants:
            run = folder(args, variant, seed)
            if (variant, seed) not in finished:
                print(f"pretraining {run}", flush=True)
                pretrain.main(command(args, variant, seed))
            found[variant].append(judge(run, args, data, seed))

    rows: dict[str, Any] = {}
    first = found[args.variants[0]]
    for variant, each in found.items():
        rows[variant] = {"options": " ".join(VARIANTS[variant]) or "(base)"}
        for name in each[0]:
            pairs = zip(each, first, strict=True)
            rows[variant][name] = mean_spread([one[name] for one in each])
            rows[variant][f"{name}, difference"] = mean_spread([one[name] - base[name] for one, base in pairs])
    columns = {"probe": "linear probe", "neighbours": "20 neighbours", "fine-tuned": f"{args.labels:g} % fine-tuned"}
    print(f"\nAccuracy in percent on held-out images; {args.seeds} pretraining seed(s).\n")
    print(f"{'':<16}" + "".join(f"{title:>16}" for title in columns.values()) + f"{'difference':>16}  options")
    for variant, row in rows.items():
        cells = [written(row[name]) for name in columns] + [written(row["fine-tuned, difference"], "+")]
        print(f"{variant:<16}" + "".join(f"{cell:>16}" for cell in cells) + f"  {row['options']}")
    everything = {**made_by("ablate.py", given, device), **settings, "seeds": args.seeds, "rows": rows}
    save_text(args.folder / "ablation.json", json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
