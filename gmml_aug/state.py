"""The state of a GroupMask: ratio and p, which may be set, and its counter; copies, casts, files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .inputs import as_ratio, as_share
from .streams import group_rank

_Self = TypeVar("_Self", bound="State")


class State(nn.Module):
    """A module that counts its samples, and whose ``ratio`` and ``p`` may change from call to call."""

    counter: Tensor
    _ratio: tuple[float, float]
    _p: float
    _shares: Tensor  # both, for torch.compile, which compiles once for each number that it sees

    def __init__(self, ratio: tuple[float, float], p: float, seed: int | None) -> None:
        super().__init__()
        self._share(ratio, p)
        self.seed = seed
        self._home = os.getpid(), -1  # the process that made it, and the rank that pickled it
        # With no seed nothing depends on the counter, so it stays out of checkpoints.
        self.register_buffer("counter", _counter(0, "cpu"), persistent=seed is not None)

    @property
    def ratio(self) -> tuple[float, float]:
        """The range of the hidden share. It may be set, to a number or a pair, as a schedule does."""
        return self._ratio

    @ratio.setter
    def ratio(self, ratio: float | tuple[float, float]) -> None:
        self._share(as_ratio(ratio), self.p)

    @property
    def p(self) -> float:
        """The probability that an image is corrupted. It may be set too."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        self._share(self.ratio, as_share("p", p))

    def _share(self, ratio: tuple[float, float], p: float) -> None:
        with torch.inference_mode(False):
            shares = torch.tensor([*ratio, p], dtype=torch.float64, device="cpu")
        self.__dict__.update(_ratio=ratio, _p=p, _shares=shares)  # by Module's own way 9 us instead of 5

    def __getstate__(self) -> dict[str, Any]:
        # A pickle may be opened in a DataLoader worker, which cannot ask for its rank. The counter goes as a number: as
        # a tensor, all these processes would share its memory. So do the shares.
        counter, rank = self.counter, group_rank()
        return {
            **self.__dict__,
            "_buffers": {**self._buffers, "counter": None},
            "_counted": (0 if counter.is_meta else int(counter), counter.device),
            "_shares": None,
            "_home": (-1, -1 if rank is None else rank),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.counter = _counter(*self.__dict__.pop("_counted"))
        self._share(self.ratio, self.p)
        self._home = os.getpid(), self._home[1]

    def _apply(self: _Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Self:
        before = self.counter
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.counter.dtype != torch.int64:  # a cast of the whole module, after which it would stick
            self.counter = before.to(self.counter.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if isinstance(counter := state_dict.get(f"{prefix}counter"), Tensor):
            state_dict = {**state_dict, f"{prefix}counter": counter.to(torch.int64)}
        super()._load_from_state_dict(state_dict, prefix, *others)


def _counter(number: int, device: torch.device | str) -> Tensor:
    with torch.inference_mode(False):  # or a module built under it could not count outside
        return torch.tensor(number, dtype=torch.int64, device=device)
