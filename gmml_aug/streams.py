"""Which stream of a seed a process draws from, so that workers, ranks and forks do not repeat each other."""

from __future__ import annotations

import os

import torch

_forked_in_group = False  # a rank of a process group forked this process, which is then no rank itself


def group_rank() -> int | None:
    """Return this process's rank in its process group, or None where it is in none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return None


def _forked() -> None:
    global _forked_in_group
    _forked_in_group = group_rank() is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def stream(process: int, home_rank: int) -> int:
    """Return the stream of this process: 0 in a single one, and another in every worker of every rank.

    Args:
        process: the one in which the transform was made, copied or unpickled.
        home_rank: the rank that pickled it, -1 if it has none. A DataLoader's worker that was spawned has no process
            group, and this alone tells it.

    Raises:
        ValueError: ``RANK``, which a launcher sets before there is a process group, is no number.
    """
    worker, rank, here = torch.utils.data.get_worker_info(), group_rank(), process == os.getpid()
    ranked = rank is not None and not _forked_in_group
    fork = 0 if here or ranked or worker is not None else 2**31 | os.getpid() % 2**31
    if rank is None and worker is not None and here and home_rank >= 0:
        rank = home_rank
    if rank is None:
        text = os.environ.get("RANK") or "0"
        if not text.isdecimal():
            raise ValueError(f"RANK in the environment is this process's rank, a number from 0; got {text!r}; unset it")
        rank = int(text)
    return rank << 32 | (fork if worker is None else worker.id + 1)
