"""Which patches are hidden: held against the loop that it replaces."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import groups, rng

Sides = tuple[int, int]


def keys(number: int, seed: int = 0) -> Tensor:
    return rng.keys(rng.root(seed, 0), torch.arange(number))


def loop_mask(
    key: Tensor, count: int, grid: Sides, sizes: tuple[Sides, Sides], inside: bool, rectangles: int
) -> Tensor:
    """Hide one rectangle after another, and cut the last one row by row: the definition, slowly."""
    rows, columns = groups._rectangles(key[None], rectangles, grid, sizes, inside)
    backwards = bool(rng.words(key[None], rng.CUT_SLOT, 1) < 0)
    mask = torch.zeros(grid, dtype=torch.bool)
    for top, bottom, left, right in zip(rows[0][0], rows[1][0], columns[0][0], columns[1][0], strict=True):
        places = [(i, j) for i in range(int(top), int(bottom)) for j in range(int(left), int(right))]
        for i, j in reversed(places) if backwards else places:
            if int(mask.sum()) == count:
                return mask
            mask[i, j] = True
    raise AssertionError("the rectangles ran out")


@settings(max_examples=60)
@given(st.data())
def test_masks_are_what_the_loop_would_hide(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    sizes = tuple(tuple(sorted(data.draw(st.tuples(st.integers(1, side), st.integers(1, side))))) for side in grid)
    inside = data.draw(st.booleans())
    assume(sizes != ((1, 1), (1, 1)))  # single patches are ranked, not covered by rectangles
    patches = grid[0] * grid[1]
    count = data.draw(st.integers(0, int(0.8 * patches)))
    key = keys(3, data.draw(st.integers(0, 2**32)))
    rectangles = max(64, groups.rectangles_needed(*grid, count, *sizes, inside))
    got = groups.masks(key, torch.full((3,), count), grid, sizes, inside, rectangles)  # type: ignore[arg-type]
    for k, mask in zip(key, got, strict=True):
        assert torch.equal(mask, loop_mask(k, count, grid, sizes, inside, rectangles))  # type: ignore[arg-type]


@given(st.integers(1, 4096), st.floats(0, 1))
def test_a_fixed_ratio_counts_as_python_rounds(patches: int, ratio: float) -> None:
    assert groups.counts(keys(5), patches, (ratio, ratio), 1.0).tolist() == [round(ratio * patches)] * 5


@given(st.integers(1, 2**22), st.floats(0, 1), st.floats(0, 1))
def test_a_range_stays_in_its_range(patches: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    count = groups.counts(keys(200), patches, (low, high), 1.0)
    assert count.min() >= round(low * patches)
    assert count.max() <= round(high * patches)


def test_a_range_is_uniform_and_p_is_a_share() -> None:
    images = 100_000
    count = groups.counts(keys(images), 196, (0.4, 0.7), 1.0)
    seen = count.bincount(minlength=138)[78:138].double()
    # round() of a uniform number over 78.4 to 137.2: whole cells but for the first (to 78.5) and the last (from 136.5).
    expected = torch.ones(60, dtype=torch.float64)
    expected[0], expected[-1] = 0.1, 0.7
    expected *= images / expected.sum()
    chi2 = ((seen - expected) ** 2 / expected).sum()
    assert chi2 < 59 + 6 * math.sqrt(2 * 59)  # a fair draw fails about once in 10^6; the seed is fixed
    corrupted = groups.counts(keys(images), 196, (0.5, 0.5), 0.3) > 0
    assert abs(corrupted.double().mean().item() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / images)


SETTINGS = [
    ((14, 14), ((1, 4), (1, 4)), False),
    ((14, 14), ((1, 4), (1, 4)), True),
    ((14, 14), ((1, 2), (1, 2)), False),
    ((8, 8), ((1, 2), (1, 2)), True),
    ((7, 28), ((2, 2), (1, 8)), False),
    ((16, 16), ((10, 16), (3, 5)), False),
]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize(("grid", "sizes", "inside"), SETTINGS)
def test_rectangles_do_not_run_out(grid: Sides, sizes: tuple[Sides, Sides], inside: bool, ratio: float) -> None:
    patches = grid[0] * grid[1]
    most = round(ratio * patches)
    number = groups.rectangles_needed(*grid, most, *sizes, inside)
    assert number % 64 == 0
    first = groups.first_rectangle(*groups._rectangles(keys(2000), number, grid, sizes, inside), *grid)
    covered = (first < number).sum(1)
    assert covered.min() >= min(most, patches - 1)


@pytest.mark.parametrize("inside", [False, True])
def test_the_worst_case_still_gives_the_exact_count_without_bias(inside: bool) -> None:
    """64 rectangles of one or two patches cannot hide 90 % of 196: the rest is drawn by rank."""
    images, sizes = 20_000, ((1, 2), (1, 2))
    key = keys(images)
    first = groups.first_rectangle(*groups._rectangles(key, 64, (14, 14), sizes, inside), 14, 14)
    assert ((first < 64).sum(1) < 176).all()
    mask = groups.masks(key, torch.full((images,), 176), (14, 14), sizes, inside, 64)
    assert (mask.flatten(1).sum(1) == 176).all()
    if not inside:
        often = mask.double().mean(0)
        # 196 binomials of standard error 0.0021 around 0.898: five of them fail about once in 10^4; the seed is fixed.
        assert (often - 176 / 196).abs().max() < 5 * math.sqrt(0.9 * 0.1 / images)


def test_single_patches_are_a_plain_random_choice() -> None:
    """Group size 1: every pair of patches is hidden together as often as chance has it, neighbours or not."""
    images, count = 20_000, 18
    assert groups.rectangles_needed(6, 6, count, (1, 1), (1, 1), False) == 0
    mask = groups.masks(keys(images), torch.full((images,), count), (6, 6), ((1, 1), (1, 1)), False, 0)
    flat = mask.flatten(1).double()
    assert (flat.sum(1) == count).all()
    together = flat.T @ flat / images
    expected = count * (count - 1) / (36 * 35)
    off_diagonal = together[~torch.eye(36, dtype=torch.bool)]
    # 630 pairs, five standard errors: fails about once in 3,000; the seed is fixed.
    assert (off_diagonal - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / images)


def test_inside_starves_the_corners_and_uniform_does_not() -> None:
    often = {}
    for inside in (False, True):
        number = groups.rectangles_needed(14, 14, 98, (1, 4), (1, 4), inside)
        count = torch.full((4000,), 98)
        often[inside] = groups.masks(keys(4000), count, (14, 14), ((1, 4), (1, 4)), inside, number).double().mean(0)
    assert often[True].max() > 3 * often[True].min()
    assert often[True].argmin() in (0, 13, 182, 195)
    assert often[False].max() < 1.15 * often[False].min()


def test_inside_groups_are_whole() -> None:
    rows, columns = groups._rectangles(keys(500), 64, (9, 13), ((2, 3), (4, 5)), True)
    assert set((rows[1] - rows[0]).unique().tolist()) == {2, 3}
    assert set((columns[1] - columns[0]).unique().tolist()) == {4, 5}
    assert set(rows[0].unique().tolist()) == set(range(8))


def test_a_large_batch_is_cut_without_changing_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (keys(50), torch.arange(50), (8, 8), ((1, 2), (1, 2)), False, 64)
    whole = groups.masks(*arguments)
    monkeypatch.setattr(groups, "_CHUNK_CELLS", 64 * 7)
    assert torch.equal(groups.masks(*arguments), whole)


def test_group_range() -> None:
    assert groups.group_range(14, None) == (1, 4)
    assert groups.group_range(2, None) == (1, 1)
    assert groups.group_range(10, None) == (1, 3)
    assert groups.group_range(5, (2, 5)) == (2, 5)
    with pytest.raises(ValueError, match="up to 6 patches"):
        groups.group_range(5, (2, 6))
