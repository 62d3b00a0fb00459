"""Run folders of the trainer in the hands of people: Ctrl-C, two terminals, full disks, longer runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from .test_example_training import TINY, Run, path, whole  # noqa: F401 (fixtures)

FINISHED = {"autoencoder.safetensors", "encoder.safetensors", "encoder.json"}


@pytest.fixture
def runs() -> ModuleType:
    from reference import runs

    return runs


def wait(run: Run, when: Callable[[], bool]) -> None:
    """Let a run go on until this holds."""
    end = time.monotonic() + 300
    while not when():
        assert time.monotonic() < end, run.said
        assert all(process.is_alive() for process in run.running), run.said
        time.sleep(0.001)


def another_line(run: Run) -> Callable[[], bool]:
    metrics = run.folder / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    return lambda: metrics.exists() and metrics.stat().st_size > before


def stopped(run: Run, number: int, steps: int = 44) -> int:
    """Stop a run by a signal after some steps, and return the one that it names."""
    some = another_line(run)
    run.start()
    wait(run, some)
    run.signal(number)
    assert run.finish() == [128 + number] * run.processes, run.said
    name = signal.Signals(number).name
    assert f"{name}: takes this step to its end and writes a checkpoint" in run.said
    assert f"stopped by {name} at step {run.step} of {steps}, which is in {run.checkpoint}; to go on: " in run.said
    assert 10 <= run.step < steps
    assert "Traceback" not in run.said
    assert not (run.folder / "lock").exists()
    return run.step


def assert_same_end(run: Run, other: Run) -> None:
    assert run.lines == other.lines
    for name in ("autoencoder.safetensors", "checkpoint.safetensors", "encoder.safetensors"):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_a_checkpoint_and_the_same_command_goes_on(
    whole: Run,  # noqa: F811
    tmp_path: Path,
    number: int,
) -> None:
    run = Run(tmp_path / "run", *TINY)
    step = stopped(run, number)
    assert f"to go on: python examples/pretrain.py --output {run.folder} --epochs 2" in run.said
    assert run.all() == [0], run.said
    assert f"resumes {run.folder} from step {step} of 44" in run.said
    assert_same_end(run, whole)


def test_a_signal_to_one_process_ends_both(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *TINY, processes=2)
    run.start()
    wait(run, another_line(run))
    os.kill(run.running[1].pid or 0, signal.SIGTERM)
    assert run.finish() == [143, 143], run.said
    assert run.step in (20, 30, 40)
    assert run.said.count(f"stopped by SIGTERM at step {run.step} of 44") == 1


def test_a_signal_before_the_first_step(tmp_path: Path) -> None:
    for attempt in range(5):
        run = Run(tmp_path / f"run{attempt}", *TINY)
        run.start()
        wait(run, (run.folder / "lock").exists)
        run.signal(signal.SIGSTOP)
        time.sleep(0.05)
        early = "pretrains" not in run.said
        run.signal(signal.SIGINT)
        run.signal(signal.SIGCONT)
        assert run.finish() == [130], run.said
        if early:
            break
    assert early
    assert "SIGINT: no checkpoint yet: nothing was lost; to go on: python" in run.said
    assert "Traceback" not in run.said
    assert not run.checkpoint.exists()
    assert run.all() == [0], run.said


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    code = """
import time
from pathlib import Path
from reference import runs
with runs.Stop(Path("checkpoint"), "this") as stop:
    stop.begin_steps()
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "a second signal ends it at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    assert process.stderr.read() == ""


def test_workers_start_without_the_signals_and_the_process_keeps_them(runs: ModuleType) -> None:
    blocked = []

    def batches() -> Any:
        for number in range(3):
            blocked.append(set(runs.SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            yield number

    assert list(runs.unsignalled(batches())) == [0, 1, 2]
    assert blocked == [set(runs.SIGNALS), set(), set()]
    assert list(runs.unsignalled(iter(()))) == []


def test_one_process_has_the_folder_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *TINY)
    run.start()
    wait(run, another_line(run))
    run.signal(signal.SIGSTOP)
    before = run.files()
    second = Run(run.folder, *TINY)
    assert second.all() == [2]
    holder = f"process {run.running[0].pid} on {socket.gethostname()}"
    assert f"{run.folder} is in use by {holder}. Wait until that has ended, or give another --output." in second.said
    assert run.files() == before
    run.signal(signal.SIGKILL)
    assert (run.folder / "lock").read_text() == f"{holder}\n"
    assert second.all() == [0], second.said  # takes over
    assert not (run.folder / "lock").exists()


def test_where_there_are_no_locks_the_file_is_one(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "fcntl", None)
    with runs.Lock(tmp_path) as first, runs.Lock(tmp_path) as second:
        assert first.take() == ""
        assert f"process {os.getpid()} on " in second.take()
        assert f"(if that runs no more, delete {tmp_path / 'lock'})" in second.take()
    assert list(tmp_path.iterdir()) == []


# Only Linux limits the files of a process that runs (resource.prlimit); a full tmpfs would need root.
@pytest.mark.skipif(sys.platform != "linux", reason="limiting another process's files needs Linux's prlimit")
def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays(whole: Run, tmp_path: Path) -> None:  # noqa: F811
    import resource

    run = Run(tmp_path / "run", *whole.arguments[2:])
    run.start()
    wait(run, lambda: run.step >= 3)
    size = run.checkpoint.stat().st_size
    resource.prlimit(run.running[0].pid or 0, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    assert run.finish() == [1]
    assert f"{run.checkpoint}" in run.said
    assert "file too large. Checkpoints written before are whole; when there is room and permission, this" in run.said
    assert "Traceback" not in run.said
    assert not (run.folder / "checkpoint.safetensors.unfinished").exists()
    step = run.step
    assert 3 <= step < 44
    assert run.all() == [0], run.said
    assert f"from step {step} of 44" in run.said
    assert_same_end(run, whole)


def test_too_little_room_is_named(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reference.config import resolved
    from reference.pretraining import take_run

    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folder = tmp_path / "not/there"
    status, refusal = take_run(folder, resolved({}, gpu=False), False, runs.Lock(folder), 1_000_000)
    assert status == 1
    assert f"{folder} needs about 16.0 MB more; its disk has 5.0 MB left" in refusal
    assert f"give another --output than {folder}" in refusal
    assert not (tmp_path / "not").exists()
    assert runs.obstacle(folder, 5_000_000) == ""
    assert "needs about 7.0 MB more" in runs.obstacle(folder, 7_000_000)
    assert "its disk has 5.0 MB left" in runs.obstacle(folder, 7_000_000)
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is a file" in runs.obstacle(tmp_path / "file/run", 1)


def test_a_folder_that_cannot_be_written_is_named(runs: ModuleType, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    root = os.getuid() == 0
    if root:  # who may write everywhere
        os.setreuid(65534, -1)
    try:
        found = runs.obstacle(tmp_path / "run", 1)
    finally:
        if root:
            os.setreuid(0, -1)
        tmp_path.chmod(0o755)
    assert found.startswith(f"{tmp_path} cannot be written: it is read-only, or not yours.")


def test_files_have_the_users_mode(whole: Run) -> None:  # noqa: F811
    mask = os.umask(0)
    os.umask(mask)
    files = [file for file in whole.folder.rglob("*") if file.is_file()]
    assert len(files) > 6
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}


def test_nobody_is_told_to_delete_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "vit"}')
    for folder in (tmp_path / "model", tmp_path / "model/config.json"):
        run = Run(folder, *TINY)
        assert run.all() == [1]
        assert f"Give another --output than {folder}." in run.said
        assert "delete the folder" not in run.said


def test_more_epochs_prolong_a_finished_run(whole: Run, tmp_path: Path) -> None:  # noqa: F811
    from reference.config import parse, resolved
    from reference.training import schedule

    short = Run(tmp_path / "run", *TINY, "--epochs", 1)
    assert short.all() == [0], short.said
    kept_files = (*FINISHED, "config.json", "report.html", "evaluation.json", "blocks.png", "classifier.safetensors")
    for name in kept_files[-3:]:
        (short.folder / name).write_text("of one epoch")
    ended = {name: (short.folder / name).read_bytes() for name in kept_files}
    run = Run(short.folder, *TINY)
    assert stopped(run, signal.SIGINT) > 22
    config = resolved(parse(run.arguments, None).given, gpu=False)
    was, rate = (schedule(config, *steps, 22)[0] for steps in ((21, 22), (22, 44)))
    assert (
        f"prolongs {run.folder} from 1 to 2 epochs: after step 22 the learning rate goes from {was:.3g} to {rate:.3g}, "
    )
    assert short.all() == [1]
    assert "was made with --epochs 2, not 1: give that again, or more." in short.said
    assert run.all() == [0], run.said
    assert "prolongs" not in run.said
    assert json.loads((run.folder / "config.json").read_text())["epochs"] == 2
    assert [line["step"] for line in run.lines] == [10, 20, 22, 30, 40, 44]
    for line in run.lines[3:]:
        assert line["lr"] == schedule(config, int(line["step"]) - 1, 44, 22)[0]
    # The short run left a run folder all the same.
    kept = run.folder / "epochs-0001"
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == ended

    # An unfinished one, prolonged without a break between, ends in the same weights.
    other = Run(tmp_path / "other", *TINY, "--epochs", 1)
    assert other.all() == [0], other.said
    other = Run(other.folder, *TINY)
    assert other.all() == [0], other.said
    assert_same_end(run, other)
    assert not torch.equal(run.tensors()["model.encoder.cls_token"], whole.tensors()["model.encoder.cls_token"])


def test_more_epochs_prolong_an_unfinished_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *TINY)
    step = stopped(run, signal.SIGINT)
    longer = Run(run.folder, *TINY, "--epochs", 3)
    assert longer.all() == [0], longer.said
    assert f"from 2 to 3 epochs: after step {step} the learning rate goes from " in longer.said
    assert f"resumes {run.folder} from step {step} of 66" in longer.said
    assert longer.step == 66
    assert {file.name for file in run.folder.iterdir() if file.is_dir()} == {"reconstructions"}
