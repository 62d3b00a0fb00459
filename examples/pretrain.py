"""Pretrain a vision transformer by group masking, and see on few labels what that was worth.

    python examples/pretrain.py                                # scikit-learn's digits, about two minutes on a CPU
    python examples/pretrain.py --data PATH --output runs/x    # a folder of images, with or without a folder a class
    python examples/pretrain.py --data torchvision:CIFAR10     # a data set of torchvision
    accelerate launch --num_processes 2 examples/pretrain.py   # the same run on two devices, or on several machines
    torchrun --nproc_per_node 2 examples/pretrain.py           # the same; where there is no GPU, on two CPU processes

Ctrl-C or SIGTERM ends it after a checkpoint, a second Ctrl-C at once; however it ended, the same command goes on from
the last checkpoint, and one with more --epochs prolongs the run. The run folder holds config.json, metrics.jsonl,
checkpoint.safetensors, reconstructions/, lock (while a process writes there), and at the end autoencoder.safetensors,
encoder.safetensors with encoder.json (``timm.create_model(**encoder.json)`` takes its weights) and results.json. Method
and schedule follow arXiv 2205.14986, sections 3 and 4.1; README.md here names the differences.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import runs
import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from checkpoint import about, restore, save_tensors, save_text, state, tensors
from data import Data, Raw, Views, of_run, order, pick_labelled, seed_of
from evaluate import compare_on_few_labels
from model import build, encoder_config, encoder_weights, masks, parameters
from plan import Speed, choose, describe, epochs_in
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from visualise import draw_reconstructions

from gmml_aug import GroupMask, patch_to_pixel

T = TypeVar("T")
OF_CALL = {"minutes", "dry_run"}  # options that say nothing of the run

# What suits 8x8 digits and small photographs; every one of them is also an option.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 8, "patch_size": 2, "dim": 64, "depth": 4, "heads": 4, "group_size": (1, 2),
        "epochs": 68, "batch_size": 64, "base_lr": 1.2e-2, "threads": 1,
        "finetune_steps": 200, "lr_scratch": 4e-3, "lr_pretrained": 4e-3,
    },
    "photographs": {
        "image_size": 64, "patch_size": 8, "dim": 192, "depth": 6, "heads": 3, "group_size": (1, 3),
        "epochs": 100, "batch_size": 128, "base_lr": 2.5e-3, "weight_decay": (0.04, 0.04),
        "finetune_steps": 200, "lr_scratch": 1e-3, "lr_pretrained": 1e-3,
    },
}  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--data", default="digits")
    first.add_argument("--model")
    known = first.parse_known_args(arguments)[0]
    preset = DEFAULTS["digits" if known.data == "digits" else "photographs"]
    if known.model:  # has a shape of its own
        preset = preset | {"dim": None, "depth": None, "heads": None}

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def option(name: str, help: str, **how: Any) -> None:
        default = preset.get(name.replace("-", "_"), how.pop("default", None))
        if default is not None:
            help += f"; default {default}"
        parser.add_argument(f"--{name}", default=default, help=help, **how)

    option(
        "data",
        "'digits', a folder of images, 'torchvision:NAME' (in data/, downloaded if it is not there), or shards "
        "'FOLDER/{000..099}.tar'",
        default="digits",
    )
    option("output", "the run folder; runs/<data> if not given", type=Path)
    option("seed", "of weights, order, crops and masks", type=int, default=0)
    option("model", "a VisionTransformer of timm", default="vit_tiny_patch16_224")
    option("image-size", "pixels a side", type=int)
    option("patch-size", "pixels a side", type=int)
    option("dim", "width of the encoder", type=int)
    option("depth", "blocks of the encoder", type=int)
    option("heads", "of its attention", type=int)
    option("blocks", "blocks to fuse, counted from 1; every second of the upper half if not given", type=int, nargs="+")
    option("fuse", "how", choices=("mean", "last", "learned"), default="mean")
    option("decoder-depth", "pointwise layers of the decoder", type=int, default=2)
    option("ratio", "share of patches hidden: from, to", type=float, nargs=2, default=(0.4, 0.7))
    option("fill", "one is drawn per image", nargs="+", default=("noise", "alien"))
    option("group-size", "side of a group in patches: from, to; 1 1 hides single patches", type=int, nargs=2)
    option("loss", "pixels that count", choices=("hidden", "all"), default="hidden")
    option(
        "epochs",
        "passes over the images; more than a run had prolong it: from its present step on, learning rate and weight "
        "decay follow the cosine of the new length",
        type=int,
    )
    option("samples-per-epoch", "for shards, whose number of images is not known", type=int)
    option("batch-size", "images a step, over all processes", type=int)
    option("accumulation", "parts that a step's batch is cut into", type=int, default=1)
    option("base-lr", "peak learning rate for a batch of 256", type=float)
    option("weight-decay", "from, to, on a cosine", type=float, nargs=2, default=(0.04, 0.4))
    option("clip", "largest norm of the gradient", type=float, default=3.0)
    option(
        "precision",
        "of the forward pass; auto takes bf16 where a timed step is faster with it",
        choices=("auto", "no", "bf16", "fp16"),
        default="bf16" if torch.cuda.is_available() else "no" if known.data == "digits" else "auto",
    )
    option("threads", "of a CPU; one if a timed step is as fast with it, else all of them", type=int)
    option("minutes", "as many epochs as fit, in the place of --epochs; a run that goes on keeps its own", type=float)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and how long it takes, and end")
    parser.add_argument("--no-labels", action="store_true", help="take all images of a folder, however deep")
    parser.add_argument("--compile", action="store_true", help="compile the network")
    option("checkpoint-seconds", "seconds from one checkpoint to the next", type=float, default=60)
    option("picture-epochs", "epochs from one sheet of reconstructions to the next", type=int, default=20)
    option("log-with", "trackers of Accelerate, such as tensorboard or wandb", nargs="*", default=())
    option("labels-per-class", "for the table at the end", type=int, default=10)
    option("draws", "how often the labelled images are drawn anew; 0 leaves the table out", type=int, default=3)
    option("finetune-steps", "for the table at the end", type=int)
    option("lr-scratch", "learning rate of fine-tuning from scratch", type=float)
    option("lr-pretrained", "learning rate of fine-tuning what was pretrained", type=float)
    args = parser.parse_args(arguments)
    if args.minutes is not None:
        words = sys.argv[1:] if arguments is None else arguments
        if any(word.partition("=")[0] == "--epochs" for word in words):
            parser.error("--minutes and --epochs both say how long; give one of them")
        args.epochs = None

    for name, value in vars(args).items():
        least = 0 if name in ("seed", "draws", "decoder_depth") else 1
        if isinstance(value, int) and value < least and not isinstance(value, bool):
            parser.error(f"--{name.replace('_', '-')} is at least {least}; got {value}")
        if isinstance(value, float) and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} is more than 0 and finite; got {value}")
    if not all(0 <= decay < math.inf for decay in args.weight_decay):
        parser.error(f"--weight-decay takes two numbers of at least 0; got {args.weight_decay}")
    missing = set(args.log_with) - {str(tracker.value) for tracker in get_available_trackers()}
    if missing:
        parser.error(
            f"--log-with {' '.join(sorted(missing))}: Accelerate knows no such tracker, or it is not installed"
        )
    if args.image_size % args.patch_size:
        parser.error(f"--image-size {args.image_size} is no multiple of the patch, --patch-size {args.patch_size}")
    if args.output is None and "{" in args.data:
        parser.error("--data names shards: give the run folder too, --output")
    folder = Path(args.data).resolve()
    args.output = args.output or Path("runs") / (
        folder.name if folder.is_dir() else args.data.removeprefix("torchvision:")
    )
    if folder.is_dir() and args.output.resolve().is_relative_to(folder):
        parser.error(f"--output {args.output} is inside --data {args.data}, where it would be taken for images")
    return args


def rates_were_searched(settings: dict[str, Any]) -> bool:
    """Tell whether evaluate.py has searched the fine-tuning rates of these settings: on the digits, as they come."""
    free = {"output", "seed", "draws", "checkpoint_seconds", "picture_epochs", "log_with", "threads"} | OF_CALL
    searched = json.loads(json.dumps({k: v for k, v in vars(parse(["--data", "digits"])).items() if k not in free}))
    return all(settings[name] == value for name, value in searched.items())


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def schedule(args: argparse.Namespace, step: int, steps: int, per_epoch: int) -> tuple[float, float]:
    """Return the learning rate and the weight decay of a step."""
    peak, warmup = args.base_lr * args.batch_size / 256, max(1, min(10 * per_epoch, steps // 4))
    rate = peak * (step + 1) / warmup if step < warmup else cosine(peak, 1e-6, (step - warmup) / (steps - warmup))
    return rate, cosine(args.weight_decay[0], args.weight_decay[1], step / steps)


def pretrain(
    args: argparse.Namespace, settings: dict[str, Any], data: Data, accelerator: Accelerator, stop: runs.Stop
) -> None:
    """Train, and leave checkpoint.safetensors at its last step; or at another, and end here, where a signal says so."""
    torch.manual_seed(args.seed)
    model = build(settings, data.channels)[0]
    for module in model.unused():
        module.requires_grad_(False)  # no gradient comes back to it: DDP would wait for one
    if args.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameters(model, weight_decay=1.0)))
    decays = [group["weight_decay"] for group in optimizer.param_groups]  # 1.0, or 0.0 for biases, norms, positions
    corrupt, views = masks(settings), Views(data)
    checkpoint, metrics = args.output / "checkpoint.safetensors", args.output / "metrics.jsonl"

    per_epoch = len(data.train) // args.batch_size
    steps, first = args.epochs * per_epoch, 0
    unsaid: list[float] = []  # losses that are in no line of metrics.jsonl yet
    note = of_first(about(checkpoint) if checkpoint.exists() else None)
    if note is not None:
        restore(of_first(tensors(checkpoint) if accelerator.is_main_process else {}), model, optimizer.optimizer)
        first, unsaid = note["step"], note["unsaid"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(note["scaler"])
        accelerator.print(f"resumes {args.output} from step {first} of {steps}")
    where = f"processes: {accelerator.num_processes}, device: {accelerator.device.type}"  # launchers may start fewer
    weights = sum(weight.numel() for weight in model.parameters())
    accelerator.print(f"pretrains {weights:,} weights on {len(data.train):,} images; {where}", flush=True)
    if accelerator.is_main_process:  # lines of steps after the checkpoint come again
        save_text(metrics, "".join(line for line in whole_lines(metrics) if json.loads(line)["step"] <= first))

    numbers = order(len(data.train), args.batch_size, args.seed, first, steps)
    batches = runs.unsignalled(data.train.batches(mine(args, accelerator, numbers)))
    recent: list[Looked] = []  # since they were last looked at
    saved, timed, since = first, first, time.perf_counter()
    written = time.monotonic()
    progress = tqdm(range(first, steps), "pretraining", steps, initial=first, disable=not accelerator.is_main_process)
    stop.begin_steps()
    for step in progress:
        rate, decay = schedule(args, step, steps, per_epoch)
        for group, share in zip(optimizer.param_groups, decays, strict=True):
            group["lr"], group["weight_decay"] = rate, share * decay
        recent.append(update(args, step, batches, views, corrupt, model, optimizer, accelerator))

        done = step + 1
        says = done % 10 == 0 or done == steps
        signalled, due = stop.number, time.monotonic() - written >= args.checkpoint_seconds
        if accelerator.num_processes > 1:  # where each has its own clock and signals
            signalled, due = agree(signalled, due, accelerator) if says else (0, False)
        saves = due or signalled > 0 or done == steps
        if says or saves:
            unsaid += look_at(recent, args, accelerator, len(data.train), saved)
            recent.clear()
        if says:
            loss = float(torch.tensor(unsaid).mean())
            speed = args.batch_size * (done - timed) / (time.perf_counter() - since)
            record = {"epoch": done / per_epoch, "loss": loss, "lr": rate, "images_per_second": speed}
            accelerator.log(record, step=done)
            progress.set_postfix(loss=f"{loss:.3f}", images=f"{speed:.0f}/s")
            if accelerator.is_main_process:
                with open(metrics, "a") as file:
                    file.write(json.dumps({"step": done, **record}) + "\n")
            unsaid.clear()
            timed, since = done, time.perf_counter()
        if done % (per_epoch * args.picture_epochs) == 0 or done == steps:
            path = args.output / f"reconstructions/epoch-{done // per_epoch:04}.png"
            draw_reconstructions(model, data, masks({**settings, "ratio": (0.5, 0.5)}), path, accelerator)
        if saves:
            whole = state(model, optimizer.optimizer)
            scaler = accelerator.scaler and accelerator.scaler.state_dict()
            if accelerator.is_main_process:
                save_tensors(checkpoint, whole, {"step": done, "unsaid": unsaid, "scaler": scaler})
            saved, written = done, time.monotonic()
        if signalled:
            progress.close()
            accelerator.print(
                f"stopped by {signal.Signals(signalled).name} at step {done} of {steps}, which is in {checkpoint}; "
                f"to go on: {stop.command}",
                flush=True,
            )
            accelerator.end_training()
            raise SystemExit(128 + signalled)
    stop.end_steps()


def agree(signalled: int, due: bool, accelerator: Accelerator) -> tuple[int, bool]:
    """Return a signal that any process got, or 0, and whether the main process finds that a checkpoint is due."""
    own = torch.tensor([[signalled, due and accelerator.is_main_process]], device=accelerator.device)
    signalled, due = accelerator.gather(own).amax(0).tolist()
    return signalled, bool(due)


def mine(args: argparse.Namespace, accelerator: Accelerator, numbers: Iterable[Tensor]) -> Iterator[Tensor]:
    """Cut each step's sample numbers into the parts of --accumulation, and yield this process's share of each."""
    for number in numbers:
        for part in number.split(args.batch_size // args.accumulation):
            yield part.chunk(accelerator.num_processes)[accelerator.process_index]


class Looked(NamedTuple):
    """What is looked at, some steps later: until then the device need not wait."""

    step: int
    losses: Tensor  # (accumulation,), this process's
    norm: Tensor  # of the gradient
    numbers: Tensor  # (batch_size,), of all processes


def update(
    args: argparse.Namespace,
    step: int,
    batches: Iterator[Raw],
    views: Views,
    corrupt: GroupMask,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
) -> Looked:
    """Take a step's images from ``batches``, and one step of the optimiser."""
    part = args.batch_size // args.accumulation  # images of one forward pass, over all processes
    share = part // accelerator.num_processes
    rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    losses, numbers = [], []
    # Whatever is drawn in a step hangs on the seed and the step alone, so that a resumed run draws it again.
    torch.manual_seed(seed_of(args.seed, step))
    for raw, number in islice(batches, args.accumulation):
        images = views.augmented(raw, rows, part)
        # Donors come from all processes' images, as they would on one; masks follow the numbers.
        everyone, numbers_of_all = accelerator.gather((images, number))
        corrupted, mask = corrupt(everyone, index=numbers_of_all)
        counted = patch_to_pixel(mask if args.loss == "hidden" else torch.ones_like(mask), args.patch_size)
        with accelerator.accumulate(model):
            wrong = (model(corrupted[rows]) - images).abs() * counted[rows]
            # The mean over all processes' pixels: each has its share of the sum, and DDP averages over processes.
            loss = wrong.sum() * accelerator.num_processes / (counted.sum() * images.shape[1])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        numbers.append(numbers_of_all)
    if isinstance(norm, DTensor):  # FSDP2's
        norm = norm.full_tensor()
    return Looked(step, torch.stack(losses), norm, torch.cat(numbers))


def look_at(
    recent: list[Looked], args: argparse.Namespace, accelerator: Accelerator, count: int, saved: int
) -> list[float]:
    """Return the recent losses; end here if one is not finite, with all that is needed to look into it."""
    losses = accelerator.reduce(torch.stack([looked.losses for looked in recent]), "mean")
    norms = torch.stack([looked.norm for looked in recent])
    finite = losses.isfinite().all(1)
    if accelerator.scaler is None:  # which leaves out steps whose gradient is not finite
        finite &= norms.isfinite()
    if not finite.all():
        broken = finite.tolist().index(False)
        good = f"the last good checkpoint is {args.output / 'checkpoint.safetensors'} (step {saved})"
        raise SystemExit(
            f"the loss is {losses[broken].mean().item()} and the norm of its gradient {norms[broken].item()} at step "
            f"{recent[broken].step + 1}, on the images {(recent[broken].numbers % count).tolist()}; "
            f"{good if saved else 'there is no checkpoint yet'}; try a smaller --base-lr than {args.base_lr} or "
            f"another --precision than {args.precision}, with another --output"
        )
    return [float(loss) for loss in losses.flatten().tolist()]


def try_masks(args: argparse.Namespace, settings: dict[str, Any], data: Data) -> None:
    """End here if no step could be taken with these masks."""
    part, side = args.batch_size // args.accumulation, args.image_size
    try:
        corrupt, images = masks(settings), torch.zeros(min(part, 2), data.channels, side, side)  # an alien needs two
        corrupt.apply(images, corrupt.sample(images))
    except ValueError as error:
        raise SystemExit(f"images of {side} pixels, {part} at a time, cannot be masked so: {error}") from None
    patches = (side // args.patch_size) ** 2
    if args.loss == "hidden" and not round(args.ratio[0] * patches):
        raise SystemExit(
            f"--ratio {args.ratio[0]:g} hides none of {patches} patches, and the loss is that of hidden pixels; give "
            f"at least {1 / patches:.3g}, or --loss all"
        )


def whole_lines(path: Path) -> list[str]:
    """Return a file's lines; the last is left out where a crash cut it."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def config_of(run: Path) -> dict[str, Any] | None:
    """Return the settings of a run folder; None where it is no such folder."""
    try:
        settings = json.loads((run / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and "version_of_images" in settings else None


def check_run(args: argparse.Namespace, settings: dict[str, Any], compares: bool) -> str:
    """Say why the run folder is not to be touched, where it is finished or was made with other settings."""
    elsewhere = f"Give another --output than {args.output}."
    afresh = f"To start afresh, delete the folder or give another --output than {args.output}."
    before = config_of(args.output)
    if before is not None:
        prolonged = before["epochs"] < args.epochs
        for name in sorted(before.keys() | settings.keys()):
            old, new = before.get(name), settings.get(name)
            if old != new and not (name == "epochs" and prolonged):
                option = f"--{name.replace('_', '-')}" if name in vars(args) else name.replace("_", " ")
                more = ", or more" if name == "epochs" else ""
                return f"{args.output} was made with {option} {old}, not {new}: give that again{more}. {afresh}"
        finished = (args.output / "encoder.safetensors").exists() and not prolonged
        if finished and (not compares or (args.output / "results.json").exists()):
            return f"{args.output} is finished: neither continued nor overwritten; more --epochs prolong it. {afresh}"
    elif args.output.exists() and not args.output.is_dir():
        return f"{args.output} is a file. {elsewhere}"
    elif args.output.exists() and {path.name for path in args.output.iterdir()} - {"config.json.unfinished", "lock"}:
        return f"{args.output} has files, but no config.json of a run: it is no run of this script. {elsewhere}"
    return ""


def take_run(
    args: argparse.Namespace, settings: dict[str, Any], compares: bool, lock: runs.Lock, size: int
) -> tuple[int, str]:
    """Make the run folder and lock it; or, with nothing written, return an exit status and why it is not to be had."""
    checkpoint = args.output / "checkpoint.safetensors"
    need = 2 * 3 * size + 10**7 - (checkpoint.stat().st_size if checkpoint.exists() else 0)  # pictures and text too
    refusal = check_run(args, settings, compares) or runs.obstacle(args.output, need)
    if refusal:
        return 1, refusal
    args.output.mkdir(parents=True, exist_ok=True)
    holder = lock.take()
    if holder:
        return 2, f"{args.output} is in use by {holder}. Wait until that has ended, or give another --output."
    return 1, check_run(args, settings, compares)  # again: another process may have had it until now


def prolong(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Where the run had fewer epochs, put aside what they ended in, and say what the learning rate does."""
    before = config_of(args.output)
    if before is None or before["epochs"] == args.epochs:
        return
    runs.set_aside(args.output, before["epochs"])
    checkpoint, per_epoch = args.output / "checkpoint.safetensors", settings["training_images"] // args.batch_size
    step = about(checkpoint)["step"] if checkpoint.exists() else 0
    was = schedule(args, max(0, step - 1), before["epochs"] * per_epoch, per_epoch)[0]
    rate = schedule(args, step, args.epochs * per_epoch, per_epoch)[0]
    print(
        f"prolongs {args.output} from {before['epochs']} to {args.epochs} epochs: after step {step} the learning rate "
        f"goes from {was:.3g} to {rate:.3g}, and on by the schedule of {args.epochs} epochs, a cosine to 1e-6"
    )


def of_first(value: T) -> T:
    """Return the first process's value: it alone has the run folder, which need not be on a disk that all share."""
    shared: T = broadcast_object_list([value])[0]
    return shared


def settings_of(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Return what the run is, as config.json has it."""
    settings = {name: value for name, value in vars(args).items() if name not in {"output", *OF_CALL}}
    settings |= {"training_images": len(data.train), "version_of_images": data.fingerprint}
    whole: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return whole


def keep_choices(args: argparse.Namespace, before: dict[str, Any]) -> None:
    """Take what was chosen for a run when it began, where nothing else is asked for now."""
    if args.precision == "auto":
        args.precision = before.get("precision", "auto")
    if args.threads is None:
        args.threads = before.get("threads")
    if args.epochs is None:
        args.epochs = before.get("epochs")


def main(arguments: list[str] | None = None) -> None:
    args, command = parse(arguments), runs.same_command(arguments)
    with (
        runs.one_sentence(command),
        runs.Lock(args.output) as lock,
        runs.Stop(args.output / "checkpoint.safetensors", command) as stop,
    ):
        run(args, lock, stop)


def run(args: argparse.Namespace, lock: runs.Lock, stop: runs.Stop) -> None:
    # Unsaid, torchrun's processes on CPUs would not know of each other.
    processes = PartialState(cpu=not torch.accelerator.is_available())
    if args.precision == "fp16" and processes.device.type == "cpu":  # where Accelerate would take fp32
        raise SystemExit("--precision fp16 needs a GPU; on a CPU take bf16 or no")
    if args.batch_size % (args.accumulation * processes.num_processes):
        raise SystemExit(
            f"--batch-size {args.batch_size} is over all processes and does not divide by {processes.num_processes} "
            f"processes times --accumulation {args.accumulation}"
        )
    data = of_run(vars(args), processes.device)
    if len(data.train) < args.batch_size:
        raise SystemExit(f"--batch-size {args.batch_size} is more than the {len(data.train)} images there are")
    compares = args.draws > 0 and data.test is not None and len(data.classes) > 1
    if compares and data.train.labels is not None:
        pick_labelled(data.train.labels, args.labels_per_class, 0)  # says now what it cannot do, as do these:
    settings = settings_of(args, data)
    try_masks(args, settings, data)
    model, encoder_options = build(settings, data.channels)
    for_timm = encoder_config(model, encoder_options, data)
    weights, size = (sum(part) for part in zip(*((w.numel(), w.nbytes) for w in model.parameters()), strict=True))
    del model
    before: dict[str, Any] = config_of(args.output) or {}
    keep_choices(args, of_first(before))
    # One process times its steps; the others wait for it.
    chosen = choose(args, settings, data, processes.device) if processes.is_main_process else None
    speed = cast(Speed, of_first(chosen))
    args.precision, args.threads = speed.precision, speed.threads
    if args.minutes and args.epochs is None:
        args.epochs = epochs_in(args, speed, data, compares)
    torch.set_num_threads(args.threads)
    settings = settings_of(args, data)
    status, refusal = 1, ""
    if processes.is_main_process:
        if args.dry_run:
            refusal = check_run(args, settings, compares)
        else:
            status, refusal = take_run(args, settings, compares, lock, size)
    status, refusal = of_first((status, refusal))
    if refusal:
        if processes.is_main_process:
            print(refusal, file=sys.stderr)
        raise SystemExit(status)
    if processes.is_main_process:
        print(describe(args, data, speed, weights, compares, processes.device.type), flush=True)
    if args.dry_run:
        return
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.precision,
        # As a plugin: the bare number gives way to one in the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.accumulation),
        log_with=list(args.log_with) or None,
        project_dir=args.output,
    )
    if accelerator.is_main_process:
        prolong(args, settings)
        save_text(args.output / "config.json", json.dumps(settings, indent=2) + "\n")
        (args.output / "reconstructions").mkdir(exist_ok=True)
    # TensorBoard takes no lists.
    accelerator.init_trackers("pretraining", {name: str(value) for name, value in settings.items()})

    if not of_first((args.output / "encoder.safetensors").exists()):
        pretrain(args, settings, data, accelerator, stop)
        if accelerator.is_main_process:
            weights = tensors(args.output / "checkpoint.safetensors", "model.")
            save_tensors(args.output / "autoencoder.safetensors", weights)
            save_text(args.output / "encoder.json", json.dumps(for_timm, indent=2) + "\n")
            save_tensors(args.output / "encoder.safetensors", encoder_weights(for_timm, weights))
    accelerator.end_training()
    if accelerator.is_main_process and compares:
        compare_on_few_labels(args.output, settings, data, accelerator.device, rates_were_searched(settings))


if __name__ == "__main__":
    main()
