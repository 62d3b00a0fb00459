"""Soft labels for mixed images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gmml_aug import Alien, GroupMask, mix_labels


@pytest.mark.parametrize("fill", ["alien", Alien("group")])
def test_labels_are_shared_as_the_patches_are(fill: Any) -> None:
    """Every image is painted in its class, so that pixels tell what the label should be."""
    labels = torch.arange(32) % 5
    images = labels.view(32, 1, 1, 1).expand(32, 1, 16, 16).float()
    corrupt = GroupMask(2, (0.0, 1.0), fill, seed=0, p=0.8)
    plan = corrupt.sample(images)
    out = corrupt.apply(images, plan).images
    soft = mix_labels(labels, corrupt.owner(plan), num_classes=7)
    assert (soft.shape, soft.dtype) == ((32, 7), torch.float32)
    for label in range(7):
        assert torch.equal(soft[:, label], (out == label).float().mean((1, 2, 3)))
    assert torch.allclose(soft.sum(1), torch.ones(32))
    shares = (soft > 0).sum(1)
    assert (shares.max() > 2) == (fill != "alien")


def test_labels_stay_where_nothing_is_alien() -> None:
    labels = torch.tensor([2, 0, 1, 1])
    corrupt = GroupMask(2, 0.5, {"noise": 1, "zeros": 1, "shuffle": 1})
    plan = corrupt.sample((4, 3, 8, 8))
    soft = mix_labels(labels, corrupt.owner(plan), 3)
    assert torch.equal(soft, torch.nn.functional.one_hot(labels, 3).float())


OWNER = torch.zeros(4, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("labels", "owner", "classes", "error", "words"),
    [
        (torch.zeros(4), OWNER, 3, TypeError, "int64 tensors; got torch.float32"),
        ([0, 1, 2, 0], OWNER, 3, TypeError, "got list"),
        (torch.zeros(3, dtype=torch.int64), OWNER, 3, ValueError, r"\(3,\) and \(4, 2, 2\)"),
        (torch.zeros(4, 3, dtype=torch.int64), OWNER, 3, ValueError, r"labels are \(B,\)"),
        (torch.zeros(4, dtype=torch.int64), OWNER, 0, ValueError, "at least 1; got 0"),
        (torch.zeros(4, dtype=torch.int64), OWNER, 3.0, ValueError, "an int"),
        (torch.zeros(4, dtype=torch.int64), OWNER > 0, 3, TypeError, "torch.bool"),
        (torch.zeros(4, dtype=torch.int64), GroupMask(4).sample((4, 3, 8, 8)), 3, TypeError, r"corrupt.owner\(plan\)"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, owner: Any, classes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        mix_labels(labels, owner, classes)


def test_labels_elsewhere_are_refused_and_shares_are_float32_whatever_the_default() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels are on meta and owner on cpu"):
        mix_labels(labels.to("meta"), OWNER, 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert mix_labels(labels, OWNER, 3).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("fill", ["alien", Alien("group"), {"noise": 1, Alien("group"): 1}])
def test_no_value_is_read_back(fill: Any) -> None:
    """Tensors of the meta device have none, as those of an accelerator have none yet."""
    corrupt, labels = GroupMask(2, 0.5, fill), torch.zeros(4, dtype=torch.int64, device="meta")
    plan = corrupt.sample((4, 3, 8, 8)).to("meta")
    soft = mix_labels(labels, corrupt.owner(plan), 3)
    assert (soft.shape, soft.device.type) == ((4, 3), "meta")


def test_a_class_beyond_the_last_is_refused() -> None:
    for wrong in (3, -100):
        with pytest.raises(ValueError, match=f"from 0 to 2; got {wrong}; leave out"):
            mix_labels(torch.tensor([0, 1, 2, wrong]), OWNER, num_classes=3)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_owner_that_is_not_in_the_batch_is_refused(wrong: int) -> None:
    owner = OWNER.clone()
    owner[2, 0, 1] = wrong  # -1 is the donor of a batch of one
    with pytest.raises(ValueError, match=rf"in the batch, from 0 to 3, .* got {wrong}; take it from"):
        mix_labels(torch.tensor([0, 1, 2, 0]), owner, num_classes=3)
