"""Drawing: the operator behind GroupMask.sample, and which backend draws. What is drawn is defined in `sequential`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rng
from ..backends import Backend, run
from ..plan import SETTINGS_SCHEMA, MaskPlan, Settings
from ..streams import stream

BACKENDS = (
    Backend("triton", "gmml_aug.sampling.triton_draw", "cuda", "triton"),
    Backend("compiled", "gmml_aug.sampling.compiled", "cpu", "numba"),
    Backend("functions", "gmml_aug.sampling.sequential", "cpu"),
    Backend("functions", "gmml_aug.sampling.batched"),
)


class Samples(NamedTuple):
    """Which samples are drawn, and where.

    Attributes:
        number: how many.
        device: where the plan is wanted.
        first: the number of the first one, from which they are counted: an int64 tensor if it lives on the device.
        index: ``(B,)`` int64 on the device: their numbers, if they are named one by one.
    """

    number: int
    device: torch.device
    first: int | Tensor = 0
    index: Tensor | None = None

    def tensor(self) -> Tensor:
        """Return the samples' numbers, ``(B,)`` int64 on the device."""
        counted = torch.arange(self.number, device=self.device) + self.first if self.index is None else self.index
        return counted

    def empty(self, grid: Sequence[int]) -> MaskPlan:
        """Return a plan for them with nothing drawn yet."""
        mask, group = (
            torch.empty((self.number, *grid), dtype=dtype, device=self.device) for dtype in (torch.bool, torch.int32)
        )
        fill, donor, key = (torch.empty(self.number, dtype=torch.int64, device=self.device) for _ in range(3))
        return MaskPlan(mask, fill, donor, key, group)


def draw(root: int | Tensor, samples: Samples, settings: Settings) -> MaskPlan:
    """Draw a batch.

    Args:
        root: from which the keys are drawn: a number, or an int64 tensor on the device.
        samples: which, and where.
        settings: what is asked of all of them.

    Raises:
        ValueError: the settings need more groups than fit into memory.
    """
    settings.numbers()  # an error of the caller's is none of a backend
    plan: MaskPlan = run(BACKENDS, "draw", samples.device, root, samples, settings)
    return plan


def _operator(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: int,
    device: torch.device,
    *asked: Any,
) -> tuple[Tensor, ...]:
    root: int | Tensor
    if seed is None:
        # From the generator of the images' device: nothing to copy or to wait for, and a CUDA graph replays it afresh.
        root = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
        if device.type == "cpu":
            root = int(root)
    else:
        root = rng.root(seed, 0 if index is not None else stream(home_rank))
    first: int | Tensor = 0
    if index is not None:
        index = index.to(device, non_blocking=index.device.type == "cpu")
    elif seed is not None:
        # A counter in host memory enters as a kernel's argument, so it costs no copy to an accelerator.
        first = int(counter) if counter.device.type == "cpu" else counter.to(device)
        if isinstance(first, Tensor) and device.type == "cpu":
            first = int(first)
    plan = draw(root, Samples(batch, device, first, index), Settings(*asked))
    if index is None or seed is None:
        counter.add_(batch)
    return tuple(plan)


def _fake(
    counter: Tensor, index: Tensor | None, seed: int | None, home_rank: int | None, batch: int, device: Any, *asked: Any
) -> tuple[Tensor, ...]:
    return tuple(Samples(batch, device).empty(Settings(*asked).grid))


# Drawing is one opaque operator to torch.compile, so eager and compiled numbers are equal by construction: traced, the
# generator's wrapping arithmetic overflows, and the state of workers and ranks cannot be read at all. The counter is
# written inside, with no seed too: it keeps two calls of one graph from being taken for the same value.
torch.library.define(
    "gmml_aug::draw",
    "(Tensor(a!) counter, Tensor? index, int? seed, int? home_rank, SymInt batch, Device device, "
    f"{SETTINGS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("gmml_aug::draw", "default", _operator)
torch.library.register_fake("gmml_aug::draw", _fake)
