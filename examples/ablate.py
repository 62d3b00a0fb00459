"""Compare ways to pretrain: variants of one base configuration, pretrained and judged alike, in one table.

    python examples/ablate.py runs/ablation --variants groups tokens scratch --seeds 2 -- --data PATH --epochs 16

Everything after ``--`` goes to pretrain.py for every variant. Each variant and seed is a run folder of its own inside
runs/ablation, pretrained by pretrain.py and judged by evaluate.py's code: linear probe and nearest neighbours on frozen
features with all labels, and fine-tuning for ``--steps`` with each of ``--labels`` percent. Of several ``--rates`` the
best is searched for every row and share of labels by itself, with the first seed, on training images without a label:
the best mean over ``--search-draws`` draws of labels, which are the same for all rows. ``scratch`` is the base's
network without pretraining; ``mae`` and ``simmim`` are other methods. Nothing that is finished is done again. The table
is printed and written to ablation.json: mean and standard deviation over pretraining seeds, each of which has
``--draws`` draws of labels of its own; and, paired draw by draw, the difference from the first variant. The same
command goes on where it was stopped; with other variants or more seeds it adds to what is there. It begins with a plan;
``--dry-run`` ends there.
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

# The options that each adds to the base's.
VARIANTS: dict[str, tuple[str, ...]] = {
    "groups": (),
    "tokens": ("--group-size", "1", "1"),
    "groups-1-2": ("--group-size", "1", "2"),
    "groups-1-3": ("--group-size", "1", "3"),
    "groups-3-3": ("--group-size", "3", "3"),
    "zeros": ("--fill", "zeros"),
    "noise": ("--fill", "noise"),
    "alien": ("--fill", "alien"),
    "alien-by-group": ("--fill", "alien-by-group"),
    "ratio-0.15": ("--ratio", "0.15", "0.15"),
    "ratio-0.3": ("--ratio", "0.3", "0.3"),
    "ratio-0.55": ("--ratio", "0.55", "0.55"),
    "ratio-0.75": ("--ratio", "0.75", "0.75"),
    "ratio-0.9": ("--ratio", "0.9", "0.9"),
    "last-block": ("--fuse", "last"),
    "learned-fusion": ("--fuse", "learned"),
    "loss-on-all": ("--loss", "all"),
    "normalised-targets": ("--targets", "patches"),
    "pixel-targets": ("--targets", "pixels"),
    "beta2-0.95": ("--beta2", "0.95"),
    "mae": ("--method", "mae"),
    "simmim": ("--method", "simmim"),
    # As many seconds as the base: at 64 pixels, in bf16 on a CPU, MAE makes 1.75 times its steps a second, SimMIM 1.33.
    "mae-equal-time": ("--method", "mae", "--epochs", "x1.75"),
    "simmim-equal-time": ("--method", "simmim", "--epochs", "x1.33"),
    "scratch": (),
    "epochs-x2": ("--epochs", "x2"),
    "epochs-x4": ("--epochs", "x4"),
}


# Of the options, what may change between calls for one folder.
NOT_KEPT = ("folder", "variants", "seeds", "first_seed", "dry_run")


def command(args: argparse.Namespace, variant: str, seed: int) -> list[str]:
    """Return the arguments of pretrain.py; the variant's come last and so win."""
    words = list(VARIANTS[variant])
    if "--epochs" in words:
        base = args.base[len(args.base) - args.base[::-1].index("--epochs")]
        words[-1] = str(round(int(base) * float(words[-1].removeprefix("x"))))
    return [*args.base, "--draws", "0", "--seed", str(seed), "--output", str(folder(args, variant, seed)), *words]


def folder(args: argparse.Namespace, variant: str, seed: int) -> Path:
    path: Path = args.folder / f"{variant}-seed{seed}"
    return path


def searched(args: argparse.Namespace) -> int:
    """Return how many fine-tunings the search takes for one row and share of labels."""
    return len(args.rates) * args.search_draws if len(args.rates) > 1 else 0


def judge(
    run: Path, args: argparse.Namespace, data: Data, seed: int, pretrained: bool, chosen: dict[float, Any]
) -> dict[str, list[float]]:
    """Return the accuracies, in percent, of one run; each is kept in its evaluation.jsonl.

    ``chosen`` has the learning rate for each share of labels, and what was tried; a share that it lacks is searched
    with this run.
    """
    from accelerate import PartialState
    from reference.checkpoint import tensors
    from reference.data import the_same_images
    from reference.draws import draw, draw_for_search
    from reference.evaluation import SEARCH_SEED, Evaluation, decaying, probe, search
    from reference.finetuning import labels_of
    from sklearn.neighbors import KNeighborsClassifier
    from torch import arange

    config = config_of_finished(run)
    the_same_images(run, config, data)
    count = len(args.labels) * (args.draws + (0 if chosen else searched(args)))
    weights = tensors(run / "autoencoder.safetensors")
    evaluation = Evaluation(run, config, data, PartialState().device, config.data, weights, planned=count)
    assert data.test is not None
    labels = labels_of(data.train)
    everything = arange(len(labels))
    side, what = ("pretrained", "pretrained") if pretrained else ("from scratch", "untrained")
    job = {"purpose": "ablation", "seed": seed, "percent": 100}
    found = {
        name: [evaluation.frozen({**job, "side": f"{name}, {what}"}, classifier, what, everything)]
        for name, classifier in (
            ("probe", probe(args.penalty)),
            ("neighbours", KNeighborsClassifier(20, metric="cosine")),
        )
    }
    for percent in args.labels:
        one = {"side": side, "percent": percent, "steps": args.steps, **decaying(config)}

        def score(lr: float, steps: int, percent: float = percent, one: dict[str, Any] = one) -> list[float]:
            scores = []
            for number in range(SEARCH_SEED, SEARCH_SEED + args.search_draws):
                labelled, scored = draw_for_search(labels, percent, number, data.classes)
                job = {**one, "purpose": "search", "seed": number, "lr": lr, "steps": steps}
                scores.append(evaluation.finetuned(job, labelled, (data.train, scored)))
            return scores

        if percent not in chosen:
            lr, _, tried = search(score, args.rates, [args.steps]) if searched(args) else (args.rates[0], 0, [])
            chosen[percent] = {"lr": lr, "search": tried}
        found[f"fine-tuned, {percent:g} %"] = accuracies = []
        for number in range(seed * args.draws, (seed + 1) * args.draws):
            final = {**one, "purpose": "ablation", "seed": number, "lr": chosen[percent]["lr"]}
            labelled = draw(labels, percent, number, data.classes)
            accuracies.append(evaluation.finetuned(final, labelled, (data.test, None)))
    return found


def arguments_of(given: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the variants' run folders")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME",
                        help=f"of {', '.join(VARIANTS)}; default all")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="how many, of pretraining; default 1")
    parser.add_argument("--first-seed", type=int, default=0, help="to add to a table made elsewhere; default 0")
    parser.add_argument("--labels", type=float, nargs="+", default=[10.0], help="percent; default 10")
    parser.add_argument("--draws", type=int, default=1, help="of the labels, for each seed; default 1")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="of fine-tuning; default 1e-3")
    parser.add_argument("--search-draws", type=int, default=1, help="of labels, that the search is over; default 1")
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
    if any("--epochs" in VARIANTS[variant] for variant in args.variants) and "--epochs" not in args.base:
        parser.error("the variants with other epochs need --epochs in the base configuration, after --")
    if len(set(args.variants)) < len(args.variants):
        parser.error(f"--variants names one twice: {' '.join(args.variants)}")
    for name in ("seeds", "draws", "search_draws", "steps", "penalty"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} is more than 0 and finite; got {getattr(args, name)}")
    if args.first_seed < 0:
        parser.error(f"--first-seed is at least 0; got {args.first_seed}")
    if not all(0 < rate < math.inf for rate in args.rates):
        parser.error(f"--rates are more than 0 and finite; got {args.rates}")
    if not all(0 < percent <= 100 for percent in args.labels):
        parser.error(f"--labels are percentages above 0 and at most 100; got {args.labels}")
    if args.variants[0] == "scratch":
        parser.error("scratch is not pretrained, and so not the first of --variants: another names the folder")
    return args


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    args = arguments_of(given)
    settings = {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
    kept = args.folder / "base.json"
    if kept.exists():
        before = json.loads(kept.read_text())
        for name, value in settings.items():
            if before.get(name, value) != value:
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
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    # Says now what it cannot do.
    labelled = min(len(draw(to_classify(data), percent, 0, data.classes)) for percent in args.labels)
    finished = [
        (variant, seed)
        for seed in seeds
        for variant in args.variants
        if (folder(args, variant, seed) / "encoder.safetensors").exists()
    ]
    ahead = {v: args.seeds - sum(v == done for done, _ in finished) for v in args.variants if v != "scratch"}
    steps = len(configs) * len(args.labels) * (searched(args) + args.seeds * args.draws) * args.steps
    print(plan_of_variants(configs, ahead, data, device, steps, labelled, args.seeds, args.folder), flush=True)
    if args.dry_run:
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    save_text(kept, json.dumps(settings, indent=1) + "\n")

    found: dict[str, dict[str, list[float]]] = {variant: {} for variant in args.variants}
    rates: dict[str, dict[float, Any]] = {variant: {} for variant in args.variants}
    for seed in seeds:  # all variants once, then again: a table is there early
        for variant in args.variants:
            scratch = variant == "scratch"
            run = folder(args, args.variants[0] if scratch else variant, seed)
            if not scratch and (variant, seed) not in finished:
                print(f"pretraining {run}", flush=True)
                pretrain.main(command(args, variant, seed))
            for name, values in judge(run, args, data, seed, not scratch, rates[variant]).items():
                found[variant].setdefault(name, []).extend(values)

    rows: dict[str, Any] = {}
    first = found[args.variants[0]]
    for variant, figures in found.items():
        rows[variant] = {"options": " ".join(VARIANTS[variant]) or "(base)", "rates": rates[variant]}
        for name, values in figures.items():
            pairs = zip(values, first[name], strict=True)
            rows[variant][name] = mean_spread(values)
            rows[variant][f"{name}, difference"] = mean_spread([one - base for one, base in pairs])
    columns = {"probe": "linear probe", "neighbours": "20 neighbours"}
    fine_tuned = {f"fine-tuned, {percent:g} %": f"{percent:g} % fine-tuned" for percent in args.labels}
    print(f"\nAccuracy in percent on held-out images; {args.seeds} pretraining seed(s), {args.draws} draw(s) each.\n")
    titles = [*columns.values(), *(title for name in fine_tuned.values() for title in (name, "difference"))]
    print(f"{'':<20}" + "".join(f"{title:>18}" for title in titles) + "  options")
    for variant, row in rows.items():
        cells = [written(row[name]) for name in columns]
        cells += [
            cell for name in fine_tuned for cell in (written(row[name]), written(row[f"{name}, difference"], "+"))
        ]
        print(f"{variant:<20}" + "".join(f"{cell:>18}" for cell in cells) + f"  {row['options']}")
    everything = {**made_by("ablate.py", given, device), **settings, "seeds": list(seeds), "rows": rows}
    save_text(args.folder / "ablation.json", json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
