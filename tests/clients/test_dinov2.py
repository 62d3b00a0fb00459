"""The generator that DINOv2's collate function calls with a number of patches."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gmml_aug import GroupMask
from gmml_aug.interop.dinov2 import MaskGenerator

from .workers import CollateByNumber


def different(masks: list[Tensor] | Tensor) -> int:
    return len({tuple(mask.flatten().tolist()) for mask in masks})


@pytest.mark.parametrize("grid", [(16, 16), (7, 13), (1, 3), (1, 1), (40, 30)])
@pytest.mark.parametrize("seed", [None, 0])
def test_it_hides_the_number_it_is_asked_for(grid: tuple[int, int], seed: int | None) -> None:
    torch.manual_seed(0)
    patches, generator = grid[0] * grid[1], MaskGenerator(GroupMask((8, 4), seed=seed), grid)
    for number in range(0, patches + 1, 1 if patches < 300 else 23):
        for _ in range(3):  # the same number again is drawn another way
            mask = generator(number)
            assert mask.shape == grid
            assert mask.dtype == torch.bool
            assert mask.sum() == number
    assert generator.num_patches == patches


def test_a_ratio_of_a_number_gives_that_number_back() -> None:
    """A share of patches rounds back to their number, for all grids up to 64 x 64 and some larger ones."""
    for patches in [*range(1, 4097, 5), 4096, 2**20 - 3, 2**22]:
        numbers = np.unique(np.linspace(0, patches, 5000).astype(np.int64))
        assert (np.round(numbers / patches * patches) == numbers).all()


def test_masks_are_those_of_the_group_mask() -> None:
    """Group size, placement and seed are taken from it; its ratio and its counter stay as they are."""
    for more in ({}, {"group_size": (3, 3), "placement": "inside"}, {"group_size": (1, 1)}):
        corrupt = GroupMask(8, (0.4, 0.7), "alien", seed=3, **more)
        generator = MaskGenerator(corrupt, (12, 10))
        drawn = [generator(number) for number in (60, 0, 30, 60)]
        assert not drawn.pop(1).any()  # none is hidden, and none is drawn
        assert corrupt.ratio == (0.4, 0.7)
        assert corrupt.counter == 0
        for mask, ratio in zip(drawn, (0.5, 0.25, 0.5), strict=True):
            corrupt.ratio = ratio
            assert torch.equal(mask, corrupt.sample((3, 96, 80)).mask)


def test_two_hundred_masks_differ_and_come_again() -> None:
    first, second, other = (MaskGenerator(GroupMask(seed=seed), (16, 16)) for seed in (0, 0, 1))
    numbers = [50 + i % 70 for i in range(200)]
    masks = [first(number) for number in numbers]
    assert different(masks) == 200
    assert all(torch.equal(mask, second(number)) for mask, number in zip(masks, numbers, strict=True))
    assert different([*masks, *(other(number) for number in numbers)]) == 400


def test_without_a_seed_torch_decides() -> None:
    torch.manual_seed(3)
    first = MaskGenerator(GroupMask(), (16, 16))(100)
    torch.manual_seed(3)
    generator = MaskGenerator(GroupMask(), (16, 16))
    assert torch.equal(generator(100), first)
    assert not torch.equal(generator(100), first)


def test_it_is_called_as_dinov2_calls_its_own() -> None:
    generator = MaskGenerator(GroupMask(14, seed=0), (16, 16))
    assert not generator().any()
    assert not generator(0).any()
    assert generator(num_masking_patches=7).sum() == 7
    assert MaskGenerator(GroupMask(14, seed=0), (np.uint8(17), np.uint8(17)))(145).shape == (17, 17)  # type: ignore[arg-type]
    mask = generator(100)
    for taken in (torch.BoolTensor(mask), torch.as_tensor(np.asarray(mask)), torch.BoolTensor(np.asarray(mask))):
        assert taken.dtype == torch.bool
        assert torch.equal(taken, mask)
    numbers = (26, 77, 128)
    out = CollateByNumber(generator, numbers)([torch.zeros(3)] * 4)
    assert out["masks"].shape == (4, 256)
    assert sorted(out["masks"].sum(1).tolist()) == [0, *numbers]
    assert torch.equal(out["indices"], out["masks"].view(-1).nonzero()[:, 0])


def test_ratios_are_spread_over_a_batch() -> None:
    """Half of the images are masked, one in each part of the range of ratios, as DINOv2's collate function asks."""
    generator, parts = MaskGenerator(GroupMask(14, seed=0), (16, 16)), torch.linspace(0.1, 0.5, 5).tolist()
    random.seed(0)
    for _ in range(20):
        numbers = [int(256 * random.uniform(low, high)) for low, high in itertools.pairwise(parts)] + [0] * 4
        random.shuffle(numbers)
        shares = torch.stack([generator(number) for number in numbers]).flatten(1).double().mean(1)
        assert (shares * 256).tolist() == numbers
        shares = shares[shares > 0].sort().values
        assert (shares > torch.tensor(parts[:-1]) - 1 / 256).all()
        assert (shares <= torch.tensor(parts[1:])).all()


@pytest.mark.parametrize("shift", [False, True])
def test_dinov3_may_count_on_its_upper_bound(shift: bool) -> None:
    """The call is that of `collate_data_and_cast` in DINOv3 (facebookresearch/dinov3, dinov3/data/collate.py).

    It asks for the upper end of each part of its range, as a tensor times a number, rolls each mask around the edges
    if it is told to, and makes room for as many hidden patches as it asked for.
    """
    generator, parts = MaskGenerator(GroupMask(16, seed=0), (16, 16)), torch.linspace(0.1, 0.5, 9)
    random.seed(0)
    masks: list[Tensor] = []
    bound = 0
    for share in parts[1:]:
        mask: Tensor = torch.BoolTensor(generator(int(256 * share)))
        if shift:
            mask = torch.roll(mask, (random.randrange(16), random.randrange(16)), (0, 1))
        masks.append(mask)
        bound += int(256 * share)
    masks += [torch.BoolTensor(generator(0)) for _ in range(8)]
    collated = torch.stack(masks).flatten(1)
    assert collated.sum() == bound  # exact, so nothing of that room is left over
    assert (collated.sum(1) == 0).sum() == 8
    assert different(masks) == 9


def drawn_in_workers(generator: MaskGenerator, start: str) -> Tensor:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform cannot {start} processes")
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(torch.zeros(16)),
        4,
        num_workers=2,
        multiprocessing_context=start,
        collate_fn=CollateByNumber(generator, (100, 80, 100)),
    )
    return torch.cat([batch["masks"][:3] for batch in loader])


@pytest.mark.parametrize(("start", "seed"), [("fork", None), ("fork", 0), ("spawn", 0)])
def test_workers_do_not_repeat_each_other(start: str, seed: int | None) -> None:
    torch.manual_seed(0)
    generator = MaskGenerator(GroupMask(14, seed=seed), (16, 16))
    alike = MaskGenerator(GroupMask(14, seed=seed), (16, 16))
    here = torch.stack([alike(100).flatten() for _ in range(12)])
    masks = drawn_in_workers(generator, start)
    assert masks.sum(1).tolist() == [100, 80, 100] * 4
    assert different(torch.cat([masks, here])) == 24
    if (start, seed) == ("fork", 0):
        assert torch.equal(drawn_in_workers(generator, start), masks)


def test_ranks_do_not_repeat_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        generator = MaskGenerator(GroupMask(14, seed=0), (16, 16))
        masks += [generator(100) for _ in range(8)]
    assert different(masks) == 16


def test_pickled_it_goes_on() -> None:
    generator = MaskGenerator(GroupMask(14, seed=0), (16, 16))
    generator(100)
    copy = pickle.loads(pickle.dumps(generator))
    assert torch.equal(copy(90), generator(90))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.nn.Identity(), (16, 16)), TypeError, "GroupMask.*Identity"),
        ((GroupMask(), 16), TypeError, "pair.*16"),
        ((GroupMask(), (16.0, 16)), TypeError, r"pair.*16\.0"),
        ((GroupMask(), (0, 16)), ValueError, "at least 1"),
        ((GroupMask(p=0.5), (16, 16)), ValueError, r"p=0\.5.*p=1"),
        ((GroupMask(group_size=(2, 5)), (16, 4)), ValueError, "group_size"),
    ],
)
def test_what_it_cannot_be_built_from(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        MaskGenerator(*arguments)


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [
        (12.0, TypeError, r"int.*12\.0"),
        (True, TypeError, "int"),
        (None, TypeError, "int"),
        (-1, ValueError, "0 to 256.*-1"),
        (257, ValueError, "0 to 256.*257"),
    ],
)
def test_numbers_that_it_cannot_hide(number: Any, error: type[Exception], says: str) -> None:
    generator = MaskGenerator(GroupMask(seed=0), (16, 16))
    with pytest.raises(error, match=says):
        generator(number)
    assert torch.equal(generator(9), MaskGenerator(GroupMask(seed=0), (16, 16))(9))  # nothing was drawn
