"""Which patches are hidden: held against the loop that it replaces."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import groups, rng

from .test_rng import splitmix64

Sides = tuple[int, int]


def keys(number: int, seed: int = 0) -> Tensor:
    return rng.keys(rng.root(seed, 0), torch.arange(number))


def forwards(number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.bool)


def slots(key: int, first: int, number: int) -> list[int]:
    """Return a key's words from slot ``first`` on, in Python's integers."""
    return splitmix64((key + (first - 1) * 0x9E3779B97F4A7C15) % 2**64, number)


def span(word: int, side: int, sizes: Sides, inside: bool) -> range:
    """Return the rows, or the columns, of a group on an axis of ``side`` patches."""
    upper, lower = word >> 32 ^ 2**31, word % 2**32
    size = sizes[0] + upper * (sizes[1] - sizes[0] + 1) // 2**32
    places = side - size + 1 if inside else side + size - 1
    first = lower * places // 2**32 + (0 if inside else 1 - size)
    return range(max(first, 0), min(first + size, side))


def loop_groups(
    key: int, count: int, backwards: bool, grid: Sides, sizes: tuple[Sides, Sides], inside: bool, rectangles: int
) -> list[int]:
    """Hide one rectangle after another, cut the last one patch by patch, draw what none covers: the definition."""
    height, width = grid
    words = slots(key, rng.RECTANGLE_SLOT, 2 * rectangles)
    group: dict[int, int] = {}
    for k, (of_rows, of_columns) in enumerate(zip(words[::2], words[1::2], strict=True)):
        rows, columns = span(of_rows, height, sizes[0], inside), span(of_columns, width, sizes[1], inside)
        places = [row * width + column for row in rows for column in columns]
        for place in reversed(places) if backwards else places:
            if len(group) < count:
                group.setdefault(place, k)
    rank = [word % 2**20 for word in slots(key, rng.PATCH_SLOT, height * width)]
    for place in sorted(range(height * width), key=lambda place: (rank[place], place)):
        if len(group) < count:
            group.setdefault(place, rectangles + place)
    return [group.get(place, -1) for place in range(height * width)]


@settings(max_examples=300)
@given(st.data())
def test_groups_are_what_the_loop_would_hide(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)), label="grid")
    of_side = [st.tuples(st.integers(1, side), st.integers(1, side)).map(sorted).map(tuple) for side in grid]
    sizes: Any = data.draw(st.tuples(*of_side), label="sizes")
    inside = data.draw(st.booleans(), label="inside")
    patches = grid[0] * grid[1]
    batch = data.draw(st.integers(1, 5), label="batch")
    number = st.integers(0, patches)
    alike = data.draw(st.booleans(), label="alike")
    count = [data.draw(number)] * batch if alike else data.draw(st.lists(number, min_size=batch, max_size=batch))
    key = keys(batch, data.draw(st.integers(0, 2**32), label="seed"))
    backwards = data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch))
    enough = groups.rectangles_needed(*grid, max(count), *sizes, inside)
    # With fewer than enough some images run out of them; 126 are tried as 63 first, and 0 is a draw of single patches.
    rectangles = data.draw(st.sampled_from([number for number in (0, 63, 126, 189, enough) if number < 2000]))
    got = groups.hide(key, torch.tensor(count), torch.tensor(backwards), grid, sizes, inside, rectangles)
    assert (got.shape, got.dtype) == ((batch, *grid), torch.int32)
    for i, group in enumerate(got.flatten(1).tolist()):
        assert group == loop_groups(int(key[i]), count[i], backwards[i], grid, sizes, inside, rectangles)


@pytest.mark.parametrize("rectangles", [0, 63, 126, 189, 315])
def test_images_that_run_out_of_rectangles_are_what_the_loop_would_hide(rectangles: int) -> None:
    """Every count at once: some need few of the rectangles, some need most of them, and some need more."""
    images, sizes = 145, ((1, 2), (1, 2))
    key, backwards = keys(images, 5), keys(images, 6) < 0
    got = groups.hide(key, torch.arange(images), backwards, (12, 12), sizes, False, rectangles).flatten(1).tolist()
    for count, group in enumerate(got):
        assert group == loop_groups(int(key[count]), count, bool(backwards[count]), (12, 12), sizes, False, rectangles)


@given(st.integers(1, 4096), st.floats(0, 1))
def test_a_fixed_ratio_counts_as_python_rounds(patches: int, ratio: float) -> None:
    assert groups.counts(keys(5), patches, (ratio, ratio), 1.0).tolist() == [round(ratio * patches)] * 5


def test_a_tie_within_a_range_goes_to_the_even_count() -> None:
    """A word's upper 24 bits place an image in its range: here at 0.5, 1.5, 2.5 and 3.5 of 4 patches."""
    word = [(2 * k + 1) << 61 for k in range(4)]
    signed = torch.tensor([rng.signed(number) for number in word])
    assert groups.counts(signed, 4, (0.0, 1.0), 1.0).tolist() == [0, 2, 2, 4]
    assert groups.counts(signed + 2**31, 4, (0.0, 1.0), 0.5).tolist() == [0, 0, 0, 0]
    assert groups.counts(signed + 2**31 - 1, 4, (0.0, 1.0), 0.5).tolist() == [0, 2, 2, 4]


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
    assert number % groups.WORD == 0
    first = groups._first(*groups._bit_sets(keys(2000), grid, sizes, inside, number))
    covered = (first < number).sum(1)
    assert covered.min() >= min(most, patches - 1)


@pytest.mark.parametrize("inside", [False, True])
def test_the_worst_case_still_gives_the_exact_count_without_bias(inside: bool) -> None:
    """63 rectangles of one or two patches cannot hide 90 % of 196: the rest is drawn by rank."""
    images, sizes = 20_000, ((1, 2), (1, 2))
    key = keys(images)
    first = groups._first(*groups._bit_sets(key, (14, 14), sizes, inside, 63))
    assert ((first < 63).sum(1) < 176).all()
    mask = groups.hide(key, torch.full((images,), 176), forwards(images), (14, 14), sizes, inside, 63) >= 0
    assert (mask.flatten(1).sum(1) == 176).all()
    if not inside:
        often = mask.double().mean(0)
        # 196 binomials of standard error 0.0021 around 0.898: five of them fail about once in 10^4; the seed is fixed.
        assert (often - 176 / 196).abs().max() < 5 * math.sqrt(0.9 * 0.1 / images)


def test_single_patches_are_a_plain_random_choice() -> None:
    """Group size 1: every pair of patches is hidden together as often as chance has it, neighbours or not."""
    images, count = 20_000, 18
    assert groups.rectangles_needed(6, 6, count, (1, 1), (1, 1), False) == 0
    group = groups.hide(
        keys(images), torch.full((images,), count), forwards(images), (6, 6), ((1, 1), (1, 1)), False, 0
    )
    mask = group >= 0
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
        count, sizes = torch.full((4000,), 98), ((1, 4), (1, 4))
        mask = groups.hide(keys(4000), count, keys(4000, 1) < 0, (14, 14), sizes, inside, number) >= 0
        often[inside] = mask.double().mean(0)
    assert often[True].max() > 3 * often[True].min()
    assert often[True].argmin() in (0, 13, 182, 195)
    assert often[False].max() < 1.15 * often[False].min()


def test_inside_groups_are_whole() -> None:
    key = keys(500)
    for axis, side, sizes in ((0, 9, {2, 3}), (1, 13, {4, 5})):
        sets = groups._bit_sets(key, (9, 13), ((2, 3), (4, 5)), True, 63)[axis]
        covered = sets.view(500, side, 1) >> torch.arange(63) & 1
        assert set(covered.sum(1).unique().tolist()) == sizes
        assert set(covered.argmax(1).unique().tolist()) == set(range(side - min(sizes) + 1))


@pytest.mark.parametrize("rectangles", [0, 63, 126, 315])
def test_a_large_batch_is_cut_without_changing_a_mask(monkeypatch: pytest.MonkeyPatch, rectangles: int) -> None:
    """Whether the rectangles suffice or not: with 126 or 315 some images need the second, larger draw."""
    images = 65
    arguments = (keys(images), torch.arange(images), keys(images, 1) < 0, (8, 8), ((1, 2), (1, 2)), False, rectangles)
    whole = groups.hide(*arguments)
    assert (whole >= 0).flatten(1).sum(1).tolist() == list(range(images))
    for cells in (1, 64 * 7, 2000, 5001):
        monkeypatch.setattr(groups, "_CPU_CELLS", cells)
        assert torch.equal(groups.hide(*arguments), whole)


def test_group_range() -> None:
    assert groups.group_range(14, None) == (1, 4)
    assert groups.group_range(2, None) == (1, 1)
    assert groups.group_range(10, None) == (1, 3)
    assert groups.group_range(5, (2, 5)) == (2, 5)
    with pytest.raises(ValueError, match="up to 6 patches"):
        groups.group_range(5, (2, 6))
