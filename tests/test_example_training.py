"""The trainer of the examples as its users meet it: in processes of its own, some of them killed."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

for library in ("accelerate", "kornia", "matplotlib", "safetensors", "sklearn", "timm", "torchvision", "tqdm"):
    pytest.importorskip(library)

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ("--epochs", "2", "--draws", "0", "--dim", "32", "--depth", "2", "--heads", "2")  # 44 steps
LINES = [10, 20, 22, 30, 40, 44]
OFTEN = ("--checkpoint-seconds", 1e-9)  # at every step; where several processes run, every tenth
FEW = (
    "--patch-size",
    "8",
    "--group-size",
    "1",
    "1",
    "--fill",
    "noise",
    "--batch-size",
    "4",
    "--epochs",
    "1",
    *TINY[2:],
)
CLASS = "encoder.cls_token"
ALONE = {"OMP_NUM_THREADS": "1"}
if torch.accelerator.is_available():  # set nowhere else: users on CPUs do not set it
    ALONE["ACCELERATE_USE_CPU"] = "true"
LAUNCHED = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}  # as accelerate launch leaves it there; the option counts


def train(arguments: list[str], said: Path, environment: dict[str, str], masks: Path) -> None:
    """Run the trainer as this process; note the masks it draws. Its messages go to a file."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background commands have ignored
    import pretrain

    from gmml_aug import GroupMask

    drawn: dict[int, tuple[Tensor, float]] = {}
    forward = GroupMask.forward

    def noting(self: GroupMask, images: Tensor, *rest: Any, index: Any = None, **named: Any) -> Any:
        masked = forward(self, images, *rest, index=index, **named)
        for number, mask, image in zip(index.tolist(), masked.mask, masked.images, strict=True):
            drawn[number] = (mask, float(image.mean()))
        return masked

    GroupMask.forward = noting  # type: ignore[method-assign]
    pretrain.main(arguments)
    torch.save(drawn, masks)


@pytest.fixture(scope="module", autouse=True)
def path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setenv("PYTHONPATH", str(EXAMPLES), prepend=os.pathsep)
        yield


class Run:
    """Runs of one folder, by one process or by several that work together."""

    def __init__(self, folder: Path, *options: object, processes: int = 1) -> None:
        self.folder, self.processes = folder, processes
        self.arguments = ["--output", str(folder), *map(str, options)]
        self.checkpoint = folder / "checkpoint.safetensors"
        self.running: list[ForkServerProcess] = []

    def start(self) -> None:
        # Processes of their own, which can be killed; but forked where torch is imported already, to save the seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pretrain", "reference.pretraining"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.running = []
        for rank in range(self.processes):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.processes),
                **meeting,
                **LAUNCHED,
            }
            environment = {**ALONE, **(environment if self.processes > 1 else {})}
            places = (self.beside(f"{rank}.txt"), environment, self.beside(f"{rank}.pt"))
            self.running.append(context.Process(target=train, args=(self.arguments, *places)))
            self.running[-1].start()

    def beside(self, name: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def finish(self) -> list[int | None]:
        """Wait, and return the exit codes; a process that hangs is ended and has none of its own."""
        end = time.monotonic() + 300
        for process in self.running:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.running]
        self.signal(signal.SIGKILL)
        return codes

    def signal(self, number: int) -> None:
        for process in self.running:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)
                if number == signal.SIGKILL:
                    process.join()

    def all(self) -> list[int | None]:
        self.start()
        return self.finish()

    def kill_once(self, when: Callable[[], bool]) -> None:
        """Kill all processes at once, at a moment when this holds."""
        self.start()
        while True:
            assert all(process.is_alive() for process in self.running), self.said
            if when():
                self.signal(signal.SIGSTOP)
                time.sleep(0.05)  # it may run on for a moment
                if when():
                    break
                self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)

    @property
    def said(self) -> str:
        return "\n".join(self.beside(f"{rank}.txt").read_text() for rank in range(self.processes))

    @property
    def step(self) -> int:
        if not self.checkpoint.exists():
            return 0
        # Read at once: safetensors opens a file twice, and the run may put another in its place in between.
        whole = self.checkpoint.read_bytes()
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        return int(json.loads(header["__metadata__"]["about"])["step"])

    @property
    def lines(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, without what the clock says."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines]

    def masked(self, rank: int = 0) -> dict[int, tuple[Tensor, float]]:
        """Return the masks and the means of the corrupted images by sample number, as one process had them last."""
        drawn: dict[int, tuple[Tensor, float]] = torch.load(self.beside(f"{rank}.pt"))
        return drawn

    def tensors(self) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.checkpoint)

    def files(self) -> dict[str, tuple[int, bytes]]:
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbed."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", *TINY, *OFTEN)
    assert run.all() == [0], run.said
    return run


def test_a_run_that_was_killed_ends_as_one_that_was_not(whole: Run, tmp_path: Path) -> None:
    run, moments = Run(tmp_path / "run", *whole.arguments[2:]), random.Random(0)
    for kill in range(3):
        before, after = run.step, run.step + moments.randint(1, 12)
        run.kill_once(lambda after=after: run.step >= after)  # type: ignore[misc]
        assert (f"resumes {run.folder} from step {before} of 44" in run.said) == (kill > 0)
    unfinished = run.folder / "checkpoint.safetensors.unfinished"
    run.kill_once(unfinished.exists)  # while it is written
    assert unfinished.exists()
    before = run.step
    assert 3 < before < 44
    assert run.all() == [0], run.said
    assert f"resumes {run.folder} from step {before} of 44" in run.said
    assert run.lines == whole.lines
    assert [line["step"] for line in run.lines] == LINES
    for name, tensor in whole.tensors().items():
        assert torch.equal(run.tensors()[name], tensor), name
    for name in ("autoencoder", "encoder"):
        file = f"{name}.safetensors"
        assert (run.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert not unfinished.exists()


def test_killed_before_its_settings_were_written(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *TINY[2:], "--epochs", 1)
    run.folder.mkdir()
    (run.folder / "config.json.unfinished").write_text('{"data": "dig')
    assert run.all() == [0], run.said


def test_a_finished_run_is_neither_continued_nor_overwritten(whole: Run) -> None:
    before = whole.files()
    again = Run(whole.folder, *whole.arguments[2:])
    assert again.all() == [1]
    assert "is finished" in again.said
    assert "To start afresh, delete the folder or give another --output" in again.said
    assert whole.files() == before


def test_other_settings_are_refused_by_name(whole: Run, tmp_path: Path) -> None:
    from dataclasses import fields, replace

    from reference.config import Config, config_of
    from reference.pretraining import check_run

    before = whole.files()
    other = Run(whole.folder, *whole.arguments[2:], "--base-lr", 1)
    assert other.all() == [1]
    assert "was made with --base-lr 0.012, not 1.0" in other.said
    config = config_of(whole.folder)
    assert config is not None
    for field in fields(Config):
        values: Any = {field.name: 1 if field.name == "epochs" else "another"}
        changed = replace(config, **values)
        refusal = check_run(whole.folder, changed, True)
        assert f"{field.name.replace('_', '-')} " in refusal.replace(" of ", "-of-").replace("training i", "training-i")
    assert whole.files() == before


def test_images_that_came_or_went_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(9):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"images/{number}.png")
    run = Run(tmp_path / "run", "--data", tmp_path / "images", *FEW)
    assert run.all() == [0], run.said
    again = Run(run.folder, *run.arguments[2:])  # its images have no labels, so that --draws would have nothing to do
    assert again.all() == [1]
    assert "is finished" in again.said
    (tmp_path / "images/8.png").rename(tmp_path / "images/9.png")
    assert again.all() == [1]
    assert "was made with version of images " in again.said
    (tmp_path / "images/9.png").unlink()
    assert again.all() == [1]
    assert "was made with training images 9, not 8" in again.said


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    run = Run(tmp_path / "run", *TINY)
    assert run.all() == [1]
    assert "it is no run of this script" in run.said
    assert [path.name for path in run.folder.iterdir()] == ["thesis.tex"]
    file = Run(tmp_path / "run/thesis.tex", *TINY)
    assert file.all() == [1]
    assert "thesis.tex is a file" in file.said
    assert file.folder.read_text() == "mine"


def test_a_run_folder_among_the_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    run = Run(tmp_path / "images/run", "--data", tmp_path / "images", *FEW)
    assert run.all() == [2]
    assert "where it would be taken for images" in run.said
    assert not run.folder.exists()


def test_weights_decay_but_no_norms_or_positions(tmp_path: Path) -> None:
    from reference.config import config_of_finished
    from reference.model import build
    from safetensors.torch import load_file

    run = Run(tmp_path / "run", *TINY, "--epochs", 1, "--base-lr", 1e-2, "--weight-decay", 50, 50)
    assert run.all() == [0], run.said
    torch.manual_seed(0)
    before = build(config_of_finished(run.folder), 1)[0].state_dict()
    after = load_file(run.folder / "autoencoder.safetensors")
    left = {name: float(after[name].norm() / weight.norm()) for name, weight in before.items()}
    kept = {name for name, share in left.items() if ("norm" in name and "weight" in name) or "pos_embed" in name}
    assert len(kept) == 6
    assert all(left[name] > 0.95 for name in kept)
    assert all(left[name] < 0.5 for name, weight in before.items() if weight.ndim > 1 and name not in kept | {CLASS})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--batch-size", 2000), "--batch-size 2000 is more than the 1437 images to train on; give --batch-size 1432"),
        (("--accumulation", 3), "does not divide by 1 processes times --accumulation 3"),
        (("--precision", "fp16"), "--precision fp16 needs a GPU"),
        (("--labels", 0.1, "--draws", 1), "that many percent of the 142 images of 0 is none"),
        (("--epochs", 0), "--epochs is at least 1; got 0"),
        (("--seed", -1), "--seed is at least 0; got -1"),
        (("--base-lr", "nan"), "--base-lr takes finite numbers above 0; got nan"),
        (("--weight-decay", -1, 0), "--weight-decay takes finite numbers of at least 0; got -1"),
        (("--patch-size", 3), "is no multiple of the patch"),
        (("--log-with", "a-drum"), "--log-with a-drum: Accelerate knows no such tracker"),
        (("--ratio", 0.9, 0.1), "ratio"),
        (("--blocks", 3), "--blocks takes different numbers from 1 to 2"),
        (("--group-size", 1, 30), "images of 8 pixels, 64 at a time, cannot be masked so"),
        (("--batch-size", 1), "images of 8 pixels, 1 at a time, cannot be masked so"),
        (("--batch-size", 4, "--accumulation", 4), "images of 8 pixels, 1 at a time, cannot be masked so"),
        (("--ratio", 0.02, 0.9), "--ratio 0.02 hides none of 16 patches"),
        (("--dim", 30), "--dim is a multiple of 4"),
        (("--dim", 33), "timm makes no vit_tiny_patch16_224 of {"),
        (("--model", "resnet50"), "--model takes a VisionTransformer of timm, such as vit_tiny_patch16_224"),
        (("--ratio", 0.1, 0.2, 0.3), "--ratio takes one number, or two: from, to; got 0.1 0.2 0.3"),
        (("--method", "mae", "--fill", "noise"), "--method mae has masks, a decoder and a loss of its own: leave out"),
        (("--beta2", 1), "--beta2 is below 1; got 1"),
        (("--init", "nowhere.pth"), "--init nowhere.pth: there is no such file"),
        (("--model", "vit_tiny_r_s16_p8_224"), "no VisionTransformer of timm that embeds patches"),
    ],
)
def test_what_will_not_work_is_refused_before_anything_is_written(
    tmp_path: Path, options: tuple[object, ...], error: str
) -> None:
    run = Run(tmp_path / "run", *TINY, *options)
    assert run.all() in ([1], [2])
    assert error in run.said
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        # For CPUs it starts one process, whatever it is asked for, unless it is given MPI.
        (("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--main_process_port", "0"), 1),
        (("torch.distributed.run", "--standalone", "--nproc_per_node", "2"), 2),
    ],
    ids=["accelerate", "torchrun"],
)  # fmt: skip
def test_a_launcher_gives_what_one_process_gives(
    whole: Run, tmp_path: Path, launcher: tuple[str, ...], processes: int
) -> None:
    run = Run(tmp_path / "run", *TINY)  # with checkpoints at other steps, which change no line
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(EXAMPLES / "pretrain.py"), *run.arguments],
        env={**os.environ, **ALONE}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"images; processes: {processes}, device: cpu") == 1
    assert [line["step"] for line in run.lines] == LINES
    assert run.losses == pytest.approx(whole.losses, abs=1e-4)


def test_two_processes_that_were_killed_give_the_masks_and_losses_of_one(tmp_path: Path) -> None:
    # Of the second block and the pooling nothing is used, so that they get no gradient on any process.
    pooled = ("--model", "vit_base_patch16_siglip_224")
    options = (*TINY, *pooled, *OFTEN, "--accumulation", 2, "--blocks", 1)
    one, two = Run(tmp_path / "one", *options), Run(tmp_path / "two", *options, processes=2)
    assert one.all() == [0], one.said
    two.kill_once(lambda: two.step >= 20)
    killed_at = two.step
    assert two.all() == [0, 0], two.said
    assert f"resumes {two.folder} from step {killed_at} of 44" in two.said
    assert [line["step"] for line in two.lines] == LINES
    assert two.losses == pytest.approx(one.losses, abs=1e-4)
    assert not two.masked(0).keys() & two.masked(1).keys() - set(range(256))  # but for the held-out images
    both, alone = two.masked(0) | two.masked(1), one.masked()
    assert len(both.keys() & alone.keys()) >= 64 * (44 - killed_at)
    for number, (mask, mean) in both.items():
        assert torch.equal(mask, alone[number][0])
        assert mean == pytest.approx(alone[number][1], abs=1e-5)  # with patches of the same donors


def test_a_batch_that_eight_do_not_divide(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *TINY, "--fill", "alien", "--batch-size", 63, "--epochs", 1)
    assert run.all() == [0], run.said
    assert run.lines[-1]["held_out_loss"] > 0


def test_four_processes_give_the_losses_of_one(whole: Run, tmp_path: Path) -> None:
    four = Run(tmp_path / "four", *TINY, processes=4)
    assert four.all() == [0] * 4, four.said
    assert [line["step"] for line in four.lines] == LINES
    assert four.losses == pytest.approx(whole.losses, abs=1e-4)
    held_out = [[line["held_out_loss"] for line in run.lines if "held_out_loss" in line] for run in (four, whole)]
    assert len(held_out[0]) == 2  # once an epoch of a short run
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-4)
    shares = Run(tmp_path / "shares", *TINY, "--batch-size", 40, processes=4)
    assert shares.all() == [1] * 4
    assert (
        "4 processes get 10 images each of 40, but images give each other alien patches in blocks of 8" in shares.said
    )


def test_a_run_starts_from_the_weights_of_another(whole: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    slow = ("--base-lr", 1e-9, "--weight-decay", 0)
    for name in ("autoencoder", "encoder"):
        run = Run(tmp_path / name, *TINY, *slow, "--seed", 1, "--init", whole.folder / f"{name}.safetensors")
        assert run.all() == [0], run.said
        before, after = (load_file(one.folder / "encoder.safetensors") for one in (whole, run))
        # The schedule ends at 1e-6, whatever its peak.
        assert all(torch.allclose(after[key], value, atol=1e-4) for key, value in before.items())
    torch.save(load_file(whole.folder / "encoder.safetensors"), tmp_path / "timm.pth")
    other = Run(tmp_path / "other", *TINY, "--init", tmp_path / "timm.pth", "--dim", 64)
    assert other.all() == [1]
    assert re.search(r"does not fit \d+ of the encoder's \d+ weights, such as .*: give --model, --dim", other.said)


# With the smaller rate the loss is finite still where its gradient is not, and would spoil the step's checkpoint.
@pytest.mark.parametrize(("processes", "rate"), [(1, 1e6), (2, 1e10)])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, processes: int, rate: float) -> None:
    run = Run(tmp_path / "run", *TINY, *OFTEN, "--base-lr", rate, processes=processes)
    assert run.all() == [1] * processes
    found = re.search(
        r"the loss is (\S+) and the norm of its gradient (\S+) at step (\d+), on the images (\[.*\]);", run.said
    )
    assert found, run.said
    assert not all(torch.tensor([float(found[1]), float(found[2])]).isfinite())
    step, images = int(found[3]), json.loads(found[4])
    assert 1 < step < 44
    assert len(set(images)) == 64
    assert 0 <= min(images) <= max(images) < 1437
    before = step - 1 if processes == 1 else (step - 1) // 10 * 10
    good = f"the last good checkpoint is {run.checkpoint} (step {before})" if before else "there is no checkpoint yet"
    assert good in run.said
    assert run.step == before
    assert not before or all(tensor.isfinite().all() for tensor in run.tensors().values())


def test_bf16_learns_as_fp32_does(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *TINY, "--precision", "bf16")
    assert run.all() == [0], run.said
    assert run.losses == pytest.approx(whole.losses, abs=0.02)
    assert run.losses != whole.losses
    assert all(tensor.dtype == torch.float32 for tensor in run.tensors().values())


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_gets_the_lines(whole: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        EventAccumulator,
    )

    run = Run(tmp_path / "run", *TINY, "--log-with", "tensorboard")
    assert run.all() == [0], run.said
    events = EventAccumulator(str(run.folder / "pretraining"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == LINES
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(whole.losses)
