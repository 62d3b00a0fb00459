"""Drawing: the operator behind GroupMask.sample. Which backend draws is chosen here.

Every backend is ``draw(root, samples, settings)``: it draws the plan of some samples from the root of their stream, an
int or a tensor on the device; see :class:`Samples` and :class:`~gmml_aug.plan.Settings`. `sequential` defines the
result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rng
from ..backends import Backend, run, watched
from ..plan import MaskPlan, Settings
from ..streams import stream

BACKENDS = (
    Backend("triton", "gmml_aug.sampling.triton_draw", "cuda", "triton"),
    Backend("compiled", "gmml_aug.sampling.compiled", "cpu", "numba"),
    Backend("functions", "gmml_aug.sampling.sequential", "cpu"),
    Backend("functions", "gmml_aug.sampling.batched"),
)


@lru_cache(maxsize=256)  # a captured graph goes on reading it
def numbers_on(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return whole numbers on a device: ``(n,)`` int64, to which nobody writes."""
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


class Samples(NamedTuple):
    """Which samples are drawn, and where.

    Attributes:
        batch: the plan's dimensions before the grid's: (B,), or () for one image.
        device: where the plan is wanted.
        first: the number of the first one, from which they are counted: an int64 tensor if it lives on the device.
        named: ``(B,)`` int64 on the device: their numbers, if they are named one by one.
        valid: ``(B, patches)`` bool on the device: which patches may be hidden; None where all may.
    """

    batch: Sequence[int]
    device: torch.device
    first: int | Tensor = 0
    named: Tensor | None = None
    valid: Tensor | None = None

    @property
    def number(self) -> int:
        """How many there are."""
        return self.batch[0] if self.batch else 1

    def empty(self, grid: Sequence[int]) -> MaskPlan:
        """Return a plan for them with nothing drawn yet."""
        mask, group = (
            torch.empty((*self.batch, *grid), dtype=dtype, device=self.device) for dtype in (torch.bool, torch.int32)
        )
        fill, donor, key = (torch.empty(self.batch, dtype=torch.int64, device=self.device) for _ in range(3))
        return MaskPlan(mask, fill, donor, key, group)


class Call(NamedTuple):
    """One call of a GroupMask, as torch's operator takes it.

    Attributes:
        counter: ``()`` int64, the number of the next sample; is written to.
        named: ``(B,)`` int64 or None, the samples' numbers, if they are named one by one.
        valid: ``(B, gh, gw)`` bool or None, which patches may be hidden.
        seed: int64, or None for torch's generator.
        home: the process that made the transform, and the rank that pickled it; see :func:`~gmml_aug.streams.stream`.
        batch: (B,), or () for one image.
        device: where to draw.
        grid: (height, width) or (depth, height, width) in patches.
        shares: ``(3,)`` float64 on the CPU: the ratio's ends and p. In a tensor, because they may change from call to
            call, and torch.compile compiles once for each number that it sees.
        sizes, inside, weights, invert, size_weights: as in :class:`~gmml_aug.plan.Settings`.
    """

    counter: Tensor
    named: Tensor | None
    valid: Tensor | None
    seed: int | None
    home: Sequence[int]
    batch: Sequence[int]
    device: torch.device
    grid: Sequence[int]
    shares: Tensor
    sizes: Sequence[int] | None
    inside: bool
    weights: Sequence[float]
    invert: bool
    size_weights: Sequence[float]


_SCHEMA = (
    "draw(Tensor(a!) counter, Tensor? named, Tensor? valid, int? seed, int[] home, SymInt[] batch, Device device, "
    "SymInt[] grid, Tensor shares, int[]? sizes, bool inside, float[] weights, bool invert, float[] size_weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def drawn(call: Call) -> MaskPlan:
    """Draw for one call of a GroupMask, and count its samples."""
    # torch's dispatcher takes a third of the time of drawing one mask, and has no part in a plain eager call.
    if not watched():
        return _draw(call)
    if torch._C._get_tracing_state() is not None:  # by which torch ends in an internal error
        raise ValueError("torch.jit.trace cannot record what is drawn; use torch.compile or torch.export")
    return MaskPlan(*torch.ops.gmml_aug.draw.default(*call))


def _draw(call: Call) -> MaskPlan:
    counter, named, device = call.counter, call.named, call.device
    low, high, p = call.shares.tolist()
    sizes, limited = None if call.sizes is None else tuple(call.sizes), call.valid is not None
    asked = sizes, call.inside, p, tuple(call.weights), call.invert, limited, tuple(call.size_weights)
    settings = Settings(tuple(call.grid), (low, high), *asked)
    patches = settings.numbers().patches  # an error of the caller's is none of a backend
    number = call.batch[0] if call.batch else 1
    root: int | Tensor
    first: int | Tensor = 0
    if call.seed is None:
        # From the generator of the images' device: nothing to copy or to wait for, and a CUDA graph replays it afresh.
        root = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
        root = int(root) if device.type == "cpu" else root
    else:
        root = rng.root(call.seed, 0 if named is not None else stream(*call.home))
    if named is not None:
        named = named.to(device, non_blocking=named.device.type == "cpu")
    else:
        with _counting:  # several threads may call one transform
            if call.seed is not None:
                # A counter in host memory enters as a kernel's argument, so it costs no copy to an accelerator.
                first = int(counter) if "cpu" in (device.type, counter.device.type) else counter.to(device, copy=True)
            counter.add_(number)
    valid = None if call.valid is None else call.valid.to(device).contiguous().view(number, patches)
    plan: MaskPlan = run(BACKENDS, "draw", device, root, Samples(call.batch, device, first, named, valid), settings)
    return plan


_counting = threading.Lock()


def _new_lock() -> None:
    global _counting
    _counting = threading.Lock()  # another thread may have held it when the process was forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    call = Call(*arguments)
    return tuple(Samples(call.batch, call.device).empty(call.grid))


# Drawing is one opaque operator to torch.compile, so eager and compiled numbers are equal by construction: traced, the
# generator's wrapping arithmetic overflows, and the state of workers and ranks cannot be read at all. The counter is
# written inside, with no seed too: it keeps two calls of one graph from being taken for the same value.
rng.operator(_SCHEMA, lambda *arguments: tuple(_draw(Call(*arguments))), _fake)
