"""The training loop: group masking, one step after another, with checkpoints that it can go on from.

Method and schedule follow arXiv 2205.14986, sections 3 and 4.1; README.md beside this folder names the differences.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from gmml_aug import GroupMask, patch_to_pixel

from . import runs
from .checkpoint import about, restore, save_tensors, save_text, state, tensors
from .config import Call, Config
from .data.sources import Data, Raw
from .draws import order, seed_of
from .model import Autoencoder, build, masks, parameters, start_from
from .pictures import draw_reconstructions
from .rivals import MAE, Rival, SimMIM, normalised_per_patch
from .schedule import cosine, warmed
from .views import Views

T = TypeVar("T")
DONORS = 8  # images of a batch that give each other alien patches; a process's share is a multiple of it
LOOKS = 25  # at the held-out loss, in a run
FIRST_SHEET = 60  # seconds from the first step; the next one comes after twice the time


def schedule(config: Config, step: int, steps: int, per_epoch: int) -> tuple[float, float]:
    """Return the learning rate and the weight decay of a step."""
    peak, warmup = config.base_lr * config.batch_size / 256, max(1, min(10 * per_epoch, steps // 4))
    return warmed(step, steps, warmup, peak, 1e-6), cosine(*config.weight_decay, step / steps)


def donor_block(config: Config) -> int:
    """Return how many images of a batch give each other alien patches: 8, or fewer where no 8 divide a part of it.

    As it depends on the batch alone, several processes need no image of each other and draw what one would.
    """
    part = config.batch_size // config.accumulation
    block = math.gcd(part, DONORS)
    return block if block > 1 else part


def objective(config: Config, channels: int) -> tuple[Autoencoder | Rival, GroupMask]:
    """Return the network of a method, and what draws its masks."""
    autoencoder = build(config, channels)[0]
    if config.init:
        start_from(Path(config.init), autoencoder)
    if config.method == "gmml":
        return autoencoder, masks(config)
    kind = MAE if config.method == "mae" else SimMIM
    return kind(autoencoder.encoder), kind.masks(config.patch_size, config.seed)


def errors(
    config: Config, model: nn.Module, corrupt: GroupMask, images: Tensor, numbers: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Return each pixel's error ``(B, C, H, W)``, and which pixels count ``(B, 1, H, W)``.

    Aliens come from an image's own ``block`` of the batch.
    """
    if config.method != "gmml":
        wrong, counted = model(images, corrupt.sample(images, index=numbers).mask)
        return wrong, counted
    seen, mask = corrupted(corrupt, images, numbers, block)
    counted = patch_to_pixel(mask if config.loss == "hidden" else torch.ones_like(mask), config.patch_size)
    target = images if config.targets == "pixels" else normalised_per_patch(images, config.patch_size)
    return (model(seen) - target).abs(), counted


def corrupted(corrupt: GroupMask, images: Tensor, numbers: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the corrupted images and their masks; donors come from an image's own block."""
    parts = [
        corrupt(some, index=number) for some, number in zip(images.split(block), numbers.split(block), strict=True)
    ]
    return torch.cat([part.images for part in parts]), torch.cat([part.mask for part in parts])


def pretrain(config: Config, call: Call, data: Data, accelerator: Accelerator, stop: runs.Stop) -> None:
    """Train, and leave checkpoint.safetensors at its last step; or at another, and end here, where a signal says so."""
    torch.manual_seed(config.seed)
    model, corrupt = objective(config, data.channels)
    for module in model.unused():
        module.requires_grad_(False)  # no gradient comes back to it: DDP would wait for one
    if config.compile:
        model.compile()
    model, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(parameters(model, weight_decay=1.0), betas=(0.9, config.beta2))
    )
    decays = [group["weight_decay"] for group in optimizer.param_groups]  # 1.0, or 0.0 for biases, norms, positions
    views = Views(data)
    checkpoint, metrics = call.output / "checkpoint.safetensors", call.output / "metrics.jsonl"

    per_epoch = len(data.train) // config.batch_size
    steps, first = config.epochs * per_epoch, 0
    look_every = math.ceil(config.epochs / LOOKS) * per_epoch
    unsaid: list[float] = []  # losses that are in no line of metrics.jsonl yet
    note = of_first(about(checkpoint) if checkpoint.exists() else None)
    if note is not None:
        restore(of_first(tensors(checkpoint) if accelerator.is_main_process else {}), model, optimizer.optimizer)
        first, unsaid = note["step"], note["unsaid"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(note["scaler"])
        accelerator.print(f"resumes {call.output} from step {first} of {steps}")
    where = f"processes: {accelerator.num_processes}, device: {accelerator.device.type}"  # launchers may start fewer
    weights = sum(weight.numel() for weight in model.parameters())
    accelerator.print(f"pretrains {weights:,} weights on {len(data.train):,} images; {where}", flush=True)
    if accelerator.is_main_process:  # lines of steps after the checkpoint come again
        save_text(metrics, "".join(line for line in whole_lines(metrics) if json.loads(line)["step"] <= first))

    numbers = order(len(data.train), config.batch_size, config.seed, first, steps)
    batches = runs.unsignalled(data.train.batches(mine(config, accelerator, numbers)))
    recent: list[Looked] = []  # since they were last looked at
    saved, timed, since = first, first, time.perf_counter()
    began = written = time.monotonic()
    sheet = FIRST_SHEET
    progress = tqdm(range(first, steps), "pretraining", steps, initial=first, disable=not accelerator.is_main_process)
    stop.begin_steps()
    for step in progress:
        rate, decay = schedule(config, step, steps, per_epoch)
        for group, share in zip(optimizer.param_groups, decays, strict=True):
            group["lr"], group["weight_decay"] = rate, share * decay
        recent.append(update(config, step, batches, views, corrupt, model, optimizer, accelerator))

        done = step + 1
        looks = done % look_every == 0 or done == steps
        says = done % 10 == 0 or looks
        now = time.monotonic()
        signalled, saves, shows = stop.number, now - written >= call.checkpoint_seconds, now - began >= sheet
        if accelerator.num_processes > 1:  # where each has its own clock and signals
            signalled, saves, shows = agree(signalled, saves, shows, accelerator) if says else (0, False, False)
        saves = saves or signalled > 0 or done == steps
        # A rival's network takes no corrupted images.
        shows = config.method == "gmml" and ((shows and not signalled) or done == steps)
        if says or saves:
            unsaid += look_at(recent, config, call.output, accelerator, len(data.train), saved)
            recent.clear()
        if says:
            loss = float(torch.tensor(unsaid).mean())
            speed = config.batch_size * (done - timed) / (time.perf_counter() - since)
            record = {"epoch": done / per_epoch, "loss": loss, "lr": rate, "images_per_second": speed}
            if looks and data.test is not None and len(data.test) >= DONORS:
                record["held_out_loss"] = held_out_loss(config, model, corrupt, data, accelerator)
            accelerator.log(record, step=done)
            progress.set_postfix(loss=f"{loss:.3f}", images=f"{speed:.0f}/s")
            if accelerator.is_main_process:
                with open(metrics, "a") as file:
                    file.write(json.dumps({"step": done, **record}) + "\n")
            unsaid.clear()
            timed, since = done, time.perf_counter()
        if shows:
            path = call.output / f"reconstructions/step-{done:06}.png"
            draw_reconstructions(config, model, data, masks(config, ratio=(0.5, 0.5)), path, accelerator)
            sheet *= 2
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


def agree(signalled: int, saves: bool, shows: bool, accelerator: Accelerator) -> tuple[int, bool, bool]:
    """Return a signal that any process got, or 0, and what the main process finds due: a checkpoint, a sheet."""
    main = accelerator.is_main_process
    own = torch.tensor([[signalled, saves and main, shows and main]], device=accelerator.device)
    signalled, saves, shows = accelerator.gather(own).amax(0).tolist()
    return signalled, bool(saves), bool(shows)


def mine(config: Config, accelerator: Accelerator, numbers: Iterable[Tensor]) -> Iterator[Tensor]:
    """Cut each step's sample numbers into the parts of --accumulation, and yield this process's share of each."""
    for number in numbers:
        for part in number.split(config.batch_size // config.accumulation):
            yield part.chunk(accelerator.num_processes)[accelerator.process_index]


class Looked(NamedTuple):
    """Numbers of a step, which are read some steps later: until then the device need not wait."""

    step: int
    losses: Tensor  # (accumulation,), this process's
    norm: Tensor  # of the gradient
    numbers: Tensor  # this process's images


def update(
    config: Config,
    step: int,
    batches: Iterator[Raw],
    views: Views,
    corrupt: GroupMask,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
) -> Looked:
    """Take a step's images from ``batches``, and one step of the optimiser."""
    part = config.batch_size // config.accumulation  # images of one forward pass, over all processes
    share = part // accelerator.num_processes
    rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    losses, numbers = [], []
    # All that is drawn in a step depends on the seed and the step alone, so that a resumed run draws it again.
    torch.manual_seed(seed_of(config.seed, step))
    for raw, number in islice(batches, config.accumulation):
        images = views.augmented(raw, rows, part)
        with accelerator.accumulate(model):
            wrong, counted = errors(config, model, corrupt, images, number, donor_block(config))
            pixels = accelerator.reduce(counted.sum() * images.shape[1], "sum")  # of all processes
            # Each process has its share of the sum, and DDP averages over processes.
            loss = (wrong * counted).sum() * accelerator.num_processes / pixels
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        numbers.append(number)
    if isinstance(norm, DTensor):  # FSDP2's
        norm = norm.full_tensor()
    return Looked(step, torch.stack(losses), norm, torch.cat(numbers))


@torch.no_grad()
def held_out_loss(config: Config, model: nn.Module, corrupt: GroupMask, data: Data, accelerator: Accelerator) -> float:
    """Return the loss on up to 256 held-out images, always the same ones with the same masks."""
    assert data.test is not None
    views, training = Views(data), model.training
    model.eval()
    count = min(256, len(data.test)) // DONORS * DONORS
    wrong, pixels = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
    for raw, number in runs.unsignalled(data.test.batches(torch.arange(count).split(64))):
        images = views.plain(raw)
        error, counted = errors(config, model, corrupt, images, number, DONORS)
        wrong += (error * counted).sum()
        pixels += counted.sum() * images.shape[1]
    model.train(training)
    return float(wrong / pixels)


def look_at(
    recent: list[Looked], config: Config, output: Path, accelerator: Accelerator, count: int, saved: int
) -> list[float]:
    """Return the recent losses; end here if one is not finite, with all that is needed to look into it."""
    losses = accelerator.reduce(torch.stack([looked.losses for looked in recent]), "mean")
    norms = torch.stack([looked.norm for looked in recent])
    finite = losses.isfinite().all(1)
    if accelerator.scaler is None:  # which leaves out steps whose gradient is not finite
        finite &= norms.isfinite()
    if not finite.all():
        broken = finite.tolist().index(False)
        numbers = accelerator.gather(recent[broken].numbers) % count
        good = f"the last good checkpoint is {output / 'checkpoint.safetensors'} (step {saved})"
        raise SystemExit(
            f"the loss is {losses[broken].mean().item()} and the norm of its gradient {norms[broken].item()} at step "
            f"{recent[broken].step + 1}, on the images {numbers.tolist()}; "
            f"{good if saved else 'there is no checkpoint yet'}; try a smaller --base-lr than {config.base_lr} or "
            f"another --precision than {config.precision}, with another --output"
        )
    return [float(loss) for loss in losses.flatten().tolist()]


def whole_lines(path: Path) -> list[str]:
    """Return a file's lines; the last is left out where a crash cut it."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def of_first(value: T) -> T:
    """Return the first process's value: it alone has the run folder, which need not be on a disk that all share."""
    shared: T = broadcast_object_list([value])[0]
    return shared
