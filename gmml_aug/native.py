"""Loops that Numba compiles from this package's own source, shared by a few threads that do not hold the GIL.

Numba's own thread pools abort a process that is forked after their use or entered by two threads, and OpenMP's waits
by spinning; a pool of Python threads does neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from types import FunctionType
from typing import Any

import numba
import torch

_PIECES = 2  # for each thread: one that is slowed by other work leaves the rest to the others


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process: they do not live on in one that is forked."""
    return ThreadPoolExecutor(os.cpu_count(), "gmml_aug")


def compiled(function: Callable[..., Any], signature: Any, *calls: Any) -> Any:
    """Compile a function.

    Args:
        function: plain Python over whole numbers and flat buffers.
        signature: Numba's, of its arguments.
        calls: what :func:`compiled` returned for the functions of this package that it calls.

    Returns:
        A function of the same arguments, which does not hold the GIL.
    """
    own = {**function.__globals__, **{call.__name__: call for call in calls}}
    twin = FunctionType(function.__code__, own, function.__name__)
    twin.__module__, twin.__qualname__ = function.__module__, function.__qualname__
    try:
        return numba.njit(signature, nogil=True, error_model="numpy", cache=True)(twin)
    except (OSError, RuntimeError):  # no folder in which to keep what was compiled, or no room in it
        return numba.njit(signature, nogil=True, error_model="numpy")(twin)


def share(total: int, least: int, work: Callable[[int, int], None]) -> None:
    """Have ``work(begin, end)`` done for all of ``range(total)``, by as many threads as torch has.

    Args:
        total: how much there is.
        least: how much is worth a thread of its own.
        work: is called with parts of the range, by several threads at once.
    """
    threads = min(torch.get_num_threads(), total // least)
    if threads <= 1:
        return work(0, total)
    step = -(-total // (threads * _PIECES))
    begins = iter(range(0, total, step))  # whoever is free takes the next part

    def walk() -> None:
        for begin in begins:
            work(begin, min(begin + step, total))

    others: list[Future[None]] = []
    with suppress(RuntimeError):  # the interpreter is about to end, and starts no more threads
        others = [_pool(os.getpid()).submit(walk) for _ in range(threads - 1)]
    walk()
    for other in others:
        if not other.cancel():  # one that did not begin has nothing left to do
            other.result()
    return None
