"""The fills, which replace hidden patches."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from gmml_aug import Alien, Fill, GroupMask, MaskPlan, Noise, Shuffle, Zeros, patch_to_pixel


def corrupted(fill: Any, images: Tensor, ratio: float = 0.5, **more: Any) -> tuple[Tensor, Tensor]:
    """Return the corrupted images and their hidden pixels."""
    out, mask = GroupMask(4, ratio, fill, seed=1, **more)(images)
    return out, patch_to_pixel(mask, 4).expand(images.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_zeros_write_their_value(dtype: torch.dtype) -> None:
    images = torch.full((4, 3, 16, 16), 9, dtype=dtype)
    for fill, expected in (
        (Zeros(), (0, 0, 0)),
        ("zeros", (0, 0, 0)),
        (Zeros(7), (7, 7, 7)),
        (Zeros([1, 2, 3]), (1, 2, 3)),
        (Zeros(Fraction(7)), (7, 7, 7)),  # type: ignore[arg-type]
    ):
        out, hidden = corrupted(fill, images)
        value = torch.tensor(expected, dtype=dtype)[:, None, None].expand(images.shape)
        assert torch.equal(out, torch.where(hidden, value, images))


def test_zeros_per_channel_of_clips() -> None:
    clips = torch.full((2, 5, 3, 16, 16), 9.0)
    out, mask = GroupMask(4, 0.5, Zeros([1, 2, 3]), seed=1)(clips)
    assert mask.shape == (2, 4, 4)
    hidden = patch_to_pixel(mask, 4)[:, None].expand(clips.shape)
    assert torch.equal(out, torch.where(hidden, torch.tensor([1.0, 2, 3])[:, None, None], clips))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_noise_has_its_mean_and_spread(dtype: torch.dtype) -> None:
    images = torch.zeros(8, 3, 128, 128, dtype=dtype)
    for fill, mean, std in ((Noise(), 0, 1), (Noise(mean=2, std=0.5), 2, 0.5)):
        out, hidden = corrupted(fill, images, ratio=1.0)
        assert hidden.all()
        # Five standard errors, and the rounding of 8 bits; the seed is fixed.
        assert out.double().mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(out.numel()) + 1e-3)
        assert out.double().std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * out.numel()) + 1e-3)


def test_noise_differs_from_image_to_image_and_place_to_place() -> None:
    out, _ = corrupted("noise", torch.zeros(4, 3, 32, 32), ratio=1.0)
    rows = out.flatten(1).double()
    correlation = torch.corrcoef(rows)[~torch.eye(4, dtype=torch.bool)]
    assert correlation.abs().max() < 5 / math.sqrt(rows.shape[1])
    half = rows.shape[1] // 2
    assert torch.corrcoef(torch.stack([rows[0, :half], rows[0, half:]]))[0, 1].abs() < 5 / math.sqrt(half)


def test_noise_of_uint8_is_uniform() -> None:
    out, _ = corrupted("noise", torch.zeros(8, 3, 128, 128, dtype=torch.uint8), ratio=1.0)
    counts = out.flatten().long().bincount(minlength=256).double()
    expected = out.numel() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * math.sqrt(2 * 255)


def test_shuffle_takes_whole_visible_patches_of_the_same_image() -> None:
    grid = torch.arange(16.0).view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1) * 100
    inner = torch.arange(16.0).view(4, 4).repeat(4, 4)  # names the place within the patch
    images = torch.stack([grid + inner, grid + inner + 5000])[:, None]
    corrupt = GroupMask(4, (0.2, 0.9), "shuffle", seed=3)
    seen = set()
    for _ in range(200):
        out, mask = corrupt(images)
        assert torch.equal(out % 100, images % 100)
        assert torch.equal(out >= 5000, images >= 5000)
        source = (out[:, 0, ::4, ::4] % 5000 // 100).long()
        place = torch.arange(16).view(1, 4, 4).expand(2, 4, 4)
        assert torch.equal(source[~mask], place[~mask])
        assert not mask.flatten(1).gather(1, source.flatten(1)).any()  # no source was hidden
        seen |= set(source[mask].tolist())
    assert seen == set(range(16))


def test_shuffle_of_a_fully_hidden_image_moves_every_patch() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(50):
        out, _ = GroupMask(4, 1.0, "shuffle")(images)
        assert (out != images).all()


def test_the_mixture_draws_by_weight() -> None:
    corrupt = GroupMask(1, 0.5, {"noise": 1, Alien(): 2, Zeros(3): 5}, seed=0)
    assert corrupt.fills == (Noise(), Alien(), Zeros(3))
    fill = corrupt.sample((80_000, 1, 2, 2)).fill
    shares = fill.bincount(minlength=3).double() / len(fill)
    for share, expected in zip(shares.tolist(), (0.125, 0.25, 0.625), strict=True):
        # Five standard errors each: fails about once in 10^6; the seed is fixed.
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(fill))


def test_each_image_gets_the_fill_of_the_plan() -> None:
    images = torch.full((200, 1, 8, 8), 9.0)
    corrupt = GroupMask(4, 0.5, {Zeros(1): 1, Zeros(2): 1, Zeros(3): 2}, seed=0)
    plan = corrupt.sample(images)
    out, mask = corrupt.apply(images, plan)
    hidden = patch_to_pixel(mask, 4)
    assert torch.equal(out, torch.where(hidden, (plan.fill + 1)[:, None, None, None].float(), images))
    assert set(plan.fill.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("frames", [(), (2,)])
@pytest.mark.parametrize("fill", [Alien("group"), {"zeros": 1, Alien("group"): 3, "alien": 1}])
def test_groups_take_the_pixels_of_their_donors_in_a_pool(fill: Any, frames: tuple[int, ...]) -> None:
    images, donors = torch.zeros(16, *frames, 3, 16, 16), torch.rand(5, *frames, 3, 16, 16)
    corrupt = GroupMask(4, 0.5, fill, group_size=(1, 2), seed=1)
    plan = corrupt.sample(images)
    out, mask = corrupt.apply(images, plan, donors=donors)
    kind = [corrupt.fills[i] for i in plan.fill]
    for i in range(16):
        for row, column in mask[i].nonzero().tolist():
            pixels = (..., slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            donor = plan.group_donor(5)[i, row, column] if kind[i] == Alien("group") else plan.pool_donor(5)[i]
            expected = torch.zeros(()) if kind[i] == Zeros() else donors[donor][pixels]
            assert torch.equal(out[i][pixels], expected.expand(out[i][pixels].shape))


def test_a_fill_of_ones_own_sees_the_groups() -> None:
    class Numbered:
        """The number of the group, in the first channel's patches."""

        def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
            pass

        def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
            return patch_to_pixel(plan.group, 4).to(images.dtype)

    images = torch.full((4, 1, 32, 32), -1.0)
    corrupt = GroupMask(4, 0.5, Numbered(), seed=1)
    plan = corrupt.sample(images)
    out, mask = corrupt.apply(images, plan)
    assert torch.equal(out[:, 0, ::4, ::4], plan.group.float())
    assert torch.equal(plan.group >= 0, mask)


def test_a_fill_of_ones_own() -> None:
    class Mean:
        def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
            pass

        def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
            return images.mean((-1, -2), keepdim=True)

    assert isinstance(Mean(), Fill)
    images = torch.randn(4, 3, 16, 16)
    out, hidden = corrupted(Mean(), images)
    assert torch.equal(out, torch.where(hidden, images.mean((-1, -2), keepdim=True), images))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(1, dtype=torch.float64), r"are torch.float64 and the images torch.float32; return values.to"),
        (torch.zeros(2, 4, 3, 16, 16), r"shape, \(4, 3, 16, 16\); got \(2, 4, 3, 16, 16\)"),
        (torch.zeros(4, 1, 4, 4), r"got \(4, 1, 4, 4\); patch_to_pixel"),
        (0.5, "got float"),
    ],
)
def test_a_fill_that_would_change_the_tensor_is_refused(values: Any, words: str) -> None:
    class Wrong:
        def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
            pass

        def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
            assert isinstance(values, (Tensor, float))
            return values  # type: ignore[return-value]

    with pytest.raises(TypeError, match=words):
        corrupted(Wrong(), torch.zeros(4, 3, 16, 16))


class NoCheck:
    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: GroupMask(fill="nose"), ValueError, "'zeros', 'noise', 'alien', 'shuffle'"),
        (lambda: GroupMask(fill={"noise": 1, "blur": 1}), ValueError, "unknown fill 'blur'"),
        (lambda: GroupMask(fill={"noise": 0}), ValueError, "positive"),
        (lambda: GroupMask(fill={"noise": -1.0}), ValueError, "positive"),
        (lambda: GroupMask(fill={"noise": math.nan}), ValueError, "positive"),
        (lambda: GroupMask(fill={"noise": math.inf}), ValueError, "finite"),
        (lambda: GroupMask(fill={"noise": "1"}), TypeError, "number"),  # type: ignore[dict-item]
        (lambda: GroupMask(fill={}), ValueError, "empty"),
        (lambda: GroupMask(fill=Noise), TypeError, r"instance such as Noise\(\)"),  # type: ignore[arg-type]
        (lambda: GroupMask(fill=["noise", "alien"]), TypeError, r"\{'noise': 1, 'alien': 1\}"),  # type: ignore[arg-type]
        (lambda: GroupMask(fill=NoCheck()), TypeError, r"both methods, check\(\) and values\(\)"),  # type: ignore[arg-type]
        (lambda: GroupMask(fill=NoCheck), TypeError, r"make an instance, NoCheck\(\)"),  # type: ignore[arg-type]
        (lambda: GroupMask(fill=3), TypeError, "'zeros'"),  # type: ignore[arg-type]
        (lambda: GroupMask(fill={"noise": 1e308, "zeros": 1e308}), ValueError, "add up"),
        (lambda: Zeros(math.nan), ValueError, "finite"),
        (lambda: Zeros([]), ValueError, "empty"),
        (lambda: Zeros("1"), TypeError, "one per channel"),  # type: ignore[arg-type]
        (lambda: Zeros(b"abc"), TypeError, "one per channel"),
        (lambda: Zeros([1, None]), TypeError, "one per channel"),  # type: ignore[list-item]
        (lambda: Noise(std=0), ValueError, "positive"),
        (lambda: Noise(mean=math.nan), ValueError, "finite"),
        (lambda: Alien("patch"), ValueError, "per 'image' or per 'group'; got per='patch'"),  # type: ignore[arg-type]
        (lambda: Noise(mean="0"), TypeError, "numbers"),  # type: ignore[arg-type]
    ],
)
def test_wrong_fills_are_refused(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()


@pytest.mark.parametrize(
    ("fill", "images", "words"),
    [
        (Zeros([1, 2]), torch.zeros(2, 3, 16, 16), "2 values.*3 channels"),
        (Zeros(0.5), torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "whole numbers from 0 to 255"),
        (Zeros(256), torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "whole numbers from 0 to 255"),
        (Zeros(70000), torch.zeros(2, 3, 16, 16, dtype=torch.float16), "range of torch.float16"),
        (Zeros(1e300), torch.zeros(2, 3, 16, 16), "range of torch.float32"),
        (Noise(std=1e5), torch.zeros(2, 3, 16, 16, dtype=torch.float16), "range of torch.float16"),
        (Noise(std=2), torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uniform noise over 0..255"),
        (Noise(mean=-1), torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uniform noise over 0..255"),
        (Alien(), torch.zeros(1, 3, 16, 16), "batch of one"),
        (Alien(), torch.zeros(3, 16, 16), "batch of one"),
        (Alien("group"), torch.zeros(1, 3, 16, 16), "batch of one"),
        ({"noise": 9, "alien": 1}, torch.zeros(1, 3, 16, 16), "donors="),
        (Shuffle(), torch.zeros(2, 3, 4, 4), "only one"),
    ],
)
def test_images_that_a_fill_cannot_take_are_refused_untouched(fill: Any, images: Tensor, words: str) -> None:
    before, corrupt = images.clone(), GroupMask(4, 0.5, fill, seed=0, inplace=True)
    with pytest.raises(ValueError, match=words):
        corrupt(images)
    assert torch.equal(images, before)
    assert corrupt.counter == 0
