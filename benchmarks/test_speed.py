"""Masks a second and the whole transform, beside lightly, Kornia and torchvision: ``pytest benchmarks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from gmml_aug import GroupMask

pytest.importorskip("pytest_benchmark")

GROUPS, TOKENS = GroupMask(16, 0.5, seed=0), GroupMask(16, 0.5, group_size=(1, 1), seed=0)
MASKS: dict[str, Callable[[int], Tensor]] = {
    "gmml_aug groups": lambda batch: GROUPS.sample((batch, 3, 224, 224)).mask,
    "gmml_aug tokens": lambda batch: TOKENS.sample((batch, 3, 224, 224)).mask,
    "lightly blocks": peers.lightly_blocks,
    "lightly tokens": peers.lightly_tokens,
}


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("name", MASKS)
def test_masks(benchmark: Any, name: str, batch: int) -> None:
    benchmark.group = f"masks, batch {batch}, 98 of 14x14"
    mask = benchmark(MASKS[name], batch)
    assert mask.shape == (batch, 14, 14)


TRANSFORMS: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
    "clone": lambda: Tensor.clone,
    "gmml_aug zeros": lambda: GroupMask(16, 0.5, "zeros", seed=0),
    "gmml_aug noise": lambda: GroupMask(16, 0.5, "noise", seed=0),
    "gmml_aug alien": lambda: GroupMask(16, 0.5, "alien", seed=0),
    "gmml_aug shuffle": lambda: GroupMask(16, 0.5, "shuffle", seed=0),
    "kornia RandomErasing": peers.kornia_erasing,
    "torchvision RandomErasing": peers.torchvision_erasing,
    "torchvision CutMix": peers.torchvision_cutmix,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(benchmark: Any, name: str) -> None:
    benchmark.group = "transform, 64 x 3 x 224 x 224, float32"
    images = torch.randn(64, 3, 224, 224)
    benchmark(TRANSFORMS[name](), images)
