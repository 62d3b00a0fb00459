"""Patches, pixels and tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmml_aug import keep_indices, masked_indices, patch_to_pixel
from gmml_aug.grid import grid_size


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_patch_to_pixel_repeats_each_patch(rows: int, columns: int, height: int, width: int, batch: int) -> None:
    mask = torch.rand(batch, rows, columns) < 0.5
    pixels = patch_to_pixel(mask, (height, width))
    assert pixels.shape == (batch, 1, rows * height, columns * width)
    for i in range(rows * height):
        for j in range(columns * width):
            assert torch.equal(pixels[:, 0, i, j], mask[:, i // height, j // width])


def test_patch_to_pixel_of_one_image() -> None:
    mask = torch.tensor([[True, False]])
    assert patch_to_pixel(mask, 2).tolist() == [[[True, True, False, False]] * 2]


def test_indices_are_row_major_and_complete() -> None:
    mask = torch.tensor([[[True, False, False], [False, True, False]], [[False, False, True], [True, False, False]]])
    assert masked_indices(mask).tolist() == [[0, 4], [2, 3]]
    assert keep_indices(mask).tolist() == [[1, 2, 3, 5], [0, 1, 4, 5]]
    assert masked_indices(mask).dtype == torch.int64


@pytest.mark.parametrize("shape", [(0, 3, 3), (4, 3, 3)])
def test_indices_of_nothing(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    assert masked_indices(mask).shape == (shape[0], 0)
    assert keep_indices(mask).shape == (shape[0], 9 if shape[0] else 0)


def test_indices_behind_class_and_register_tokens() -> None:
    mask = torch.tensor([[[True, False, False], [False, True, False]]])
    assert masked_indices(mask, num_prefix_tokens=5).tolist() == [[5, 9]]
    assert keep_indices(mask, num_prefix_tokens=5).tolist() == [[0, 1, 2, 3, 4, 6, 7, 8, 10]]
    for helper in (masked_indices, keep_indices):
        with pytest.raises(ValueError, match="at least 0; got -1"):
            helper(mask, -1)
        with pytest.raises(TypeError, match=r"an int; got 1\.0"):
            helper(mask, 1.0)  # type: ignore[arg-type]


def test_indices_need_one_count() -> None:
    mask = torch.tensor([[[True, False]], [[True, True]]])
    for helper in (masked_indices, keep_indices):
        with pytest.raises(ValueError, match=r"same count.* with valid= as many valid patches in every image"):
            helper(mask)
        with pytest.raises(TypeError, match="bool"):
            helper(mask.int())
        with pytest.raises(ValueError, match=r"\(B, gh, gw\)"):
            helper(mask[0])


def test_grid_size_names_the_nearest_sizes() -> None:
    assert grid_size((224, 160), (16, 32)) == (14, 5)
    with pytest.raises(ValueError, match=r"height is 223 pixels.* 208 or 224"):
        grid_size((223, 224), (16, 16))
    with pytest.raises(ValueError, match=r"width is 10 pixels.* to 16"):
        grid_size((16, 10), (16, 16))
    with pytest.raises(ValueError, match=r"width is 3 pixels.*channels come before height and width"):
        grid_size((64, 3), (16, 16))
    with pytest.raises(ValueError, match="height is 0 pixels"):
        grid_size((0, 16), (16, 16))


@pytest.mark.parametrize("function", [masked_indices, keep_indices, lambda mask: patch_to_pixel(mask, 8)])
def test_masks_that_are_no_tensors_are_refused_with_their_conversion(function: Any) -> None:
    mask = np.zeros((2, 4, 4), dtype=bool)
    with pytest.raises(TypeError, match=r"got numpy.ndarray; convert it, by torch.from_numpy"):
        function(mask)
    with pytest.raises(TypeError, match=r"got builtins.list"):
        function([torch.from_numpy(one) for one in mask])
