"""A run from its plan to its verdict."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin

from . import runs
from .checkpoint import about, save_tensors, save_text, tensors
from .comparison import compare
from .config import Call, Config, config_of, resolved
from .data import of_run
from .data.sources import Data
from .evaluation import evaluation_of
from .finished import Finished
from .model import build, encoder_config, encoder_weights
from .plan import Cost, Speed, choose, compares, cost, fitted, plan_of_pretraining
from .report import write_report
from .rivals import as_autoencoder_weights
from .training import donor_block, objective, of_first, pretrain, schedule


def check_call(call: Call, config: Config, processes: PartialState) -> None:
    """End here if these processes cannot do what is asked for."""
    missing = set(call.log_with) - {str(tracker.value) for tracker in get_available_trackers()}
    if missing:
        raise SystemExit(
            f"--log-with {' '.join(sorted(missing))}: Accelerate knows no such tracker, or it is not installed"
        )
    if config.precision == "fp16" and processes.device.type == "cpu":  # where Accelerate would take fp32
        raise SystemExit("--precision fp16 needs a GPU; on a CPU take bf16 or no")
    part, count = config.batch_size // config.accumulation, processes.num_processes
    if config.batch_size % (config.accumulation * count):
        raise SystemExit(
            f"--batch-size {config.batch_size} is over all processes and does not divide by {count} "
            f"processes times --accumulation {config.accumulation}"
        )
    if part // count % donor_block(config):
        raise SystemExit(
            f"{count} processes get {part // count} images each of {part}, but images give each other alien patches "
            f"in blocks of {donor_block(config)}: take a --batch-size that is a multiple of "
            f"{8 * count * config.accumulation}"
        )


def try_masks(config: Config, data: Data) -> None:
    """End here if no step could be taken with these masks."""
    part, side = config.batch_size // config.accumulation, config.image_size
    try:
        model, corrupt = objective(config, data.channels)
        images = torch.zeros(min(part, 2), data.channels, side, side)  # an alien needs two
        if config.method == "gmml":
            corrupt.apply(images, corrupt.sample(images))
        else:
            model(images, corrupt.sample(images).mask)
    except ValueError as error:
        raise SystemExit(f"images of {side} pixels, {part} at a time, cannot be masked so: {error}") from None
    patches = (side // config.patch_size) ** 2
    if config.method == "gmml" and config.loss == "hidden" and not round(config.ratio[0] * patches):
        raise SystemExit(
            f"--ratio {config.ratio[0]:g} hides none of {patches} patches, and the loss is that of hidden pixels; give "
            f"at least {1 / patches:.3g}, or --loss all"
        )


def check_run(output: Path, config: Config, compared: bool) -> str:
    """Say why the run folder is not to be touched, where it is finished or was made with other settings."""
    elsewhere = f"Give another --output than {output}."
    afresh = f"To start afresh, delete the folder or give another --output than {output}."
    before = config_of(output)
    if before is not None:
        prolonged = before.epochs < config.epochs
        asked = asdict(config)
        for name, old in asdict(before).items():
            if old != asked[name] and not (name == "epochs" and prolonged):
                found = name in ("training_images", "version_of_images")
                option = name.replace("_", " ") if found else f"--{name.replace('_', '-')}"
                more = ", or more" if name == "epochs" else ""
                return f"{output} was made with {option} {old}, not {asked[name]}: give that again{more}. {afresh}"
        finished = (output / "encoder.safetensors").exists() and not prolonged
        if finished and (not compared or (output / "evaluation.json").exists()):
            return f"{output} is finished: neither continued nor overwritten; more --epochs prolong it. {afresh}"
    elif output.exists() and not output.is_dir():
        return f"{output} is a file. {elsewhere}"
    elif (output / "config.json").exists():
        return f"{output}/config.json is of another version of pretrain.py, or of something else. {elsewhere}"
    elif output.exists() and {path.name for path in output.iterdir()} - {"config.json.unfinished", "lock"}:
        return f"{output} has files, but no config.json of a run: it is no run of this script. {elsewhere}"
    return ""


def take_run(output: Path, config: Config, compared: bool, lock: runs.Lock, size: int) -> tuple[int, str]:
    """Make the run folder and lock it; or, with nothing written, return an exit status and why it is not to be had."""
    checkpoint = output / "checkpoint.safetensors"
    # Weights and Adam's two moments, twice while one checkpoint replaces another; pictures and text.
    need = 2 * 3 * size + 10**7 - (checkpoint.stat().st_size if checkpoint.exists() else 0)
    refusal = check_run(output, config, compared)
    if not refusal and (why := runs.obstacle(output, need)):
        refusal = f"{why} Or give another --output than {output}."
    if refusal:
        return 1, refusal
    output.mkdir(parents=True, exist_ok=True)
    holder = lock.take()
    if holder:
        return 2, f"{output} is in use by {holder}. Wait until that has ended, or give another --output."
    return 1, check_run(output, config, compared)  # again: another process may have had it until now


def prolong(output: Path, config: Config) -> None:
    """Where the run had fewer epochs, put aside what they ended in, and say what the learning rate does."""
    before = config_of(output)
    if before is None or before.epochs == config.epochs:
        return
    runs.set_aside(output, before.epochs)
    checkpoint, per_epoch = output / "checkpoint.safetensors", config.training_images // config.batch_size
    step = about(checkpoint)["step"] if checkpoint.exists() else 0
    was = schedule(before, max(0, step - 1), before.epochs * per_epoch, per_epoch)[0]
    rate = schedule(config, step, config.epochs * per_epoch, per_epoch)[0]
    print(
        f"prolongs {output} from {before.epochs} to {config.epochs} epochs: after step {step} the learning rate "
        f"goes from {was:.3g} to {rate:.3g}, and on by the schedule of {config.epochs} epochs, a cosine to 1e-6"
    )


def run(call: Call, lock: runs.Lock, stop: runs.Stop, words: list[str]) -> None:
    """Plan, pretrain, compare and report."""
    gpu = torch.accelerator.is_available()
    # Unsaid, torchrun's processes on CPUs would not know of each other.
    processes = PartialState(cpu=not gpu)
    device, output = processes.device, call.output
    config = resolved(call.given, gpu)
    check_call(call, config, processes)
    data = of_run(config, device)
    if len(data.train) < config.batch_size:
        unit = 8 * processes.num_processes * config.accumulation  # see check_call
        fits = len(data.train) // unit * unit or len(data.train)
        raise SystemExit(
            f"--batch-size {config.batch_size}{'' if 'batch_size' in call.given else ', the default,'} is more than "
            f"the {len(data.train)} images to train on; give --batch-size {fits} or less"
        )
    config = replace(config, training_images=len(data.train), version_of_images=data.fingerprint)
    try_masks(config, data)
    model, encoder_options = build(config, data.channels)
    for_timm = encoder_config(model, encoder_options, data, config.method)
    weights, size = (sum(part) for part in zip(*((w.numel(), w.nbytes) for w in model.parameters()), strict=True))
    del model
    before = of_first(config_of(output))
    if before is not None:  # what was chosen when it began, where nothing else is asked for now
        kept: dict[str, Any] = {"precision": before.precision, "threads": before.threads}
        chosen = {"epochs", "finetune_steps", "finetune_epochs"} if call.minutes else set()
        kept |= {name: getattr(before, name) for name in chosen}
        config = replace(config, **{name: value for name, value in kept.items() if name not in call.given})
    # One process times its steps; the others wait for it.
    speed = cast(Speed, of_first(choose(config, data, device) if processes.is_main_process else None))
    config = replace(config, precision=speed.precision, threads=speed.threads)
    torch.set_num_threads(speed.threads)
    after = cast(Cost, of_first(cost(config, data, device) if processes.is_main_process else None))
    if call.minutes and before is None:
        may_shorten = not {"finetune_steps", "finetune_epochs"} & call.given.keys()
        config, after = fitted(call.minutes, config, speed, data, after, may_shorten)
    status, refusal = 1, ""
    if processes.is_main_process:
        if call.dry_run:
            refusal = check_run(output, config, compares(config, data))
        else:
            status, refusal = take_run(output, config, compares(config, data), lock, size)
    status, refusal = of_first((status, refusal))
    if refusal:
        if processes.is_main_process:
            print(refusal, file=sys.stderr)
        raise SystemExit(status)
    plan = plan_of_pretraining(config, data, speed, after, weights, device, output)
    if processes.is_main_process:
        print(plan, flush=True)
    if call.dry_run:
        return
    AcceleratorState._reset_state()  # of an earlier run of this process, which may have had another precision
    accelerator = Accelerator(
        cpu=not gpu,
        mixed_precision=config.precision,
        # As a plugin: the bare number gives way to one in the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation),
        log_with=list(call.log_with) or None,
        project_dir=output,
    )
    if accelerator.is_main_process:
        prolong(output, config)
        save_text(output / "config.json", config.text())
        save_text(output / "plan.txt", plan + "\n")
        (output / "reconstructions").mkdir(exist_ok=True)
    # TensorBoard takes no lists.
    accelerator.init_trackers("pretraining", {name: str(value) for name, value in asdict(config).items()})

    if not of_first((output / "encoder.safetensors").exists()):
        pretrain(config, call, data, accelerator, stop)
        if accelerator.is_main_process:
            trained = tensors(output / "checkpoint.safetensors", "model.")
            if config.method != "gmml":
                trained = as_autoencoder_weights(trained, build(config, data.channels)[0])
            save_tensors(output / "autoencoder.safetensors", trained)
            save_text(output / "encoder.json", json.dumps(for_timm, indent=2) + "\n")
            save_tensors(output / "encoder.safetensors", encoder_weights(for_timm, trained))
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    if compares(config, data):
        trained = tensors(output / "autoencoder.safetensors")
        finished = Finished(output, config, trained, data, config.data, device)
        compare(evaluation_of(finished), config, "pretrain.py", words)
    else:
        print(
            f"\nNothing was compared: {'these images have no two classes' if config.draws else '--draws is 0'}. "
            f"The encoder is {output}/encoder.safetensors, for timm.create_model(**encoder.json).\n"
            f"Alike photos:   python examples/embed.py {output} PHOTOS\n"
            f"A classifier:   python examples/finetune.py {output} --data FOLDER_WITH_A_FOLDER_A_CLASS\n"
            f"Its worth:      python examples/evaluate.py {output} --data FOLDER_WITH_A_FOLDER_A_CLASS"
        )
        write_report(output)
        print(f"All of the run on one page: {output}/report.html")
