"""On a CPU the package's own fills write little more than what they hide: the bits are those of writing every pixel."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from gmml_aug import Alien, GroupMask, MaskPlan, Noise, Zeros, patch_to_pixel, write

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EVERY: dict[Any, float] = {"zeros": 1, "noise": 1, "alien": 2, "shuffle": 2, Zeros(3): 1, Alien("group"): 2}


def raw(images: Tensor) -> Tensor:
    return images.contiguous().view(BITS[images.itemsize])


def bits(images: Tensor) -> Tensor:
    """Return what tells 0 from -0, and NaN from other numbers but not from another NaN."""
    return torch.where(images.isnan(), -1, raw(images)) if images.is_floating_point() else images


def random_images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, special: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand(shape, generator=generator) * 255).to(dtype)
    if special and dtype != torch.uint8:
        for i, value in enumerate((math.nan, math.inf, -math.inf, -0.0)):
            images[torch.rand(shape, generator=generator) < 0.05 * (i + 1)] = value
    return images


def whole(corrupt: GroupMask, images: Tensor, plan: MaskPlan, donors: Tensor | None = None) -> Tensor:
    """Return what functions over all pixels write: the definition."""
    if donors is not None:
        plan = plan._replace(donor=plan.pool_donor(len(donors)))
    return write._write_whole(images, plan, corrupt.fills, corrupt.patch_size, images if donors is None else donors)


@st.composite
def cases(draw: st.DrawFn) -> tuple[GroupMask, Tensor, Tensor | None]:
    """Draw a transform, images whose patches' rows are long enough for the quick way, and donors or None."""
    dtype = draw(st.sampled_from(DTYPES))
    patch = draw(st.sampled_from([(1, 1), (4, 4), (7, 14), (16, 16), (8, 5), (1, 9), (3, 1)]))
    grid = draw(st.tuples(st.integers(1, 6), st.integers(2, 6)))
    batch, channels = draw(st.integers(1, 9)), draw(st.sampled_from([1, 3, 4]))
    frames = draw(st.sampled_from([(), (), (), (2,)]))
    shape = (batch, *frames, channels, grid[0] * patch[0], grid[1] * patch[1])
    per_channel = Zeros(tuple(range(channels)))
    fills: list[Any] = ["zeros", Zeros(3), per_channel, "noise", "shuffle", {"noise": 1, "shuffle": 2, per_channel: 1}]
    if dtype != torch.uint8:
        fills += [Zeros(-1.5), Noise(-1, 0.3), {Noise(2, 3): 1, Noise(): 1}]
    pool = draw(st.booleans())
    if batch > 1 or pool:
        fills += ["alien", {"alien": 1, "noise": 1}, {"alien": 1, "shuffle": 1}, {"shuffle": 1, "alien": 2}, EVERY]
        fills += [Alien("group"), {"alien": 1, Alien("group"): 1}, {"alien": 1, Alien(): 1}]
    corrupt = GroupMask(
        patch,
        draw(st.sampled_from([(0.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)])),
        draw(st.sampled_from(fills)),
        p=draw(st.sampled_from([1, 0.7])),
        seed=draw(st.integers(0, 1000)),
        inplace=draw(st.booleans()),
    )
    images = random_images(shape, dtype, draw(st.integers(0, 100)))
    donors = random_images((draw(st.integers(1, 5)), *shape[1:]), dtype, 101) if pool else None
    if len(shape) == 4 and draw(st.booleans()):
        images = images.to(memory_format=torch.channels_last)
    if donors is not None and len(shape) == 4 and draw(st.booleans()):
        donors = donors.to(memory_format=torch.channels_last)
    return corrupt, images, donors


@settings(max_examples=500)
@given(cases(), st.sampled_from([1, 300, 1000, 5000, 2**22]), st.sampled_from([1, 1, 16]))
def test_the_quick_way_writes_the_same_bits(
    case: tuple[GroupMask, Tensor, Tensor | None], piece: int, shortest: int
) -> None:
    """Whatever is written at a time, and whether rows of one pixel are moved or not."""
    corrupt, images, donors = case
    before, plan = images.clone(), corrupt.sample(images)
    expected = bits(whole(corrupt, before, plan, donors))
    donors_before = None if donors is None else bits(donors).clone()
    with (
        mock.patch.object(write, "_PIECE", piece),
        mock.patch.object(write, "_SHORTEST", shortest),
        mock.patch.object(write, "_write_whole", wraps=write._write_whole) as slow,
    ):
        out = corrupt.apply(images, plan, donors=donors).images
    same_layout = donors is None or (donors.is_contiguous() == images.is_contiguous())
    assert slow.called <= (shortest > 1 or not same_layout)  # else this would compare one way with itself
    assert torch.equal(bits(out), expected)
    if not slow.called:  # torch.where() itself changes which NaN it is, in bfloat16
        hidden = patch_to_pixel(plan.mask, corrupt.patch_size)
        visible = ~(hidden if images.ndim == 4 else hidden[:, None]).expand(images.shape)
        assert torch.equal(raw(out)[visible], raw(before)[visible])
    assert (out.shape, out.dtype) == (before.shape, before.dtype)
    if corrupt.inplace:
        assert out is images
    else:
        assert torch.equal(bits(images), bits(before))
        assert out.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()
    # A side of 1 has any stride.
    assert all(a == b or side == 1 for a, b, side in zip(out.stride(), before.stride(), out.shape, strict=True))
    if donors is not None and donors_before is not None:
        assert torch.equal(bits(donors), donors_before)


VIEWS: list[Any] = [
    lambda x: x.transpose(2, 3),
    lambda x: x[:, :, 16:48, 16:48],
    lambda x: x[..., ::2],
    lambda x: x[::2],
    lambda x: x[:, 1:3],
    lambda x: x.permute(1, 0, 2, 3),
    lambda x: x[2:5],
    lambda x: x.to(memory_format=torch.channels_last)[1:4],
    lambda x: x.to(memory_format=torch.channels_last)[..., 16:, 16:],
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", Alien("group"), "shuffle", EVERY])
@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_views_are_written_as_copies_are_and_nothing_around_them(view: int, fill: Any, inplace: bool) -> None:
    base = random_images((7, 4, 64, 64), torch.float32)
    corrupt = GroupMask(16, 0.5, fill, seed=1, inplace=inplace)
    if view > 6:
        base = base.to(memory_format=torch.channels_last)
    images = VIEWS[view](base)
    before, plan = base.clone(), corrupt.sample(images)
    expected = whole(corrupt, images.clone(), plan)
    out = corrupt.apply(images, plan).images
    assert torch.equal(bits(out), bits(expected))
    if inplace:  # write the old pixels back: everything is as it was
        assert torch.equal(bits(VIEWS[view](base)), bits(expected))
        VIEWS[view](base).copy_(VIEWS[view](before))
    assert torch.equal(bits(base), bits(before))


@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", Alien("group"), "shuffle", EVERY])
def test_expanded_images_are_written_as_copies_are(fill: Any) -> None:
    corrupt = GroupMask(16, 0.5, fill, seed=1)
    for images in (torch.rand(1, 3, 64, 64).expand(6, -1, -1, -1), torch.rand(6, 1, 64, 64).expand(-1, 3, -1, -1)):
        before, plan = images.clone(), corrupt.sample(images)
        assert torch.equal(corrupt.apply(images, plan).images, whole(corrupt, before, plan))
        assert torch.equal(images, before)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("fill", ["alien", Alien("group"), {"noise": 1, "alien": 1}, {"alien": 1, "zeros": 1}])
def test_donors_may_be_some_of_the_images(fill: Any, inplace: bool) -> None:
    """Also in place: a donor gives what it was, not what was written over it."""
    images = random_images((8, 3, 64, 64), torch.float32)
    corrupt = GroupMask(16, 0.5, fill, seed=1, inplace=inplace)
    plan = corrupt.sample(images)
    expected = whole(corrupt, images.clone(), plan, images[2:5].clone())
    with mock.patch.object(write, "_PIECE", 5000):
        out = corrupt.apply(images, plan, donors=images[2:5]).images
    assert torch.equal(bits(out), bits(expected))


class _Doubled:
    """Take twice the donor's pixels."""

    def check(self, images: Tensor, grid: tuple[int, int], donors: Tensor | None) -> None:
        pass

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        return 2 * donors[plan.donor]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_fill_of_ones_own_that_reads_donors(mixed: bool, pool: bool, inplace: bool) -> None:
    images, others = torch.rand(16, 3, 32, 32), torch.rand(5, 3, 32, 32)
    fill: Any = {"zeros": 1, _Doubled(): 1, "alien": 1} if mixed else _Doubled()
    corrupt = GroupMask(8, 0.5, fill, seed=0, inplace=inplace)
    before, plan = images.clone(), corrupt.sample(images)
    donor = others[plan.pool_donor(5)] if pool else before[plan.donor]
    factor = torch.tensor([0.0, 2.0, 1.0] if mixed else [2.0])[plan.fill].view(-1, 1, 1, 1)
    out, mask = corrupt.apply(images, plan, donors=others if pool else None)
    assert torch.equal(out, torch.where(patch_to_pixel(mask, 8), factor * donor, before))
    assert set(plan.fill.tolist()) == set(range(len(corrupt.fills)))
    assert torch.equal(images, out if inplace else before)


class _Odd(Zeros):
    """A fill that is one of the package's own but for its values."""

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        return torch.full_like(images, 7)


def test_a_fill_derived_from_the_packages_own_keeps_its_values() -> None:
    out, mask = GroupMask(8, 0.5, _Odd(), seed=0)(torch.zeros(4, 3, 32, 32))
    assert torch.equal(out == 7, patch_to_pixel(mask, 8).expand_as(out))


@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", Alien("group"), "shuffle", EVERY])
def test_forward_derivatives_are_those_of_the_pixels_that_are_taken(fill: Any) -> None:
    images, tangent = torch.rand(6, 3, 32, 32, dtype=torch.float64), torch.rand(6, 3, 32, 32, dtype=torch.float64)
    for inplace in (False, True):
        corrupt = GroupMask(8, 0.5, fill, seed=1, inplace=inplace)
        plan = corrupt.sample(images)
        moved = whole(corrupt, images + tangent, plan) - whole(corrupt, images, plan)  # every fill is linear
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(images.clone(), tangent)
            out = forward_ad.unpack_dual(corrupt.apply(dual, plan).images)
        assert torch.equal(out.primal, whole(corrupt, images, plan))
        assert out.tangent is not None
        assert torch.allclose(out.tangent, moved)


@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", Alien("group"), "shuffle", EVERY])
def test_vmap_writes_each_of_many_batches(fill: Any) -> None:
    batches, corrupt = torch.rand(3, 6, 3, 32, 32), GroupMask(8, 0.5, fill, seed=1)
    plan = corrupt.sample(batches[0])
    out = torch.vmap(lambda images: corrupt.apply(images, plan).images)(batches)
    assert torch.equal(out, torch.stack([whole(corrupt, images, plan) for images in batches]))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", Alien("group"), "shuffle", EVERY])
def test_images_that_hold_no_values_have_their_shapes_followed(fill: Any, inplace: bool) -> None:
    with FakeTensorMode():
        out, mask = GroupMask(8, 0.5, fill, seed=1, inplace=inplace)(torch.empty(6, 3, 32, 32, dtype=torch.float16))
    assert (out.shape, out.dtype, mask.shape) == ((6, 3, 32, 32), torch.float16, (6, 4, 4))


@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", "shuffle"])
@pytest.mark.parametrize("shape", [(2, 0, 32, 32), (2, 0, 3, 32, 32), (0, 3, 32, 32)])
@pytest.mark.parametrize("inplace", [False, True])
def test_images_without_pixels_come_back_as_they_are(shape: tuple[int, ...], fill: str, inplace: bool) -> None:
    out, mask = GroupMask(8, 0.5, fill, seed=0, inplace=inplace)(torch.zeros(shape))
    assert out.shape == shape
    assert mask.shape == (shape[0], 4, 4)


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_zeros_keep_the_sign_of_zero(dtype: torch.dtype) -> None:
    for value in (0.0, -0.0):
        out = GroupMask(8, 1.0, Zeros(value))(torch.ones(2, 3, 32, 32, dtype=dtype)).images
        assert (out == 0).all()
        assert (out.signbit() == (math.copysign(1, value) < 0)).all()


def peak_bytes(run: Any) -> int:
    """Return how far the memory that torch has allocated on the CPU rises while this runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("fill", "share"),
    [
        ("zeros", 0.1),
        (Zeros(3), 0.25),
        (Zeros([1, 2, 3]), 0.4),
        ("noise", 0.5),
        ("alien", 0.2),
        (Alien("group"), 0.2),
        ("shuffle", 0.4),
    ],
)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_memory_grows_by_a_part_of_the_images_beside_the_output(
    fill: Any, share: float, inplace: bool, ratio: float
) -> None:
    """Of 96 images: beside 2 % to 8 % of them it is a few pieces of 4 MiB, of a batch of any size."""
    images = torch.zeros(96, 3, 224, 224)
    corrupt = GroupMask(16, ratio, fill, seed=0, inplace=inplace)
    corrupt(images)  # what is kept for every call is not what is asked for here
    output = 0 if inplace else images.nbytes
    assert output < peak_bytes(lambda: corrupt(images)) < output + share * images.nbytes
