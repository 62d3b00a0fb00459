"""Which stream of a seed a process draws from, so that workers and ranks do not repeat each other."""

from __future__ import annotations

import os

import torch


def group_rank() -> int | None:
    """Return this process's rank in its process group, or None where it is in none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return None


def stream(home_rank: int | None) -> int:
    """Return the stream of this process: 0 in a single process, and another in every worker of every rank.

    A DataLoader worker that was spawned has no process group; what was pickled with the transform tells it
    (``home_rank``). Before a process group is there, the launcher's environment does.
    """
    rank = group_rank()
    if rank is None:
        rank = home_rank
    if rank is None:
        rank = int(os.environ.get("RANK") or 0)
    worker = torch.utils.data.get_worker_info()
    return rank << 32 | (0 if worker is None else worker.id + 1)
