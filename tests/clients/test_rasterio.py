"""rasterio: many bands with holes, of which `valid=` hides only what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gmml_aug import GroupMask, keep_indices, patch_to_pixel

rasterio = pytest.importorskip("rasterio")
windows = pytest.importorskip("rasterio.windows")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
BANDS, SIDE, PATCH, NODATA = 12, 64, 8, -9999


@pytest.fixture
def tiles(tmp_path: Path) -> tuple[Tensor, Tensor]:
    """Write a raster with slanting holes, and return its 8 tiles and which of their pixels were measured."""
    rng = np.random.default_rng(0)
    bands = rng.normal(2000, 300, (BANDS, 2 * SIDE, 4 * SIDE)).astype("int16")
    rows, columns = np.mgrid[: 2 * SIDE, : 4 * SIDE]
    bands[:, rows + columns < SIDE] = NODATA  # the border of a scene
    bands[:, (rows - 90) ** 2 + (columns - 170) ** 2 < 400] = NODATA  # a cloud
    bands[5, 20:23, 80:90] = NODATA  # some pixels of one band alone
    path, profile = tmp_path / "scene.tif", {"driver": "GTiff", "dtype": "int16", "nodata": NODATA}
    with rasterio.open(path, "w", width=4 * SIDE, height=2 * SIDE, count=BANDS, **profile) as file:
        file.write(bands)
    images, seen = [], []
    with rasterio.open(path) as file:
        for row in range(0, 2 * SIDE, SIDE):
            for column in range(0, 4 * SIDE, SIDE):
                window = windows.Window(column, row, SIDE, SIDE)
                images.append(torch.from_numpy(file.read(window=window).astype("float32")))
                seen.append(torch.from_numpy(file.read_masks(window=window)).bool().all(0))
    batch, measured = torch.stack(images), torch.stack(seen)
    assert torch.equal(measured, (batch != NODATA).all(1))
    return batch, measured


def whole(seen: Tensor) -> Tensor:
    """Return which patches were measured in all of their pixels and bands."""
    return functional.max_pool2d((~seen).float(), PATCH) == 0


@pytest.mark.parametrize("fill", ["noise", "zeros", "shuffle", "mean", "alien"])
def test_nodata_is_never_hidden_and_the_share_is_that_of_what_was_measured(
    tiles: tuple[Tensor, Tensor], fill: str
) -> None:
    images, seen = tiles
    valid = whole(seen)
    corrupted, mask = GroupMask(PATCH, 0.5, fill)(images, valid=valid)
    hidden = patch_to_pixel(mask, PATCH).expand_as(images)
    assert corrupted.shape == (8, BANDS, SIDE, SIDE)
    assert 0 < valid.flatten(1).sum(1).min() < valid.flatten(1).sum(1).max()
    assert torch.equal(mask.flatten(1).sum(1), (valid.flatten(1).sum(1) * 0.5).round().long())
    assert (images[hidden] != NODATA).all()
    assert torch.equal(corrupted[~hidden], images[~hidden])


@pytest.mark.parametrize("per", ["image", "group"])
def test_aliens_read_no_nodata_from_whole_donors(tiles: tuple[Tensor, Tensor], per: Any) -> None:
    from gmml_aug import Alien

    images, seen = tiles
    complete = seen.flatten(1).all(1)
    holed, donors = images[~complete], images[complete]
    assert len(holed) >= 2
    assert len(donors) >= 2
    corrupted, mask = GroupMask(PATCH, 0.5, Alien(per=per))(holed, valid=whole(seen)[~complete], donors=donors)
    hidden = patch_to_pixel(mask, PATCH).expand_as(holed)
    assert (corrupted[hidden] != NODATA).all()
    if per == "image":
        taken = ((corrupted[:, None] == donors[None]) | ~hidden[:, None]).flatten(2).all(-1)
        assert (taken.sum(1) == 1).all()


def test_of_a_batch_with_holes_aliens_are_safe_where_all_of_it_was_measured(tiles: tuple[Tensor, Tensor]) -> None:
    """`valid` says what is hidden, and not what is read: without care an alien brings its own nodata."""
    images, seen = tiles
    torch.manual_seed(0)
    corrupt = GroupMask(PATCH, 0.9, "alien")
    corrupted, mask = corrupt(images, valid=whole(seen))
    assert (corrupted[patch_to_pixel(mask, PATCH).expand_as(images)] == NODATA).any()
    common = whole(seen).all(0).expand(8, -1, -1)
    corrupted, mask = corrupt(images, valid=common)
    assert mask.any()
    assert (corrupted[patch_to_pixel(mask, PATCH).expand_as(images)] != NODATA).all()


def test_as_nan_nodata_stays_where_it_was(tiles: tuple[Tensor, Tensor]) -> None:
    images, seen = tiles
    images = torch.where(images == NODATA, torch.nan, images / 1000)
    corrupted, mask = GroupMask(PATCH, 0.5, "noise")(images, valid=whole(seen))
    assert torch.equal(corrupted.isnan(), images.isnan())
    hidden = patch_to_pixel(mask, PATCH).expand_as(images)
    assert not (corrupted - images)[hidden].isnan().any()  # so is the loss of hidden pixels


def test_a_tile_without_data_hides_nothing(tiles: tuple[Tensor, Tensor]) -> None:
    images, seen = tiles
    valid = whole(seen)
    valid[3] = False
    corrupted, mask = GroupMask(PATCH, 0.5)(images, valid=valid)
    assert not mask[3].any()
    assert torch.equal(corrupted[3], images[3])


def test_tokens_of_batches_with_the_same_count(tiles: tuple[Tensor, Tensor]) -> None:
    """Where all tiles share what is valid they hide as many, so that visible tokens can be gathered."""
    images, seen = tiles
    mask = GroupMask(PATCH, 0.5).sample(images, valid=whole(seen).all(0).expand(8, -1, -1)).mask
    kept = keep_indices(mask)
    assert kept.shape == (8, 64 - int(mask[0].sum()))
