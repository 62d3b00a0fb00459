"""Devices that none of our backends runs on, such as Apple's MPS: a stand-in that has no 64-bit shifts and no numbers.

No such device is here. The meta device takes its part: it cannot be waited for, and every operation on it is seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gmml_aug import GroupMask, MaskPlan, rng
from gmml_aug.filling import everywhere
from gmml_aug.filling.fills import BUILT_IN

LACKS = ("shift", "view.dtype", "float64", "_local_scalar_dense", "nonzero", "randint")


class Seen(TorchDispatchMode):
    """Collect the operations that touch a tensor on the stand-in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            self.names |= {str(func), *(str(tensor.dtype) for tensor in tensors if tensor.is_meta)}
        return out


@pytest.mark.parametrize("fill", BUILT_IN)
@pytest.mark.parametrize("pool", [False, True])
def test_writing_needs_nothing_that_such_a_device_lacks(fill: str, pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "ARITHMETIC", ("cpu", "cuda"))
    images = torch.empty(4, 3, 32, 32, device="meta")
    donors = torch.empty(2, 3, 32, 32, device="meta") if pool else None
    plan = GroupMask(8, 0.5, fill, seed=0).sample((4, 3, 32, 32))  # where numbers can be drawn
    with Seen() as seen:
        operation = BUILT_IN[fill].operation(images, plan, donors)
        everywhere.write(images, torch.empty_like(images), plan.mask, plan.fill, [operation], donors)
    assert seen.names
    assert not [name for name in seen.names for lack in LACKS if lack in name]


def test_a_plan_is_drawn_on_the_cpu_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmml_aug.transform.ARITHMETIC", ("cpu", "cuda"))
    corrupt = GroupMask(8, 0.5, seed=0)
    plan = corrupt.sample(torch.empty(4, 3, 32, 32, device="meta"))
    assert isinstance(plan, MaskPlan)
    assert all(field.is_meta for field in plan)
    assert corrupt.counter == 4
    out = corrupt(torch.empty(4, 3, 32, 32, device="meta"))
    assert out.images.is_meta
    assert out.mask.is_meta
