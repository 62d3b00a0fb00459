"""Masks that somebody else drew or whose scores decide, and patches that may not be hidden."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import Alien, GroupMask, Masked, from_scores, patch_to_pixel

from .backends import SETTINGS
from .test_guarantees import FILLS, images_of, run_by, same

GRID = (5, 7)
ANY = st.integers(-(2**63), 2**63 - 1)


def random_mask(*shape: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


# A mask of the caller's.


@pytest.mark.parametrize("names", SETTINGS)
@settings(max_examples=60)
@given(st.sampled_from(FILLS), st.floats(0, 1), st.integers(2, 5), st.booleans(), st.sampled_from([(3,), (2, 3)]))
def test_a_given_mask_is_hidden_and_nothing_else(
    names: str, fill: Any, share: float, batch: int, inplace: bool, middle: tuple[int, ...]
) -> None:
    images, mask = images_of((batch, *middle, 10, 14)), random_mask(batch, *GRID, share=share)
    corrupt = GroupMask(2, 0.5, fill, p=0, seed=1, group_size=(9, 9), inplace=inplace)  # which have no part in it
    with run_by(names):
        out = corrupt(images.clone(), mask=mask)
        again = GroupMask(2, 0.5, fill, seed=1)
        assert same(out, again.apply(images, again.sample(images, mask=mask)))
    assert torch.equal(out.mask, mask)
    assert out.mask.data_ptr() != mask.data_ptr()
    hidden = patch_to_pixel(mask, 2)
    hidden = (hidden[:, None] if len(middle) == 2 else hidden).expand(images.shape)
    assert torch.equal(out.images[~hidden], images[~hidden])
    if fill != "mean":
        assert (out.images[hidden] != images[hidden]).double().mean() > 0.5 or not hidden.any() or share > 0.8


def test_a_given_mask_has_its_samples_fills_noise_and_donors() -> None:
    """Whatever is drawn beside the patches is what the same sample gets with patches that were drawn."""
    corrupt, index, mask = (
        GroupMask(2, fill={"noise": 1, "alien": 1}, seed=3),
        torch.arange(8) * 5,
        random_mask(8, 4, 4),
    )
    images = images_of((8, 1, 8, 8))
    drawn, given = corrupt.sample(images, index=index), corrupt.sample(images, index=index, mask=mask)
    for field in ("fill", "donor", "key"):
        assert torch.equal(getattr(drawn, field), getattr(given, field))
    whole = corrupt(images, index=index, mask=mask, donors=images.clone())
    alone = [corrupt(images[i], index=int(index[i]), mask=mask[i], donors=images) for i in range(8)]
    assert same(whole, Masked(*(torch.stack(part) for part in zip(*alone, strict=True))))
    assert corrupt.counter == 0
    corrupt(images, mask=mask)
    assert corrupt.counter == 8


def test_the_patches_of_a_given_mask_are_groups_of_their_own() -> None:
    images = torch.arange(64.0)[:, None, None, None].expand(64, 1, 8, 8)
    plan = GroupMask(2, fill=Alien("group"), seed=0).sample(images, mask=torch.ones(64, 4, 4, dtype=torch.bool))
    assert torch.equal(plan.group, torch.arange(16, dtype=torch.int32).view(4, 4).expand(64, 4, 4))
    assert len(plan.group_donor()[0].unique()) > 8


def test_a_given_mask_serves_all_images_of_a_sample() -> None:
    images, mask = images_of((4, 3, 8, 8)), random_mask(4, 4, 4)
    out = GroupMask(2, fill="zeros")({"image": images, "label": 3}, mask=mask)
    assert torch.equal(out["image"].mask, mask)
    assert out["label"] == 3


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.zeros(4, 4, 4), TypeError, r"bool tensor.*got torch.float32; convert it, as by mask > 0"),
        ([[True]], TypeError, r"got list; convert it, as by torch.as_tensor\(mask\)"),
        (torch.zeros(4, 4, 5, dtype=torch.bool), ValueError, r"shape \(4, 4, 4\); got \(4, 4, 5\)"),
        (torch.zeros(4, 4, dtype=torch.bool), ValueError, r"shape \(4, 4, 4\); got \(4, 4\)"),
        (torch.zeros(4, 4, 4, dtype=torch.bool, device="meta"), ValueError, r"is on meta.*mask.to\('cpu'\)"),
        (
            torch.zeros(4, 4, 4, dtype=torch.bool).to_sparse(),
            TypeError,
            r"got a torch.sparse_coo one.*mask.to_dense\(\)",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused_untouched(mask: Any, error: type[Exception], words: str) -> None:
    corrupt, images = GroupMask(8, seed=0, inplace=True), torch.zeros(4, 3, 32, 32)
    for call in (corrupt, corrupt.sample):
        with pytest.raises(error, match=words):
            call(images, mask=mask)
    assert corrupt.counter == 0
    assert not images.any()


def test_masks_that_are_mapped_over_are_refused() -> None:
    images, masks = images_of((2, 4, 3, 8, 8)), random_mask(2, 4, 4, 4)
    with pytest.raises(ValueError, match="mask cannot be mapped by vmap"):
        torch.func.vmap(lambda some, mask: GroupMask(2)(some, mask=mask))(images, masks)


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
def test_a_given_mask_compiles_once(fill: Any) -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter: Any = CompileCounter()
    eager, module = (GroupMask(2, 0.5, fill, seed=0) for _ in range(2))
    fast = torch.compile(module, fullgraph=True, backend=counter)
    for step in range(5):
        images, mask = images_of((4, 3, 8, 8), seed=step), random_mask(4, 4, 4, seed=step)
        module.ratio = eager.ratio = step / 10
        got, expected = fast(images, mask=mask), eager(images, mask=mask)
        assert torch.equal(got.mask, expected.mask)
        assert torch.allclose(got.images, expected.images)
    assert counter.frame_count == 1


# Valid patches.


@pytest.mark.parametrize("names", SETTINGS)
@settings(max_examples=60)
@given(
    st.sampled_from(FILLS), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, (1, 1), (2, 3)]), st.booleans(),
    st.sampled_from(["uniform", "inside"]), st.integers(0, 99),
)  # fmt: skip
def test_only_valid_patches_are_hidden_and_of_each_image_its_share(
    names: str, fill: Any, share: float, ratio: float, group_size: Any, ranged: bool, placement: Any, seed: int
) -> None:
    valid = random_mask(6, *GRID, share=share, seed=seed)
    valid[0], valid[1] = False, True
    images, ratios = images_of((6, 3, 10, 14)), (ratio, max(ratio, 0.9)) if ranged else (ratio, ratio)
    corrupt = GroupMask(2, ratios, fill, group_size=group_size, placement=placement, seed=seed)
    index = torch.arange(6) * 7
    with run_by(names):
        out = corrupt(images, index=index, valid=valid)
        alone = [corrupt.sample(images[i], index=int(index[i]), valid=valid[i]).mask for i in range(6)]
    assert torch.equal(torch.stack(alone), out.mask)
    assert not (out.mask & ~valid).any()
    for count, number in zip(out.mask.flatten(1).sum(1).tolist(), valid.flatten(1).sum(1).tolist(), strict=True):
        assert round(ratios[0] * number) <= count <= round(ratios[1] * number)
    hidden = patch_to_pixel(out.mask, 2).expand(images.shape)
    assert torch.equal(out.images[~hidden], images[~hidden])


def test_where_all_patches_are_valid_the_masks_are_those_of_the_sample() -> None:
    """An image with holes has the groups of its sample, with a share of what is left."""
    corrupt, index = GroupMask(1, (0.3, 0.8), seed=0, p=0.7), torch.arange(200)
    everywhere = torch.ones(200, 14, 14, dtype=torch.bool)
    plan = corrupt.sample((200, 1, 14, 14), index=index)
    assert all(map(torch.equal, plan, corrupt.sample((200, 1, 14, 14), index=index, valid=everywhere)))


@pytest.mark.parametrize("names", SETTINGS)
@pytest.mark.parametrize("batch", [0, 2, 100])
def test_valid_patches_may_lie_anyhow_in_memory(names: str, batch: int) -> None:
    """Such as one set of them for the whole batch, or none for a batch of none."""
    corrupt, index = GroupMask(1, 0.5, seed=0), torch.arange(batch)
    for valid in (random_mask(14, 14).expand(batch, 14, 14), random_mask(14, 14, batch).movedim(2, 0)):
        with run_by(names):
            mask = corrupt.sample((batch, 1, 14, 14), index=index, valid=valid).mask
            assert torch.equal(mask, corrupt.sample((batch, 1, 14, 14), index=index, valid=valid.contiguous()).mask)
        assert mask.shape == valid.shape
        assert not (mask & ~valid).any()


def test_valid_patches_that_do_not_fit_are_refused_untouched() -> None:
    corrupt, images, valid = GroupMask(8, seed=0), torch.zeros(4, 3, 32, 32), torch.ones(4, 4, 4, dtype=torch.bool)
    for call in (corrupt, corrupt.sample):
        with pytest.raises(TypeError, match=r"valid is a bool tensor.*got torch.int64"):
            call(images, valid=valid.long())
        with pytest.raises(ValueError, match=r"shape \(4, 4, 4\); got \(2, 4, 4\)"):
            call(images, valid=valid[:2])
        with pytest.raises(ValueError, match="pass mask=mask & valid alone"):
            call(images, valid=valid, mask=valid)
    assert corrupt.counter == 0
    with pytest.raises(ValueError, match="valid cannot be mapped by vmap"):
        torch.func.vmap(lambda some, valid: corrupt(some, valid=valid))(images[None], valid[None])


@pytest.mark.parametrize("names", SETTINGS)
def test_valid_patches_of_large_grids_take_small_groups(names: str) -> None:
    corrupt, valid = GroupMask(1, 0.5, group_size=(1, 4), seed=0), random_mask(2, 256, 256, share=0.8)
    with run_by(names):
        mask = corrupt.sample((2, 1, 256, 256), valid=valid).mask
    assert not (mask & ~valid).any()
    assert mask.flatten(1).sum(1).tolist() == [round(0.5 * int(one.sum())) for one in valid]


def test_groups_too_small_for_so_many_valid_patches_are_refused_with_what_helps() -> None:
    """Another ratio would not: whatever it is, the patches that are valid may be any."""
    corrupt, valid = GroupMask(1, 0.001, group_size=(1, 4)), torch.ones(1, 1024, 1024, dtype=torch.bool)
    corrupt.sample((1, 1, 1024, 1024))
    with pytest.raises(ValueError, match=r"1048576 patches.*with valid=.*; use larger groups, or a larger patch"):
        corrupt.sample((1, 1, 1024, 1024), valid=valid)


@pytest.mark.slow
def test_valid_patches_compile_once() -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter: Any = CompileCounter()
    eager, module = (GroupMask(2, 0.5, {"noise": 1, "alien": 1}, seed=0) for _ in range(2))
    fast = torch.compile(module, fullgraph=True, backend=counter)
    for step in range(5):
        images, valid = images_of((4, 3, 8, 8), seed=step), random_mask(4, 4, 4, share=0.7, seed=step)
        module.ratio = eager.ratio = step / 10
        assert same(fast(images, valid=valid), eager(images, valid=valid))
    assert counter.frame_count == 1


# The inverse.


@given(st.floats(0.01, 1), st.sampled_from([None, (2, 5)]), st.booleans(), st.integers(0, 99))
def test_the_inverse_hides_what_the_groups_leave(ratio: float, group_size: Any, limited: bool, seed: int) -> None:
    """The same sample with the other share hides the other patches, all of them one group."""
    valid = random_mask(1, *GRID, share=0.8 if limited else 1, seed=seed)
    number, shape, more = int(valid.sum()), (1, 1, *GRID), {"index": torch.tensor([seed]), "valid": valid}
    hidden = round(ratio * number)
    inverse = GroupMask(1, ratio, group_size=group_size, invert=True, seed=0).sample(shape, **more)
    groups = GroupMask(1, (number - hidden) / number, group_size=group_size, seed=0).sample(shape, **more)
    assert inverse.mask.sum() == hidden
    if hidden:
        assert torch.equal(inverse.mask, ~groups.mask & valid)
    assert torch.equal(inverse.group, inverse.mask.int() - 1)


def test_the_inverse_of_an_image_that_is_left_alone_hides_nothing() -> None:
    mask = GroupMask(1, 0.6, invert=True, p=0.5, seed=0).sample((400, 1, 10, 10)).mask.flatten(1).sum(1)
    assert set(mask.tolist()) == {0, 60}


# Scores.


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8]))
    levels = draw(st.sampled_from([1, 2, 5, 100]))
    scores = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(
        dtype
    )
    if dtype.is_floating_point and draw(st.booleans()):
        scores[random_mask(*shape, share=0.2)], scores[random_mask(*shape, share=0.1, seed=1)] = math.nan, math.inf
    return scores, draw(st.sampled_from([None, random_mask(*shape, share=0.6, seed=2)]))


@settings(max_examples=200)
@given(scored(), st.data())
def test_scores_hide_the_exact_top(case: tuple[Tensor, Tensor | None], data: st.DataObject) -> None:
    scores, valid = case
    patches = scores[0].numel()
    each = torch.tensor([data.draw(st.integers(-1, patches + 1)) for _ in scores])
    count: Any = data.draw(st.sampled_from([each, int(each[0].clamp(0, patches))]))
    mask = from_scores(scores, count, valid, seed=data.draw(ANY))
    allowed = torch.ones_like(mask) if valid is None else valid
    numbers = scores.double().nan_to_num(-math.inf, math.inf)
    assert not (mask & ~allowed).any()
    for i in range(len(scores)):
        wanted = min(max(int(count[i] if isinstance(count, Tensor) else count), 0), int(allowed[i].sum()))
        assert mask[i].sum() == wanted
        shown = allowed[i] & ~mask[i]
        if wanted and shown.any():
            assert numbers[i][mask[i]].min() >= numbers[i][shown].max()


def test_equal_scores_fall_to_a_seed_and_an_index_alone() -> None:
    scores, index = torch.zeros(64, 4, 4), torch.arange(64) * 3
    whole = from_scores(scores, 8, index=index)
    assert torch.equal(torch.stack([from_scores(scores[i], 8, index=int(index[i])) for i in range(64)]), whole)
    assert torch.equal(from_scores(scores[:2], 8), from_scores(scores, 8)[:2])
    assert not torch.equal(from_scores(scores, 8, index=index, seed=1), whole)
    assert len({tuple(mask.flatten().tolist()) for mask in whole}) == 64
    often = from_scores(torch.zeros(20_000, 4, 4), 8).double().mean(0)
    assert (often - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)  # five standard errors; the seed is fixed


def test_no_scores_hide_nothing() -> None:
    empty = torch.zeros(0, 4, 4)
    for count in (3, torch.zeros(0, dtype=torch.int64)):
        for valid in (None, empty > 0):
            mask = from_scores(empty, count, valid)
            assert (mask.shape, mask.dtype) == (empty.shape, torch.bool)


@pytest.mark.slow
def test_scores_compile_once_and_are_not_waited_for() -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter: Any = CompileCounter()
    fast = torch.compile(from_scores, fullgraph=True, backend=counter)
    for step in range(4):
        scores, count = torch.rand(4, 5, 5).round(decimals=1), torch.tensor([step, 3, 4, 5])
        valid = random_mask(4, 5, 5, seed=step)
        assert torch.equal(fast(scores, count, valid), from_scores(scores, count, valid))
    assert counter.frame_count == 1
    there: Any = {"device": "meta", "dtype": torch.bool}
    scores = torch.empty(4, 5, 5, device="meta")
    mask = from_scores(scores, torch.empty(4, dtype=torch.int64, device="meta"), torch.empty(4, 5, 5, **there))
    assert (mask.shape, mask.device.type) == ((4, 5, 5), "meta")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1.0]], 1), TypeError, "real numbers.*got list"),
        ((torch.zeros(2, 2, dtype=torch.complex64), 1), TypeError, "got torch.complex64"),
        ((torch.zeros(2, 2).to_sparse(), 1), TypeError, r"dense tensor; got a torch.sparse_coo one.*to_dense\(\)"),
        ((torch.zeros(2, 2).to(torch.float8_e5m2), 1), TypeError, r"torch.float8_e5m2; .* by scores.float\(\)"),
        ((torch.zeros(4), 1), ValueError, r"\(B, gh, gw\).*got \(4,\)"),
        ((torch.zeros(2, 2), 5), ValueError, "from 0 to the 4 patches.*got 5"),
        ((torch.zeros(2, 2), -1), ValueError, "got -1"),
        ((torch.zeros(2, 2), 1.0), TypeError, r"got 1.0; round it by int\(\)"),
        ((torch.zeros(3, 2, 2), torch.zeros(2, dtype=torch.int64)), TypeError, r"shape \(3,\); got torch.int64 \(2,\)"),
        ((torch.zeros(3, 2, 2), torch.zeros(3)), TypeError, "got torch.float32"),
        (
            (torch.zeros(1, 2, 2), torch.zeros(1, dtype=torch.int64, device="meta")),
            ValueError,
            r"count is on meta, not on cpu; move it by count.to\('cpu'\)",
        ),
        ((torch.zeros(2, 2), 1, torch.zeros(2, 2)), TypeError, "valid is a bool tensor"),
        ((torch.zeros(2, 2), 1, torch.zeros(1, 2, dtype=torch.bool)), ValueError, r"shape \(2, 2\)"),
    ],
)
def test_scores_that_are_none_are_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        from_scores(*arguments)
    with pytest.raises(TypeError, match="seed is an int; got None"):
        from_scores(torch.zeros(2, 2), 1, seed=None)  # type: ignore[arg-type]
