"""Drawing: the operator behind GroupMask.sample, and which backend draws. What is drawn is defined in `sequential`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rng
from ..backends import Backend, run, watched
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
        batch: the plan's dimensions before the grid's: (B,), or () for one image.
        device: where the plan is wanted.
        first: the number of the first one, from which they are counted: an int64 tensor if it lives on the device.
        named: ``(B,)`` int64 on the device: their numbers, if they are named one by one.
    """

    batch: Sequence[int]
    device: torch.device
    first: int | Tensor = 0
    named: Tensor | None = None

    @property
    def number(self) -> int:
        """How many there are."""
        return self.batch[0] if self.batch else 1

    def tensor(self) -> Tensor:
        """Return the samples' numbers, ``(B,)`` int64 on the device."""
        counted = torch.arange(self.number, device=self.device) + self.first if self.named is None else self.named
        return counted

    def empty(self, grid: Sequence[int]) -> MaskPlan:
        """Return a plan for them with nothing drawn yet."""
        mask, group = (
            torch.empty((*self.batch, *grid), dtype=dtype, device=self.device) for dtype in (torch.bool, torch.int32)
        )
        fill, donor, key = (torch.empty(self.batch, dtype=torch.int64, device=self.device) for _ in range(3))
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


def drawn(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: Sequence[int],
    device: torch.device,
    settings: Settings,
) -> MaskPlan:
    """Draw for one call of a GroupMask, and count its samples.

    Args:
        counter: ``()`` int64, the number of the next sample; is written to.
        index: ``(B,)`` int64 or None, the samples' numbers.
        seed: int64, or None for torch's generator.
        home_rank: the rank of the process in which the transform was pickled.
        batch: (B,), or () for one image.
        device: where to draw.
        settings: what is asked.
    """
    # torch's dispatcher takes a third of the time of drawing one mask, and has no part in a plain eager call.
    if not torch.compiler.is_compiling() and not watched():
        return _draw(counter, index, seed, home_rank, batch, device, settings)
    return MaskPlan(*torch.ops.gmml_aug.draw.default(counter, index, seed, home_rank, batch, device, *settings))


def _draw(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: Sequence[int],
    device: torch.device,
    settings: Settings,
) -> MaskPlan:
    root: int | Tensor
    first: int | Tensor = 0
    on_cpu = device.type == "cpu"
    if seed is None:
        # From the generator of the images' device: nothing to copy or to wait for, and a CUDA graph replays it afresh.
        root = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
        root = int(root) if on_cpu else root
    else:
        root = rng.root(seed, 0 if index is not None else stream(home_rank))
    if index is not None:
        index = index.to(device, non_blocking=index.device.type == "cpu")
    elif seed is not None:
        # A counter in host memory enters as a kernel's argument, so it costs no copy to an accelerator.
        first = int(counter) if on_cpu or counter.device.type == "cpu" else counter.to(device)
    samples = Samples(batch, device, first, index)
    plan = draw(root, samples, settings)
    if index is None or seed is None:
        counter.add_(samples.number)
    return plan


def _operator(
    counter: Tensor,
    index: Tensor | None,
    seed: int | None,
    home_rank: int | None,
    batch: Sequence[int],
    device: torch.device,
    *asked: Any,
) -> tuple[Tensor, ...]:
    return tuple(_draw(counter, index, seed, home_rank, batch, device, Settings.of(*asked)))


def _fake(
    counter: Tensor, index: Tensor | None, seed: int | None, home_rank: int | None, batch: Any, device: Any, *asked: Any
) -> tuple[Tensor, ...]:
    return tuple(Samples(batch, device).empty(Settings(*asked).grid))


# Drawing is one opaque operator to torch.compile, so eager and compiled numbers are equal by construction: traced, the
# generator's wrapping arithmetic overflows, and the state of workers and ranks cannot be read at all. The counter is
# written inside, with no seed too: it keeps two calls of one graph from being taken for the same value.
torch.library.define(
    "gmml_aug::draw",
    "(Tensor(a!) counter, Tensor? index, int? seed, int? home_rank, SymInt[] batch, Device device, "
    f"{SETTINGS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("gmml_aug::draw", "default", _operator)
torch.library.register_fake("gmml_aug::draw", _fake)
