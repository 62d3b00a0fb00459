"""The options of pretrain.py, and their defaults for each kind of data. Nothing here imports torch."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn


def option(help: str, default: Any = None, **how: Any) -> Any:
    return field(default=default, metadata={"help": help, **how})


@dataclass(frozen=True)
class Config:
    """A run's settings, as config.json in its folder has them; every one with a help is an option."""

    method: str = option("of pretraining: GMML, or one to compare it with", "gmml", choices=("gmml", "mae", "simmim"))
    data: str = option(
        "'digits', a folder of images, 'torchvision:NAME' (in data/, downloaded if it is not there), or shards "
        "'FOLDER/{000..099}.tar'",
        "digits",
    )
    no_labels: bool = option("take all images of a folder, however deep", False)
    samples_per_epoch: int | None = option("for shards, whose number of images is not known", type=int)
    seed: int = option("of weights, order, crops and masks", 0, type=int, least=0)
    model: str = option("a VisionTransformer of timm", "vit_tiny_patch16_224")
    init: str | None = option("weights to start from: of timm or of an earlier run, .safetensors or .pth")
    image_size: int = option("pixels a side", type=int)
    patch_size: int = option("pixels a side", type=int)
    dim: int | None = option("width of the encoder", type=int)
    depth: int | None = option("blocks of the encoder", type=int)
    heads: int | None = option("of its attention", type=int)
    blocks: tuple[int, ...] | None = option(
        "blocks to fuse, counted from 1; every second of the upper half if not given", type=int, nargs="+"
    )
    fuse: str = option("how", "mean", choices=("mean", "last", "learned"))
    decoder_depth: int = option("pointwise layers of the decoder", 2, type=int, least=0)
    ratio: tuple[float, float] = option("share of patches hidden: from, to", (0.4, 0.7), type=float, pair=True)
    fill: tuple[str, ...] = option(
        "one is drawn per image; alien-by-group takes each group from an image of its own",
        ("noise", "alien"),
        nargs="+",
    )
    group_size: tuple[int, int] = option(
        "side of a group in patches: from, to; 1 hides single patches", type=int, pair=True
    )
    loss: str = option("pixels that count", "hidden", choices=("hidden", "all"))
    targets: str = option("pixels, or pixels normalised in each patch", "pixels", choices=("pixels", "patches"))
    beta2: float = option("of AdamW", 0.999, type=float)
    epochs: int = option(
        "passes over the images; more than a run had prolong it: from its present step on, learning rate and weight "
        "decay follow the cosine of the new length",
        type=int,
    )
    batch_size: int = option("images a step, over all processes", type=int)
    accumulation: int = option("parts that a step's batch is cut into", 1, type=int)
    base_lr: float = option("peak learning rate for a batch of 256", type=float)
    weight_decay: tuple[float, float] = option("from, to, on a cosine", (0.04, 0.4), type=float, pair=True, zero=True)
    clip: float = option("largest norm of the gradient", 3.0, type=float)
    precision: str = option(
        "of the forward pass; auto takes bf16 where a timed step is faster with it",
        choices=("auto", "no", "bf16", "fp16"),
    )
    threads: int | None = option("of a CPU; one if a timed step is as fast with it, else all of them", type=int)
    compile: bool = option("compile the network", False)
    labels: tuple[float, ...] = option("percent of the labels, for the comparison at the end", type=float, nargs="+")
    draws: int = option("how often the labelled images are drawn for it; 0 leaves it out", type=int, least=0)
    rates: tuple[float, ...] = option(
        "learning rates of fine-tuning that are searched for each side; one alone is taken", type=float, nargs="+"
    )
    search_draws: int = option("draws that the search is over", 1, type=int)
    finetune_steps: tuple[int, ...] = option("least steps of a fine-tuning; several are searched", (200,), type=int,
                                             nargs="+")  # fmt: skip
    finetune_epochs: tuple[int, ...] = option("least passes over the labelled images", (10,), type=int, nargs="+")
    layer_decay: float = option(
        "of the learning rate of fine-tuning, from each block to the one before it; 1 for the same rate in all",
        1.0,
        type=float,
    )
    training_images: int = 0
    version_of_images: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


# Defaults for 8x8 digits, small photographs on a CPU, and photographs on a GPU.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 8, "patch_size": 2, "dim": 64, "depth": 4, "heads": 4, "group_size": (1, 2),
        "epochs": 68, "batch_size": 64, "base_lr": 1.2e-2, "threads": 1, "precision": "no",
        "labels": (7.0,), "draws": 5, "rates": (4e-3,),
    },
    "photographs": {
        "image_size": 64, "patch_size": 8, "dim": 96, "depth": 4, "heads": 3, "group_size": (2, 4), "ratio": (0.5, 0.8),
        "targets": "patches",
        "epochs": 200, "batch_size": 64, "base_lr": 5e-3, "weight_decay": (0.04, 0.04), "precision": "auto",
        "labels": (10.0,), "draws": 3, "rates": (5e-4, 1e-3, 2e-3),
    },
    "photographs on a GPU": {
        "model": "vit_small_patch16_224", "image_size": 224, "patch_size": 16, "group_size": (1, 4),
        "epochs": 400, "batch_size": 256, "base_lr": 5e-4, "precision": "bf16",
        "labels": (10.0,), "draws": 3, "rates": (5e-4, 1e-3, 2e-3),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Options that say nothing of the run."""

    output: Path
    minutes: float | None
    dry_run: bool
    checkpoint_seconds: float
    log_with: tuple[str, ...]
    given: dict[str, Any]  # fields of the Config, as far as they were given


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are short: no list of all options comes before them."""

    def __init__(self, **how: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **how)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the options\n")


def defaults(name: str, default: Any) -> str:
    """Return an option's defaults in words."""
    of_kind = {kind: preset.get(name, default) for kind, preset in PRESETS.items()}
    if len(set(of_kind.values())) == 1:
        return "" if default in (None, False) else f"; default {as_typed(default)}"
    small, middle, large = (as_typed(value) for value in of_kind.values())
    photographs = f"{middle} for photographs" if middle == large else f"{middle} for photographs, {large} on a GPU"
    return f"; default {small} for the digits, {photographs}"


def as_typed(value: Any) -> str:
    """Return a value as one would type it."""
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return " ".join(map(as_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def add_options(parser: argparse.ArgumentParser, names: Sequence[str], short: str = "", default: str = "") -> None:
    """Add options for fields of the Config; those that are not given are not in what is parsed."""
    for one in fields(Config):
        if one.name not in names or "help" not in one.metadata:
            continue
        how = {k: v for k, v in one.metadata.items() if k in ("type", "choices", "nargs")}
        if one.metadata.get("pair"):
            how["nargs"] = "+"
        if one.default is False:
            how = {"action": "store_true"}
        parser.add_argument(
            f"--{one.name.removeprefix(short).replace('_', '-')}", dest=one.name, default=argparse.SUPPRESS,
            help=one.metadata["help"] + (default or defaults(one.name, one.default)), **how,
        )  # fmt: skip


def checked(parser: argparse.ArgumentParser, parsed: dict[str, Any], short: str = "") -> dict[str, Any]:
    """Return the parsed fields as the Config has them, or end with an error that names what came."""
    given: dict[str, Any] = {}
    for one in fields(Config):
        if one.name not in parsed:
            continue
        value, words = parsed[one.name], f"--{one.name.removeprefix(short).replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        for number in values:
            least = one.metadata.get("least", 1)
            if isinstance(number, int) and not isinstance(number, bool) and number < least:
                parser.error(f"{words} is at least {least}; got {number}")
            if isinstance(number, float) and not (0 < number < math.inf or (number == 0 and one.metadata.get("zero"))):
                which = "of at least" if one.metadata.get("zero") else "above"
                parser.error(f"{words} takes finite numbers {which} 0; got {number}")
        if one.metadata.get("pair"):
            if len(values) > 2:
                parser.error(f"{words} takes one number, or two: from, to; got {as_typed(tuple(values))}")
            values = [values[0], values[-1]]
        given[one.name] = tuple(values) if isinstance(value, list) else value
    for name in ("labels", "rates"):
        if name in given:
            given[name] = tuple(sorted(set(given[name])))
    if not all(percent <= 100 for percent in given.get("labels", ())):
        parser.error(f"--labels takes percentages above 0 and at most 100; got {as_typed(given['labels'])}")
    if given.get("draws", 1) > 100:
        parser.error(f"--draws is at most 100; got {given['draws']}")
    return given


def parse(arguments: list[str] | None, description: str | None) -> Call:
    """Return what the words of pretrain.py ask for; end with a line where they ask for what cannot be."""
    parser = Parser(description=description)
    options = parser.add_argument_group("the run")
    add_options(options, [one.name for one in fields(Config)])  # type: ignore[arg-type]
    call = parser.add_argument_group("this call")
    call.add_argument("--output", type=Path, help="the run folder; runs/<data> if not given")
    call.add_argument("--dry-run", action="store_true", help="say what would be done and how long it takes, and end")
    call.add_argument(
        "--minutes",
        type=float,
        help="as many epochs as fit, at most a third of it for the comparison; a run that goes on keeps what it has",
    )
    call.add_argument(
        "--checkpoint-seconds", type=float, default=60, help="from one checkpoint to the next; default 60"
    )
    call.add_argument("--log-with", nargs="*", default=[], help="trackers of Accelerate, such as tensorboard or wandb")
    parsed = vars(parser.parse_args(arguments))
    given = checked(parser, parsed)
    for name in ("minutes", "checkpoint_seconds"):
        if parsed[name] is not None and not 0 < parsed[name] < math.inf:
            parser.error(f"--{name.replace('_', '-')} is more than 0 and finite; got {parsed[name]}")
    if parsed["minutes"] is not None and "epochs" in given:
        parser.error("--minutes and --epochs both say how long; give one of them")
    data, output = given.get("data", "digits"), parsed["output"]
    if "data" in given and Path(data).is_dir():  # the same folder, however its name was completed
        data = given["data"] = os.path.normpath(data)
    if output is None and "{" in data:
        parser.error("--data names shards: give the run folder too, --output")
    folder = Path(data).resolve()
    output = output or Path("runs") / (folder.name if folder.is_dir() else data.removeprefix("torchvision:"))
    if folder.is_dir() and output.resolve().is_relative_to(folder):
        parser.error(f"--output {output} is inside --data {data}, where it would be taken for images")
    return Call(
        output, parsed["minutes"], parsed["dry_run"], parsed["checkpoint_seconds"], tuple(parsed["log_with"]), given
    )


def resolved(given: dict[str, Any], gpu: bool) -> Config:
    """Return the settings of a run: what was given, and the defaults of its kind of data."""
    digits = given.get("data", "digits") == "digits"
    preset = PRESETS["digits" if digits else "photographs on a GPU" if gpu else "photographs"]
    if "model" in given:  # has a shape of its own
        preset = preset | {"dim": None, "depth": None, "heads": None}
    config = Config(**{**preset, **given})
    if gpu and digits and "precision" not in given:
        config = replace(config, precision="bf16")
    if config.method != "gmml":
        of_gmml = {"fuse", "blocks", "decoder_depth", "ratio", "fill", "group_size", "loss", "targets"} & given.keys()
        if of_gmml:
            raise SystemExit(
                f"--method {config.method} has masks, a decoder and a loss of its own: leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in sorted(of_gmml))}"
            )
        config = replace(config, fuse="last")
    if config.beta2 >= 1:
        raise SystemExit(f"--beta2 is below 1; got {config.beta2:g}")
    if config.image_size % config.patch_size:
        raise SystemExit(
            f"--image-size {config.image_size} is no multiple of the patch, --patch-size {config.patch_size}"
        )
    if len(config.finetune_steps) != len(config.finetune_epochs):
        raise SystemExit(
            "--finetune-steps and --finetune-epochs go together, one of each for a length that is searched; got "
            f"{as_typed(config.finetune_steps)} and {as_typed(config.finetune_epochs)}"
        )
    return config


def config_of(run: Path) -> Config | None:
    """Return the settings of a run folder; None where it is no such folder."""
    try:
        found = json.loads((run / "config.json").read_text())
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        config = Config(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return config if config.version_of_images else None


def config_of_finished(run: Path) -> Config:
    """Return the settings of a finished run; end here if it is none."""
    if not (run / "config.json").exists():
        raise SystemExit(f"{run} is no run folder of pretrain.py: it has no config.json")
    config = config_of(run)
    if config is None:
        raise SystemExit(
            f"{run}/config.json is of another version of pretrain.py, or of something else: pretrain again, elsewhere"
        )
    if not (run / "autoencoder.safetensors").exists():
        raise SystemExit(f"{run} is not finished: the pretrain.py command that it was made with goes on with it")
    return config
