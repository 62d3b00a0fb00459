"""A few images are drawn in Python's integers, a batch in tensors: the bits are the same."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import Alien, GroupMask, MaskPlan, Zeros, groups, plan, rng, single

SIDES = st.integers(1, 20)
RATIOS = st.one_of(
    st.sampled_from([(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.7)]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: (min(pair), max(pair))),
)
SHARES = st.one_of(st.sampled_from([1.0, 0.5, 0.0]), st.floats(0, 1))
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def asked(draw: st.DrawFn) -> tuple[plan.Settings, bool]:
    """Draw settings with as many rectangles as they need, or fewer; and whether they certainly suffice."""
    grid = draw(st.tuples(SIDES, SIDES))
    sizes: Any = tuple(tuple(sorted(draw(st.tuples(st.integers(1, n), st.integers(1, n))))) for n in grid)
    ratio, inside = draw(RATIOS), draw(st.booleans())
    patches = grid[0] * grid[1]
    most = round(ratio[1] * patches)
    enough = groups.rectangles_needed(*grid, most, *sizes, inside)
    rectangles = draw(st.sampled_from([number for number in (enough, enough, 63, 126) if number < 3000]))
    suffice = most == 0 or (rectangles >= enough > 0 and most < patches)
    weights = draw(st.sampled_from([(1.0,), (1.0, 1.0), (1e-12, 3.0, 0.5), (2.0, 1e300)]))
    return plan.Settings(grid, ratio, sizes, inside, draw(SHARES), weights, rectangles), suffice


def assert_same(a: plan.Drawn | MaskPlan, b: plan.Drawn | MaskPlan) -> None:
    for few, batch in zip(a, b, strict=True):
        assert (few.dtype, few.shape, few.device) == (batch.dtype, batch.shape, batch.device)
        assert few.is_contiguous()
        assert torch.equal(few, batch)


@settings(max_examples=300)
@given(asked(), st.lists(NUMBERS, min_size=1, max_size=8), NUMBERS)
def test_pythons_integers_draw_what_tensors_draw(
    asked: tuple[plan.Settings, bool], samples: list[int], root: int
) -> None:
    wanted, suffice = asked
    batch = plan._draw_batch(root, torch.tensor(samples), wanted)
    with mock.patch.object(plan, "_draw_batch", wraps=plan._draw_batch) as fallback:
        assert_same(plan._draw_few(root, samples, wanted), batch)
    assert not (suffice and fallback.called)  # else this would compare tensors with tensors


WORDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**6 - 1).map(lambda number: number << 58))


@given(st.lists(WORDS, min_size=1, max_size=20), st.sampled_from([1, 4, 7, 196]) | st.integers(1, 4096), RATIOS, SHARES)
def test_pythons_integers_count_as_tensors_do(
    words: list[int], patches: int, ratio: tuple[float, float], p: float
) -> None:
    tensor = torch.tensor([rng.signed(word) for word in words])
    expected = groups.counts(tensor, patches, ratio, p).tolist()
    assert [single.count(word, patches, ratio, p) for word in words] == expected


def test_a_tie_within_a_range_goes_to_the_even_count() -> None:
    assert [single.count((2 * k + 1) << 61, 4, (0.0, 1.0), 1.0) for k in range(4)] == [0, 2, 2, 4]


@pytest.mark.parametrize("rectangles", [63, 126])
def test_images_that_run_out_of_rectangles_are_finished_alike(rectangles: int) -> None:
    asked = plan.Settings((16, 16), (0.3, 0.8), ((1, 2), (1, 2)), False, 1.0, (1.0,), rectangles)
    too_few, samples = 0, list(range(50))
    for sample in samples:
        with mock.patch.object(plan, "_draw_batch", wraps=plan._draw_batch) as fallback:
            few = plan._draw_few(11, [sample], asked)
        too_few += fallback.called
        assert_same(few, plan._draw_batch(11, torch.tensor([sample]), asked))
    assert 10 <= too_few <= 45
    assert_same(plan._draw_few(11, samples, asked), plan._draw_batch(11, torch.tensor(samples), asked))


@settings(max_examples=150)
@given(st.data())
def test_a_transform_draws_the_same_whichever_way(data: st.DataObject) -> None:
    """By index, by the counter of a seed, or by torch's generator; several times, so that the counter goes on."""
    grid = data.draw(st.tuples(st.integers(2, 12), st.integers(2, 20)))
    seed = data.draw(st.sampled_from([None, 0, -1, 2**64 - 1]))
    batch = data.draw(st.integers(0, 8))
    index = data.draw(st.none() | st.lists(NUMBERS, min_size=batch, max_size=batch))
    arguments: Any = {
        "patch_size": 1,
        "ratio": data.draw(RATIOS),
        "fill": data.draw(st.sampled_from(["noise", {"noise": 1, "alien": 2, "zeros": 1}])),
        "group_size": data.draw(st.sampled_from([None, (1, 1), (1, 2), (2, 2)])),
        "placement": data.draw(st.sampled_from(["uniform", "inside"])),
        "p": data.draw(SHARES),
        "seed": seed,
    }
    transforms = GroupMask(**arguments), GroupMask(**arguments)
    drawn: list[list[MaskPlan]] = []
    for transform, few in zip(transforms, (0, 2**60), strict=True):
        torch.manual_seed(3)
        with mock.patch.object(plan, "_FEW_RECTANGLES", few):
            numbers = None if index is None else torch.tensor(index, dtype=torch.int64)
            drawn.append([transform.sample((batch, 3, *grid), index=numbers) for _ in range(3)])
    for a, b in zip(*drawn, strict=True):
        assert_same(a, b)
    assert transforms[0].counter == transforms[1].counter


@pytest.mark.parametrize("group_size", [None, (2, 3)])
@pytest.mark.parametrize("placement", ["uniform", "inside"])
@pytest.mark.parametrize("p", [1, 0.7])
def test_a_sample_is_the_same_alone_and_in_a_large_batch(group_size: Any, placement: Any, p: float) -> None:
    corrupt = GroupMask(
        16, (0.4, 0.7), {"noise": 1, Alien(): 1, Zeros(): 2}, group_size=group_size, placement=placement, p=p, seed=5
    )
    index = torch.arange(300) * 7 - 1000
    with mock.patch.object(single, "hide", wraps=single.hide) as alone:
        whole = corrupt.sample((300, 3, 224, 224), index=index)
        assert not alone.called  # a batch of this size is drawn in tensors ...
        for i in range(0, 300, 7):
            one = corrupt.sample((3, 224, 224), index=int(index[i]))
            for field in ("mask", "fill", "key", "group"):
                assert torch.equal(getattr(one, field), getattr(whole, field)[i])
            assert one.donor == -1
        assert alone.call_count == 43  # ... and one image is not


def test_what_was_drawn_is_the_callers_own() -> None:
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


@pytest.mark.parametrize("group_size", [None, (1, 1)])
def test_samples_that_are_drawn_ahead_are_those_of_the_batch(group_size: tuple[int, int] | None) -> None:
    """One image at a time, across the end of what is drawn at once, with a change of ratio and a restart between."""
    options: dict[str, Any] = {"fill": {"noise": 1, "zeros": 1}, "group_size": group_size, "seed": 5}
    number = plan._AHEAD + 9
    whole = GroupMask(4, (0.2, 0.8), **options).sample((number, 3, 32, 32))
    half = GroupMask(4, 0.5, **options).sample((number, 3, 32, 32))
    corrupt = GroupMask(4, (0.2, 0.8), **options)
    for i in range(number):
        corrupt.ratio = 0.5 if i % 7 == 3 else (0.2, 0.8)
        if i == 20:
            state, corrupt = corrupt.state_dict(), GroupMask(4, (0.2, 0.8), **options)
            corrupt.load_state_dict(state)
        one, expected = corrupt.sample((3, 32, 32)), half if i % 7 == 3 and i != 20 else whole
        assert torch.equal(one.mask, expected.mask[i])
        assert one.fill == expected.fill[i]
        assert one.key == expected.key[i]
        assert torch.equal(one.group, expected.group[i])
        assert one.donor == -1
        for field in one:
            field.zero_()  # a plan is the caller's own


def test_what_was_drawn_ahead_is_the_callers_own() -> None:
    drawn = []
    for _ in range(2):
        corrupt = GroupMask(4, 0.5, seed=77)
        plans = [corrupt.sample((3, 32, 32)) for _ in range(6)]
        drawn.append(torch.stack([one.group for one in plans]))
        for one in plans:
            for field in one:
                field.zero_()
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("calls", "ahead"),
    [
        (lambda one, other: [one(28) for _ in range(60)], 1),
        (lambda one, other: [corrupt(28) for _ in range(30) for corrupt in (one, other)], 1),  # two views, of twins
        (lambda one, other: [one(side) for _ in range(25) for side in (28, 14)], 2),  # two crops
        (
            lambda one, other: [one(7 * (i % 9 + 1)) for i in range(60)],
            0,
        ),  # of what would be drawn, little would be used
    ],
)
def test_images_are_drawn_ahead_only_where_more_like_them_follow(calls: Any, ahead: int) -> None:
    seed = 1000 + ahead + 10 * len(calls.__code__.co_code)
    one, other = (GroupMask(7, 0.5, seed=seed) for _ in range(2))
    plan._draw_ahead.cache_clear()
    calls(*(lambda side, corrupt=corrupt: corrupt.sample((3, side, side)) for corrupt in (one, other)))
    assert plan._draw_ahead.cache_info().misses == ahead
