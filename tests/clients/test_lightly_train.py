"""lightly-train: its DINOv2 builds a mask generator in each step and calls it with numbers of patches."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch

from gmml_aug import GroupMask
from gmml_aug.interop.dinov2 import MaskGenerator

utils = pytest.importorskip("lightly_train._methods.dinov2.utils")
dinov2 = pytest.importorskip("lightly_train._methods.dinov2.dinov2")


@functools.cache
def generator(input_size: tuple[int, int], max_num_patches: int) -> MaskGenerator:
    """Build one for each grid, and keep it: a new one in each step would begin its seed again."""
    return MaskGenerator(GroupMask(seed=0), input_size)


def collated(made: Any, crops: int = 8) -> Any:
    return utils.create_collated_masks(
        mask_ratio_min=0.1, mask_ratio_max=0.5, n_masked_crops=crops // 2, n_crops=crops, mask_generator=made
    )


def test_its_own_collate_function_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinov2, "MaskingGenerator", generator)
    random.seed(0)
    seen = []
    for _ in range(3):  # as its training step builds and calls it
        made = dinov2.MaskingGenerator(input_size=(14, 16), max_num_patches=int(0.5 * 14 * 16))
        out = collated(made)
        masks = out["collated_masks"]
        assert (masks.shape, masks.dtype) == ((8, 224), torch.bool)
        assert (masks.sum(1) == 0).sum() == 4
        assert (masks.sum(1) <= 112).all()
        assert torch.equal(out["mask_indices_list"], masks.flatten().nonzero().flatten())
        assert out["masks_weight"].sum() == pytest.approx(4)
        seen.append(masks[masks.any(1)])
    assert len(torch.cat(seen).unique(dim=0)) == 12  # the seed goes on from step to step


def test_ours_hides_the_whole_number_where_its_own_may_stop_short() -> None:
    ours, theirs = generator((16, 16), 128), utils.MaskingGenerator((16, 16), 128)
    random.seed(0)
    for number in range(0, 129, 8):
        assert ours(number).sum() == number
        assert theirs(number).sum() <= number
