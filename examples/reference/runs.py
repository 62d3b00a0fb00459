"""A run folder in safe hands: one writer at a time, an end that signals ask for, room on the disk."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def same_command(arguments: list[str] | None) -> str:
    """Return the command that goes on; ``arguments`` are its own where it came from Python and not from a shell."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun and accelerate launch leave their own words nowhere
        return f"the same launcher with {shlex.join(sys.argv)}"
    return shlex.join(sys.orig_argv if arguments is None else ["python", "examples/pretrain.py", *arguments])


class Stop:
    """SIGINT (Ctrl-C) and SIGTERM: while steps are taken, the first is noted in ``number`` and a second ends at once.

    Where no steps are taken the first ends the process too, with a line and status 130 or 143.
    """

    def __init__(self, checkpoint: Path, command: str) -> None:
        self.checkpoint, self.command = checkpoint, command
        self.number, self.since, self.stepping, self.process = 0, 0.0, False, os.getpid()
        self.speaks = os.environ.get("RANK", "0") == "0"
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and scripts' background commands have it
                self.before[number] = signal.signal(number, self.received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def received(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker that was forked: this process ends it
            return
        if self.number:
            # From a terminal torchrun's processes get each signal twice: from there, and from torchrun.
            if "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self.since > 1:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self.since = number, time.monotonic()
        if self.stepping:
            self.say("takes this step to its end and writes a checkpoint; a second signal ends it at once")
        else:
            self.end()

    def say(self, words: str) -> None:
        if self.speaks:  # not by print, which may be what the signal came into
            os.write(2, f"\n{signal.Signals(self.number).name}: {words}\n".encode())

    def end(self) -> None:
        """End the process, outside of the steps."""
        there = self.checkpoint.exists()
        lost = f"{self.checkpoint} is whole, and nothing was lost" if there else "no checkpoint yet: nothing was lost"
        self.say(f"{lost}; to go on: {self.command}")
        raise SystemExit(128 + self.number)

    def begin_steps(self) -> None:
        """From here on a signal waits until ``number`` is looked at."""
        self.stepping = True

    def end_steps(self) -> None:
        self.stepping = False
        if self.number:  # came after the last look
            self.end()


def unsignalled(batches: Iterator[T]) -> Iterator[T]:
    """Yield the batches, whose workers start with the first and so get no SIGINT or SIGTERM of their own.

    Terminals and clusters signal all processes, and a step could not be taken to its end without its workers.
    """
    block = getattr(signal, "pthread_sigmask", None)  # not on Windows
    before = block(signal.SIG_BLOCK, SIGNALS) if block else None
    try:
        first = list(zip(range(1), batches, strict=False))
    finally:
        if block:
            block(signal.SIG_SETMASK, before)
    yield from (batch for _, batch in first)
    yield from batches


class Lock:
    """The file ``lock`` of a run folder: whoever writes there holds it, and its text says who that is.

    The system lets go of it when its process ends in whatever way. Where it has no locks, the file alone is one.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.file: int | None = None

    def __enter__(self) -> Lock:
        return self

    def take(self) -> str:
        """Take it, or say who has it."""
        while True:
            try:
                file, new = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                try:
                    file, new = os.open(self.path, os.O_RDWR), False
                except FileNotFoundError:  # was given back just now
                    continue
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "no locks")
                # Not flock: workers that are forked would share it, and outlive by seconds a process that is killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                has_locks = error.errno in (errno.EAGAIN, errno.EACCES)
                if has_locks or not new:
                    os.close(file)
                    who = self.path.read_text().strip() if self.path.exists() else ""
                    stale = "" if has_locks else f" (if that runs no more, delete {self.path})"
                    return (who or "another process") + stale
            if not os.path.exists(self.path) or not os.path.samestat(os.fstat(file), os.stat(self.path)):
                os.close(file)  # its holder gave it back between our opening and locking it
                continue
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            self.file = file
            return ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            with suppress(OSError):  # the folder may be gone, or be read-only by now
                if fcntl is not None:
                    self.path.unlink()  # before it is let go: nobody can have it in between
            os.close(self.file)
            self.file = None
            if fcntl is None:  # Windows deletes no open file
                with suppress(OSError):
                    self.path.unlink()


def obstacle(folder: Path, need: int) -> str:
    """Say why ``need`` bytes could not be written to a folder, which may not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{folder} cannot be made: {there} is a file."
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written: it is read-only, or not yours."
    free = shutil.disk_usage(there).free
    if free < need:
        return f"{folder} needs about {megabytes(need)} more; its disk has {megabytes(free)} left. Make room there."
    return ""


def check_writable(folder: Path) -> None:
    """End here if what a script is about to make could not be written to a folder."""
    if why := obstacle(folder, 10**7):
        raise SystemExit(why)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """Say in a sentence that a disk is full or cannot be written, where there would be a traceback."""
    try:
        yield
    except OSError as error:
        reasons = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
        if error.errno not in reasons:
            raise
        raise SystemExit(
            f"{error.filename or 'a file of the run'}: {os.strerror(error.errno).lower()}. Checkpoints written before "
            f"are whole; when there is room and permission, this goes on: {command}"
        ) from None


# What the other scripts made of a finished run.
OF_OTHER_SCRIPTS = (
    *("reconstructions.png", "blocks.png", "attention.png", "features.npz", "neighbours.png", "dense.json"),
    *("classifier.safetensors", "classifier.json"),
)


def set_aside(folder: Path, epochs: int) -> None:
    """Move what a finished run of so many epochs left into a run folder of its own inside, before more overwrite it."""
    kept = folder / f"epochs-{epochs:04}"
    figures = ("evaluation.json", "evaluation.png", "report.html")
    # The first is what a finished run is known by.
    for name in ("encoder.safetensors", "encoder.json", *figures, "autoencoder.safetensors", *OF_OTHER_SCRIPTS):
        if (folder / name).exists():
            kept.mkdir(exist_ok=True)
            if not (kept / "config.json").exists():
                shutil.copyfile(folder / "config.json", kept / "config.json")
            os.replace(folder / name, kept / name)
