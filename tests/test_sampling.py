"""Which patches are hidden: every backend against the sequential definition, and that against a plainer one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import GroupMask, MaskPlan, block_sizes, plan, rng, shapes
from gmml_aug.plan import Numbers, Settings
from gmml_aug.sampling import Samples, batched, sequential

from .backends import DEVICES, DRAWING
from .test_rng import splitmix64

CPU = torch.device("cpu")
Sides = tuple[int, int]
int64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def asked(draw: st.DrawFn) -> Settings:
    grid = draw(st.one_of(st.tuples(*[st.integers(1, 12)] * 2), st.tuples(*[st.integers(1, 5)] * 3)))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))))
    each = [sorted(draw(st.tuples(st.integers(1, side), st.integers(1, side)))) for side in grid]
    small, weights = min(high for _, high in each), ()
    sizes: Any = draw(st.sampled_from([None, (1, 1), (1, small), tuple(n for pair in each for n in pair), "weighed"]))
    if sizes == "weighed":
        some = st.tuples(*(st.integers(0, side) for side in grid))  # 0: from end to end
        table = draw(st.lists(st.tuples(some, st.sampled_from([1e-12, 0.5, 1.0, 3.0])), min_size=1, max_size=9))
        sizes, weights = tuple(n for size, _ in table for n in size), tuple(weight for _, weight in table)
    return Settings(
        grid,
        (draw(st.sampled_from([low, high])), high),  # one ratio may end in half a patch
        sizes,
        draw(st.booleans()),
        draw(st.sampled_from([1.0, 0.5])),
        draw(st.sampled_from([(1.0,), (1.0, 2.0), (3.0, 1.0, 1.0)])),
        draw(st.booleans()),
        draw(st.booleans()),
        weights,
    )


@st.composite
def valid_patches(draw: st.DrawFn, batch: int, what: Settings) -> Tensor:
    """Draw which patches may be hidden: ``(B, patches)`` bool, some images with none, one or all of them."""
    shares = torch.tensor(draw(st.lists(st.sampled_from([0, 0.05, 0.5, 0.9, 1]), min_size=batch, max_size=batch)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.rand((batch, math.prod(what.grid)), generator=generator) < shares[:, None]


def with_few(settings_: Settings, most: int) -> Any:
    """Have so few groups drawn that some images run out of them."""
    numbers = settings_.numbers()
    return mock.patch.object(plan, "_numbers", return_value=numbers._replace(rectangles=min(numbers.rectangles, most)))


def equal(a: MaskPlan, b: MaskPlan) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y.cpu()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", DRAWING)
@settings(max_examples=60)
@given(asked(), st.integers(1, 4), int64, st.one_of(st.sampled_from([0, 2**31 - 2]), int64), st.data())
def test_every_backend_draws_the_definitions_bits(
    name: str, what: Settings, batch: int, root: int, first: int, data: st.DataObject
) -> None:
    named, device = None, DEVICES[name]
    if data.draw(st.booleans(), label="named"):
        named = torch.tensor(data.draw(st.lists(int64, min_size=batch, max_size=batch)))
        named = torch.stack([named, named + 1], 1)[:, 0]  # of a table: not contiguous
    one = batch == 1 and data.draw(st.booleans(), label="one image")
    shape = () if one else (batch,)
    valid = data.draw(valid_patches(batch, what)) if what.limited else None
    with with_few(what, data.draw(st.sampled_from([63, 10**6]))):
        expected = sequential.draw(root, Samples(shape, CPU, first, named, valid), what)
        there = Samples(shape, device, first, *(None if t is None else t.to(device) for t in (named, valid)))
        got = DRAWING[name].draw(root, there, what)
    assert got.mask.shape == (*shape, *what.grid)
    assert equal(expected, got)


@pytest.mark.parametrize("name", [name for name in DRAWING if name.endswith(("batched", "triton_draw"))])
@settings(max_examples=40)
@given(asked(), st.integers(1, 4), int64, int64, st.booleans())
def test_numbers_that_live_on_the_device_count_alike(
    name: str, what: Settings, batch: int, root: int, first: int, counted: bool
) -> None:
    """Off the CPU torch's generator gives the root, and the counter may be there too."""
    device, what = DEVICES[name], what._replace(limited=False)
    there = Samples((batch,), device, torch.tensor(first, device=device) if counted else first)
    expected = sequential.draw(root, Samples((batch,), CPU, first), what)
    assert equal(expected, DRAWING[name].draw(torch.tensor(root, device=device), there, what))


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize(("grid", "batch"), [((128, 128), 2), ((3, 60), 40), ((2, 2), 300), ((14, 14), 400)])
def test_large_grids_and_batches_are_the_same_bits(name: str, grid: Sides, batch: int) -> None:
    if "triton" in name:
        batch = min(batch, 20)  # its interpreter takes 0.2 s an image
    what = Settings(grid, (0.4, 0.5), None, False, 0.9, (1.0, 2.0, 1.0))
    expected = sequential.draw(7, Samples((batch,), CPU), what)
    assert equal(expected, DRAWING[name].draw(7, Samples((batch,), DEVICES[name]), what))


@pytest.mark.parametrize("most", [10**6, 630])
@pytest.mark.parametrize("share", [0.8, 0.0005])
def test_torch_functions_draw_no_more_groups_than_valid_patches_need(share: float, most: int) -> None:
    """A few of them may need as many as are allowed, and run out of these."""
    what = Settings((128, 128), (0.5, 0.9), (1, 4), False, 1.0, (1.0,), limited=True)
    valid = torch.rand(3, 128 * 128, generator=torch.Generator().manual_seed(0)) < share
    samples = Samples((3,), CPU, valid=valid)
    with with_few(what, most), mock.patch.object(batched, "_bit_sets", wraps=batched._bit_sets) as drawn:
        assert equal(sequential.draw(7, samples, what), batched.draw(7, samples, what))
    if share == 0.8:
        assert len(drawn.call_args_list) < 30  # each of 504 groups of one image, which may need 82,278


def span(word: int, side: int, sizes: tuple[int, int] | None, inside: bool) -> range:
    """Return the rows, the columns or the slices of a group on an axis of ``side`` patches; None covers all of it."""
    if sizes is None:
        return range(side)
    upper, lower = word >> 32 ^ 2**31, word % 2**32
    size = sizes[0] + upper * (sizes[1] - sizes[0] + 1) // 2**32
    places = side - size + 1 if inside else side + size - 1
    first = lower * places // 2**32 + (0 if inside else 1 - size)
    return range(max(first, 0), min(first + size, side))


def chosen(word: int, what: Settings) -> list[tuple[int, int] | None]:
    """Return the lowest and highest size of each axis of the group that begins with this word."""
    axes = len(what.grid)
    if what.sizes is None:
        return [(1, max(1, int(side * 0.3 + 1e-9))) for side in what.grid]
    if not what.size_weights:
        flat = what.sizes * axes if len(what.sizes) == 2 else what.sizes
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(axes)]
    shares = [sum(what.size_weights[: i + 1]) / sum(what.size_weights) for i in range(len(what.size_weights) - 1)]
    number = sum(word >> 32 >= round(share * 2**32) for share in shares)
    return [(n, n) if n else None for n in what.sizes[number * axes : (number + 1) * axes]]


def slots(key: int, first: int, number: int) -> list[int]:
    return splitmix64((key + (first - 1) * 0x9E3779B97F4A7C15) % 2**64, number)


def loop_groups(key: int, count: int, valid: list[bool], what: Settings) -> list[int]:
    """Hide one rectangle after another, cut the last one patch by patch, draw what none covers: patch by patch."""
    n, grid = what.numbers(), what.grid
    sides, skip = (grid[1:], 1) if len(grid) == 3 and grid[0] == 1 else (grid, 0)  # one slice takes no word
    axes, patches = len(sides), math.prod(grid)
    words = slots(key, rng.RECTANGLE_SLOT, axes * n.rectangles)
    backwards, group = slots(key, rng.CUT_SLOT, 1)[0] >> 63, dict[int, int]()
    for k in range(n.rectangles):
        here = words[axes * k : axes * (k + 1)]
        sizes = chosen(here[0], what)[skip:]
        spans = [span(*each, what.inside) for each in zip(here, sides, sizes, strict=True)]
        places = [0]
        for side, extent in zip(sides, spans, strict=True):
            places = [place * side + i for place in places for i in extent]
        for place in reversed(places) if backwards else places:
            if len(group) < count and valid[place]:
                group.setdefault(place, k)
    rank = [word % 2**20 for word in slots(key, rng.PATCH_SLOT, patches)]
    for place in sorted(range(patches), key=lambda place: (rank[place], place)):
        if len(group) < count and valid[place]:
            group.setdefault(place, n.rectangles + place)
    return [group.get(place, -1) for place in range(patches)]


@settings(max_examples=150)
@given(asked(), int64, st.sampled_from([0, 63, 126, 10**6]), st.data())
def test_the_definition_hides_what_a_loop_over_patches_would(
    what: Settings, root: int, most: int, data: st.DataObject
) -> None:
    valid = data.draw(valid_patches(3, what)) if what.limited else torch.ones(3, math.prod(what.grid)) > 0
    with with_few(what, most):
        drawn = sequential.draw(root, Samples((3,), CPU, 0, None, valid if what.limited else None), what)
        for key, mask, group, some in zip(drawn.key.tolist(), drawn.mask, drawn.group, valid.tolist(), strict=True):
            hidden = int(mask.sum())
            flip = what.invert and hidden > 0
            groups = loop_groups(key, sum(some) - hidden if flip else hidden, some, what)
            if flip:
                groups = [0 if group < 0 and here else -1 for group, here in zip(groups, some, strict=True)]
            assert group.flatten().tolist() == groups
            assert torch.equal(mask, group >= 0)


@settings(max_examples=100)
@given(asked(), st.integers(1, 4), int64, int64)
def test_keys_fills_donors_and_counts_are_what_their_words_say(
    what: Settings, batch: int, root: int, first: int
) -> None:
    what = what._replace(limited=False)
    drawn, (low, high) = sequential.draw(root, Samples((batch,), CPU, first), what), what.ratio
    bounds = [round(sum(what.weights[:i]) / sum(what.weights) * 2**32) for i in range(1, len(what.weights))]
    for i in range(batch):
        key = slots(root, first + i, 1)[0]
        assert drawn.key[i] == rng.signed(key)
        for_fill, for_donor = divmod(slots(key, rng.FILL_SLOT, 1)[0], 2**32)
        assert drawn.fill[i] == sum(for_fill >= bound for bound in bounds)
        assert drawn.donor[i] == ((i + 1 + for_donor * (batch - 1) // 2**32) % batch if batch > 1 else -1)
        for_ratio, for_p = divmod(slots(key, rng.COUNT_SLOT, 1)[0], 2**32)
        exact = (low + for_ratio / 2**32 * (high - low)) * drawn.mask[i].numel() if for_p < what.p * 2**32 else 0
        assert abs(int(drawn.mask[i].sum()) - exact) <= 0.5 + 2**-14  # ratios are held in steps of 2^-16 patches


def of_ratio(patches: int, ratio: Any, p: float = 1.0) -> Numbers:
    return Settings((1, patches), ratio, (1, 1), False, p, (1.0,)).numbers()


@given(st.integers(1, 4096), st.floats(0, 1))
def test_a_fixed_ratio_counts_as_python_rounds(patches: int, ratio: float) -> None:
    assert sequential.count(5, of_ratio(patches, (ratio, ratio)), [], 0) == round(ratio * patches)


def test_a_tie_within_a_range_goes_to_the_even_count() -> None:
    """A word's upper 24 bits place an image in its range: here at 0.5, 1.5, 2.5 and 3.5 of 4 patches."""
    word = torch.tensor([rng.signed((2 * k + 1) << 61) for k in range(4)])
    assert batched.counts(word, of_ratio(4, (0.0, 1.0))).tolist() == [0, 2, 2, 4]
    assert batched.counts(word + 2**31, of_ratio(4, (0.0, 1.0), 0.5)).tolist() == [0, 0, 0, 0]
    assert batched.counts(word + 2**31 - 1, of_ratio(4, (0.0, 1.0), 0.5)).tolist() == [0, 2, 2, 4]


def test_a_range_is_uniform_and_p_is_a_share() -> None:
    images = 100_000
    mask = GroupMask(1, (0.4, 0.7), group_size=(1, 1), seed=0).sample((images, 1, 14, 14)).mask
    seen = mask.flatten(1).sum(1).bincount(minlength=138)[78:138].double()
    # round() of a uniform number over 78.4 to 137.2: whole cells but for the first (to 78.5) and the last (from 136.5).
    expected = torch.ones(60, dtype=torch.float64)
    expected[0], expected[-1] = 0.1, 0.7
    expected *= images / expected.sum()
    chi2 = ((seen - expected) ** 2 / expected).sum()
    assert chi2 < 59 + 6 * math.sqrt(2 * 59)  # a fair draw fails about once in 10^6; the seed is fixed
    corrupted = GroupMask(1, 0.5, p=0.3, seed=0).sample((images, 1, 2, 2)).mask.flatten(1).any(1)
    assert abs(corrupted.double().mean().item() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / images)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize(
    ("grid", "size", "inside"),
    [((14, 14), None, False), ((14, 14), None, True), ((14, 14), (1, 2), False), ((8, 8), (1, 2), True)],
)
def test_rectangles_do_not_run_out(grid: Sides, size: Sides | None, inside: bool, ratio: float) -> None:
    what = Settings(grid, (ratio, ratio), size, inside, 1.0, (1.0,))
    group = batched.draw(5, Samples((2000,), CPU), what).group
    assert what.numbers().rectangles % shapes.WORD == 0
    if ratio < 1:  # where all are hidden, none needs an order
        assert group.max() < what.numbers().rectangles


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("side", [1, 3])
def test_rectangles_do_not_run_out_where_few_patches_are_valid(side: int, inside: bool) -> None:
    """Nor in the corner, which groups that lie inside cover least."""
    what = Settings((14, 14), (0.9, 0.9), (1, 3), inside, 1.0, (1.0,), limited=True)
    valid = torch.zeros(2000, 14, 14, dtype=torch.bool)
    valid[:, :side, :side] = True
    group = batched.draw(5, Samples((2000,), CPU, valid=valid.flatten(1)), what).group
    assert ((group >= 0).flatten(1).sum(1) == round(0.9 * side**2)).all()
    assert group.max() < what.numbers().rectangles


def test_where_groups_run_out_only_valid_patches_are_hidden(backend: str) -> None:
    corrupt = GroupMask(1, 0.9, group_size=(1, 2), seed=0)
    valid = torch.rand(2, 150, 150, generator=torch.Generator().manual_seed(0)) < 0.5
    with with_few(Settings((150, 150), (0.9, 0.9), (1, 2), False, 1.0, (1.0,), limited=True), 63):
        mask = corrupt.sample((2, 1, 150, 150), valid=valid).mask
    assert not (mask & ~valid).any()
    assert mask.flatten(1).sum(1).tolist() == [round(0.9 * int(one.sum())) for one in valid]


@pytest.mark.parametrize("inside", [False, True])
def test_the_worst_case_still_gives_the_exact_count_without_bias(inside: bool) -> None:
    """63 rectangles of one or two patches cannot hide 90 % of 196: the rest is drawn by rank."""
    images, what = 20_000, Settings((14, 14), (0.9, 0.9), (1, 2), inside, 1.0, (1.0,))
    with with_few(what, 63):
        drawn = batched.draw(0, Samples((images,), CPU), what)
    assert (drawn.group.flatten(1).max(1).values >= 63).all()
    assert (drawn.mask.flatten(1).sum(1) == 176).all()
    if not inside:
        often = drawn.mask.double().mean(0)
        # 196 binomials of standard error 0.0021 around 0.898: five of them fail about once in 10^4; the seed is fixed.
        assert (often - 176 / 196).abs().max() < 5 * math.sqrt(0.9 * 0.1 / images)


def test_single_patches_are_a_plain_random_choice() -> None:
    """Group size 1: every pair of patches is hidden together as often as chance has it, neighbours or not."""
    images, count = 20_000, 18
    mask = GroupMask(1, 0.5, group_size=(1, 1), seed=0).sample((images, 1, 6, 6)).mask
    flat = mask.flatten(1).double()
    assert (flat.sum(1) == count).all()
    together = flat.T @ flat / images
    expected = count * (count - 1) / (36 * 35)
    off_diagonal = together[~torch.eye(36, dtype=torch.bool)]
    # 630 pairs, five standard errors: fails about once in 3,000; the seed is fixed.
    assert (off_diagonal - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / images)


def test_inside_starves_the_corners_and_uniform_does_not() -> None:
    def often(placement: Any) -> Tensor:
        return GroupMask(1, 0.5, placement=placement, seed=0).sample((4000, 1, 14, 14)).mask.double().mean(0)

    inside, uniform = often("inside"), often("uniform")
    assert inside.max() > 3 * inside.min()
    assert inside.argmin() in (0, 13, 182, 195)
    assert uniform.max() < 1.15 * uniform.min()


def test_inside_groups_are_whole() -> None:
    drawn = GroupMask(1, 0.1, group_size=(2, 3), placement="inside", seed=0).sample((500, 1, 9, 13))
    first = drawn.group == 0  # nothing covers the first group, and it has at most 9 of the 12 patches: it is not cut
    for axis, side in ((1, 13), (2, 9)):
        assert set(first.any(axis).sum(1).tolist()) == {2, 3}
        assert first.any(axis).any(0).sum() == side


def test_the_papers_sizes_are_up_to_30_percent_of_each_side() -> None:
    assert shapes.sizes_table((14, 2), None, ()) == (0, 1, 1, 1, 4, 1, 1)
    assert shapes.sizes_table((10, 64, 5), None, ()) == (0, 1, 3, 1, 19, 1, 1)


def test_every_size_is_drawn_as_often_as_its_weight_says() -> None:
    """A single group of each image, which lies inside and is not cut."""
    sizes = {(2, 3): 3, (1, "all"): 1, ("all", 2): 2, (3, 1): 2}
    corrupt = GroupMask(1, 0.5, group_size=sizes, placement="inside", seed=0)
    first = corrupt.sample((8000, 1, 6, 7)).group == 0
    seen: dict[tuple[Any, Any], int] = {}
    for height, width in zip(first.any(2).sum(1).tolist(), first.any(1).sum(1).tolist(), strict=True):
        size: Any = ("all" if height == 6 else height, "all" if width == 7 else width)
        seen[size] = seen.get(size, 0) + 1
    assert seen.keys() == sizes.keys()
    for size, weight in sizes.items():
        assert abs(seen[size] - 1000 * weight) < 5 * math.sqrt(8000 * weight / 8 * (1 - weight / 8))


@pytest.mark.parametrize("placement", ["uniform", "inside"])
def test_bars_reach_from_end_to_end(placement: Any) -> None:
    """And lie everywhere equally often, with either placement where they are one patch wide."""
    bars = {(1, "all"): 1, ("all", 1): 1}
    plan = GroupMask(1, (0.3, 0.6), group_size=bars, placement=placement, seed=0).sample((4000, 1, 9, 12))
    last = plan.group.flatten(1).max(1).values  # which may be cut
    whole = plan.mask & (plan.group < last[:, None, None])
    across = (plan.mask.sum(2, keepdim=True) == 12) | (plan.mask.sum(1, keepdim=True) == 9)
    assert (across | ~whole).all()
    assert whole.all(2).any()
    assert whole.all(1).any()
    often = plan.mask.double().mean(0)
    assert often.max() / often.min() < 1.3


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("place", range(4))
def test_what_reaches_from_end_to_end_may_stand_anywhere_among_the_sizes(name: str, place: int) -> None:
    each = [(2, 3), (1, 2), (3, 1)]
    each.insert(place, (1, 0))
    flat, root = tuple(side for size in each for side in size), 5
    what = Settings((5, 9), (0.3, 0.6), flat, False, 1.0, (1.0,), size_weights=(1.0,) * 4)
    drawn = DRAWING[name].draw(root, Samples((40,), DEVICES[name]), what)
    assert equal(sequential.draw(root, Samples((40,), CPU), what), drawn)


def test_block_sizes_are_those_of_the_law() -> None:
    """Beside so many draws of areas and aspect ratios."""
    generator, number, grid = torch.Generator().manual_seed(0), 400_000, (14, 11)
    area = torch.empty(number, dtype=torch.float64).uniform_(0.05, 0.3, generator=generator) * 14 * 11
    ratio = torch.empty(number, dtype=torch.float64).uniform_(math.log(0.3), math.log(3.3), generator=generator).exp()
    height, width = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    kept = (height < 14) & (width < 11)
    drawn = (height * 11 + width)[kept].bincount(minlength=14 * 11).view(14, 11) / kept.sum()
    sizes = block_sizes(grid)
    total = sum(sizes.values())
    assert all(isinstance(weight, int) and weight > 0 for weight in sizes.values())
    for h in range(14):
        for w in range(11):
            assert abs(sizes.get((h, w), 0) / total - drawn[h, w]) < 5 * math.sqrt(0.03 / number) + 2e-5
    assert GroupMask(16, 0.4, group_size=sizes, seed=0)(torch.zeros(2, 3, 224, 176)).mask.sum() == 2 * round(0.4 * 154)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (((14,),), TypeError, r"grid is a pair of ints; got \(14,\)"),
        (((14, 14.0),), TypeError, "grid is a pair of ints"),
        (((14, 14), 0.3), TypeError, "area is a pair of numbers; got 0.3"),
        (((14, 14), (0, 0.3)), ValueError, r"area is .* in \(0, 1\]"),
        (((14, 14), (0.3, 0.1)), ValueError, "area is"),
        (((14, 14), (0.1, 0.3), (0, 1)), ValueError, "aspect above 0"),
        (((-1, 4),), ValueError, r"grid is .* at least 1 patch a side; got \(-1, 4\)"),
        (((4, 4), (0.05, True)), TypeError, r"area is a pair of numbers; got \(0.05, True\)"),
        (((4, 4), ("a", "b")), TypeError, r"area is a pair of numbers; got \('a', 'b'\)"),
        (((4, 4), (0.9, 1)), ValueError, r"no block .* within a grid of \(4, 4\)"),
        (((14, 14), (0.4, 0.4)), ValueError, r"low below high; got \(0.4, 0.4\).* as {\(3, 3\): 1}"),
        (((14, 14), (0.1, 0.3), (1, 1)), ValueError, r"low below high; got .* and \(1, 1\)"),
    ],
)
def test_block_sizes_that_are_none_are_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        block_sizes(*arguments)


@pytest.mark.parametrize("group_size", [None, (1, 1)])
@pytest.mark.parametrize("placement", ["uniform", "inside"])
@pytest.mark.parametrize("p", [1, 0.7])
def test_a_sample_is_the_same_alone_and_in_a_large_batch(
    group_size: Any, placement: Any, p: float, backend: str
) -> None:
    corrupt = GroupMask(
        16, (0.4, 0.7), {"noise": 1, "zeros": 2}, group_size=group_size, placement=placement, p=p, seed=5
    )
    index = torch.arange(300) * 7 - 1000
    whole = corrupt.sample((300, 3, 224, 224), index=index)
    for i in range(0, 300, 7):
        one = corrupt.sample((3, 224, 224), index=int(index[i]))
        for field in ("mask", "fill", "key", "group"):
            assert torch.equal(getattr(one, field), getattr(whole, field)[i])
        assert one.donor == -1


def test_what_was_drawn_is_the_callers_own(backend: str) -> None:
    """A plan may be changed, and what is drawn later does not change it."""
    corrupt = GroupMask(16, seed=0)

    def drawn() -> list[Tensor]:
        return list(corrupt.sample((2, 3, 224, 224), index=torch.arange(2)))

    first, again = drawn(), drawn()
    before = [field.clone() for field in first]
    for field in again:
        field.zero_()
    corrupt.sample((2, 3, 224, 224))
    assert all(map(torch.equal, first, before))
    assert all(map(torch.equal, drawn(), before))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gmml_aug.filling import triton_fill
from gmml_aug.sampling import triton_draw

def build(kernel, types, constants, warps):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})

longs = "fill_ptr donor_ptr key_ptr root_ptr sample_ptr share_ptr limit_ptr table_ptr kind_ptr source_ptr".split()
numbers = "sample batch least most rectangles entries pool".split()
types = {**dict.fromkeys(longs, "*i64"), "group_ptr": "*i32", "mask_ptr": "*i1", "valid_ptr": "*i1",
         "scale_ptr": "*fp32",
         "cubic_ptr": "*i32", **dict.fromkeys(numbers, "i32"), **dict.fromkeys(["root", "start", "stop", "p"], "i64")}
for limited in (False, True):
    grid = dict(DEPTH=1 + 2 * limited, STEPS=5 * limited, HEIGHT=14, WIDTH=14, SHARES=2, INSIDE=False)
    grid |= dict(INVERT=limited, ROOT=True, SAMPLE=1, LIMITED=limited, BLOCK=1024)
    build(triton_draw._draw_kernel, types, grid, 1)
patch = dict(DEPTH=1, ROWS=14, COLUMNS=14, THICK=1, HEIGHT=16, WIDTH=16, PIXELS=768)
patch |= dict(IMAGE=150528, PLANE=50176, SLICE=0, LINE=224, PIXEL=1)
steps = {f"{to}_{name}": patch[name] for to in ("OUT", "POOL") for name in ("IMAGE", "PLANE", "SLICE", "LINE", "PIXEL")}
for kind in ("fp32", "fp16", "bf16", "u8"):
    pixels = dict.fromkeys(["out_ptr", "image_ptr", "pool_ptr", "value_ptr"], "*" + kind)
    for inplace in (False, True):
        constants = dict(**patch, **steps, CHANNELS=3, INPLACE=inplace, SCALED=True,
                         PER_WORD=8 if kind == "u8" else 4, BLOCK=1024)
        build(triton_fill._write_kernel, types | pixels, constants, 4)
print("built")
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu() -> None:
    """The interpreter takes more than the compiler does; the compiler needs no GPU."""
    pytest.importorskip("triton", minversion="3.3")
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=without, capture_output=True, text=True)
    assert done.stdout.strip() == "built", done.stderr[-2000:]
