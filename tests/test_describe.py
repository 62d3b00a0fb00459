"""The figures of a mask: compared with SciPy's labels and counts by hand, on masks of this library and of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import GroupMask, describe

ROWS = ["110010", "100011", "000000", "011100"]
MASK = torch.tensor([[character == "1" for character in row] for row in ROWS])


def sizes_by_scipy(mask: Tensor) -> list[int]:
    label = pytest.importorskip("scipy.ndimage").label
    labels, number = label(mask.numpy())
    return sorted(np.bincount(labels.ravel(), minlength=number + 1)[1:].tolist(), reverse=True)


def test_a_mask_by_hand() -> None:
    figures = describe(MASK)
    assert figures.share == 9 / 24
    assert figures.components == 3
    assert figures.sizes.tolist() == [3, 3, 3]
    assert torch.equal(figures.frequency, MASK.float())
    assert figures.most_to_least == torch.inf
    assert (figures.share.shape, figures.components.shape, figures.most_to_least.shape) == ((), (), ())


def test_a_batch_pads_the_sizes_with_zeros() -> None:
    apart = torch.tensor([[True, False], [False, True]])  # patches that share a corner alone are not connected
    masks = torch.stack([apart, torch.ones(2, 2) > 0, torch.zeros(2, 2) > 0])
    figures = describe(masks)
    assert figures.share.tolist() == [0.5, 1, 0]
    assert figures.components.tolist() == [2, 1, 0]
    assert figures.sizes.tolist() == [[1, 1], [4, 0], [0, 0]]
    assert torch.allclose(figures.frequency, torch.tensor([[2, 1], [1, 2]]) / 3)
    assert figures.most_to_least == 2
    assert (figures.components.dtype, figures.sizes.dtype, figures.share.dtype) == (
        torch.int64, torch.int64, torch.float32
    )  # fmt: skip


@settings(max_examples=150)
@given(st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)), st.floats(0, 1), st.integers(0, 2**32))
def test_components_are_those_of_scipy(shape: tuple[int, int, int], share: float, seed: int) -> None:
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    figures = describe(masks)
    for i, mask in enumerate(masks):
        sizes = sizes_by_scipy(mask)
        assert figures.components[i] == len(sizes)
        assert figures.sizes[i].tolist() == sizes + [0] * (figures.sizes.shape[1] - len(sizes))
        assert figures.share[i] == mask.float().mean()


def test_a_component_that_winds_through_the_whole_grid() -> None:
    mask = torch.ones(21, 21) > 0
    mask[1::4, :-1] = False
    mask[3::4, 1:] = False
    assert describe(mask).sizes.tolist() == sizes_by_scipy(mask) == [int(mask.sum())]


@pytest.mark.parametrize("side", [64, 225])
def test_long_and_winding_components(side: int) -> None:
    """Ways of tens of thousands of patches, where one step a round would take minutes."""
    snake = torch.ones(side, side) > 0
    snake[1::4, :-1] = False
    snake[3::4, 1:] = False
    noise = torch.rand(side, side, generator=torch.Generator().manual_seed(0)) < 0.59  # near the percolation threshold
    figures = describe(torch.stack([snake, snake.T, noise]))
    for i, mask in enumerate((snake, snake.T, noise)):
        assert figures.sizes[i][: figures.components[i]].tolist() == sizes_by_scipy(mask)


@pytest.mark.parametrize("group_size", [None, (1, 1), (3, 5)])
def test_masks_of_group_mask(group_size: tuple[int, int] | None) -> None:
    masks = GroupMask(16, 0.5, group_size=group_size, seed=0).sample((4000, 3, 224, 224)).mask
    figures = describe(masks)
    assert (figures.share == 0.5).all()
    assert (figures.sizes.sum(1) == 98).all()
    assert figures.sizes[7][: figures.components[7]].tolist() == sizes_by_scipy(masks[7])
    assert torch.allclose(figures.frequency, masks.float().mean(0))
    # 4,000 draws: the extremes of 196 binomials with a standard deviation of 1.6 % of their mean.
    assert 1 < figures.most_to_least < 1.15


def test_masks_of_lightly() -> None:
    lightly = pytest.importorskip("lightly.models.utils")
    np.random.seed(0)
    torch.manual_seed(0)
    masks = lightly.random_block_mask((300, 14, 14), batch_mask_ratio=1.0, min_image_mask_ratio=0.5)
    figures = describe(masks)
    for i, mask in enumerate(masks):
        assert figures.sizes[i][: figures.components[i]].tolist() == sizes_by_scipy(mask)
    assert figures.most_to_least > 3  # its corners are hidden far less often


def blocks(number: int) -> list[np.ndarray[Any, Any]]:
    """Make masks one at a time, as loops over images do: NumPy arrays in a list."""
    generator = np.random.default_rng(0)
    masks = []
    for _ in range(number):
        mask = np.zeros((14, 14), dtype=bool)
        while mask.sum() < 60:
            row, column, height, width = generator.integers((0, 0, 1, 1), (10, 10, 6, 6))
            mask[row : row + height, column : column + width] = True
        masks.append(mask)
    return masks


def test_arrays_lists_and_numbers_describe_alike() -> None:
    masks = blocks(6)
    array = np.stack(masks)
    expected = describe(torch.from_numpy(array))
    assert expected.components.tolist() == [len(sizes_by_scipy(torch.from_numpy(mask))) for mask in masks]
    array.setflags(write=False)  # as arrays of other libraries may be: no warning, no error
    same: list[Any] = [
        masks, tuple(map(torch.from_numpy, masks)), array, array.tolist(), array.astype(np.uint8),
        array.astype(np.float32), torch.from_numpy(array.astype(np.int64)), array.reshape(6, 196).reshape(-1, 14, 14),
    ]  # fmt: skip
    for form in same:
        for got, field in zip(describe(form), expected, strict=True):
            assert torch.equal(got, field)


def test_masks_that_hide_nothing_or_all_are_even() -> None:
    for masks in (torch.zeros(3, 4, 5) > 0, torch.ones(3, 4, 5) > 0):
        assert describe(masks).most_to_least == 1
    assert describe(torch.zeros(3, 4, 5)).sizes.shape == (3, 0)


def test_flipped_arrays_and_another_default_dtype() -> None:
    numpy = pytest.importorskip("numpy")
    assert describe(numpy.eye(4)[::-1]).components == 4
    torch.set_default_dtype(torch.float64)
    try:
        figures = describe(MASK)
        assert {figures.share.dtype, figures.frequency.dtype, figures.most_to_least.dtype} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_print_shows_the_figures() -> None:
    assert str(describe(MASK)).splitlines() == [
        "masks       1, of 4 x 6 patches",
        "hidden      37.5 %",
        "components  3 in a mask",
        "sizes       3 patches",
    ]
    masks = torch.zeros(2, 2, 2) > 0
    masks[0, 0] = masks[1] = True
    assert str(describe(masks)).splitlines() == [
        "masks       2, of 2 x 2 patches",
        "hidden      50 to 100 %, 75 on average",
        "components  1 in a mask",
        "sizes       2 to 4 patches, 3 on average",
    ]
    often = str(describe(masks.repeat(500, 1, 1))).splitlines()
    assert often[-1] == "evenness    2 to 1, the most often hidden patch to the least"
    assert "sizes       none" in str(describe(masks & False))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(8, 1, 1, 14, 14), ValueError, r"got \(8, 1, 1, 14, 14\); reshape them"),
        (torch.zeros(196), ValueError, r"got \(196,\); reshape them"),
        (torch.zeros(0, 14, 14), ValueError, r"nothing to describe in a mask of \(0, 14, 14\)"),
        ([], ValueError, "reshape them"),
        (torch.full((2, 2), 0.5), ValueError, "got 0.5; compare first"),
        (torch.full((2, 2), torch.nan), ValueError, "got nan"),
        (np.eye(3) * 255, ValueError, "got 255"),
        (-torch.eye(3), ValueError, "got -1"),
        ([[True, False], [True]], TypeError, "all rows of one length; got list"),
        ([np.eye(2), np.eye(3)], TypeError, "all rows of one length; got list"),
        ([["a"]], TypeError, "got list"),
        (np.array([["a"]]), TypeError, "got ndarray"),
        ("mask", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_wrong_masks_are_refused(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        describe(mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_on_a_gpu() -> None:
    masks = GroupMask(16, (0.1, 0.7), seed=0).sample((50, 3, 224, 224)).mask
    for got, field in zip(describe(masks.cuda()), describe(masks), strict=True):
        assert got.is_cuda
        assert torch.allclose(got.cpu(), field)
