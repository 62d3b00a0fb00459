"""Writing: every backend and every built-in fill against the definition, which writes every pixel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from gmml_aug import Alien, Fill, GroupMask, MaskPlan, Mean, Noise, Zeros, patch_to_pixel
from gmml_aug.filling import everywhere, operation
from gmml_aug.filling.fills import BUILT_IN, BuiltIn

from .backends import DEVICES, FILLS, WRITING

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EVERY: dict[Any, float] = {**dict.fromkeys(BUILT_IN, 1), Zeros(3): 1, Alien("group"): 2}
EACH: list[Any] = [*BUILT_IN, Alien("group"), EVERY]


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
            images[torch.rand(shape, generator=generator) < 0.02 * (i + 1)] = value
    return images


def whole(corrupt: GroupMask, images: Tensor, plan: MaskPlan, donors: Tensor | None = None) -> Tensor:
    """Return what functions over all pixels write: the definition."""
    if donors is not None:
        plan = plan._replace(donor=plan.pool_donor(len(donors)))
    each = (fill.values(images, plan, images if donors is None else donors) for fill in corrupt.fills)
    return everywhere.combined(images, plan.mask, plan.fill, enumerate(each))


def suits(fill: Fill, dtype: torch.dtype, batch: int, channels: int, pool: bool) -> bool:
    if isinstance(fill, Alien):
        return batch > 1 or pool
    if isinstance(fill, Zeros):
        return len(fill.channels()) in (1, channels)
    return not (isinstance(fill, Noise) and dtype == torch.uint8 and fill != Noise())


@pytest.mark.parametrize("name", WRITING)
@settings(max_examples=150)
@given(st.data())
def test_every_backend_writes_the_definitions_bits(name: str, data: st.DataObject) -> None:
    pick = data.draw
    dtype = pick(st.sampled_from(DTYPES))
    pairs: list[tuple[int, ...]] = [(1, 1), (4, 4), (7, 14), (16, 16), (8, 5), (1, 9), (3, 1)]
    patch = pick(st.sampled_from([*pairs, (2, 4, 4), (1, 1, 1), (3, 2, 5), (4, 8, 16)]))
    grid = pick(st.tuples(*[st.integers(1, 3)] * (len(patch) - 2), st.integers(1, 5), st.integers(2, 6)))
    batch, channels = pick(st.integers(1, 6)), pick(st.sampled_from([1, 3, 4]))
    frames = pick(st.sampled_from([(), (), (2,)])) if len(patch) == 2 else ()
    shape = (*frames, channels, *(side * length for side, length in zip(grid, patch, strict=True)))
    last = torch.channels_last if len(patch) == 2 else torch.channels_last_3d
    pool, inplace = pick(st.booleans()), pick(st.booleans())
    able = [fill for fill in FILLS if suits(fill, dtype, batch, channels, pool)]
    fills = pick(st.lists(st.sampled_from(able), min_size=1, max_size=4, unique=True))
    ratio: Any = pick(st.sampled_from([(0.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)]))
    corrupt = GroupMask(patch, ratio, dict.fromkeys(fills, 1), p=pick(st.sampled_from([1, 0.7])), seed=1)

    def some(number: int, seed: int) -> Tensor:
        images = random_images((number, *shape), dtype, seed)
        layout = pick(st.sampled_from(["contiguous", "channels_last", "strided"]))
        if layout == "channels_last" and not frames:
            return images.to(memory_format=last)
        return images.repeat_interleave(2, -1)[..., ::2] if layout == "strided" else images

    images, donors = some(batch, 0), some(3, 1) if pool else None
    drawn, device = corrupt.sample(images), DEVICES[name]
    operations = [fill.operation(images, drawn, donors) for fill in corrupt.fills if isinstance(fill, BuiltIn)]
    expected = images.clone()
    everywhere.write(images, expected, drawn.mask, drawn.fill, operations, donors)
    there = [each._replace(tensor=each.tensor.to(device)) for each in operations]
    out = images.to(device, copy=True)
    origin = out if inplace else images.to(device)
    arguments = (drawn.mask.to(device), drawn.fill.to(device), there, None if donors is None else donors.to(device))
    if not WRITING[name].takes(origin, out, *arguments):
        return
    WRITING[name].write(origin, out, *arguments)
    assert torch.equal(bits(out.cpu()), bits(expected))
    hidden = patch_to_pixel(drawn.mask, patch)
    visible = ~(hidden[:, None] if frames else hidden).expand(images.shape)
    if name != "filling.everywhere":  # torch.where() itself changes which NaN it is, in bfloat16
        assert torch.equal(raw(out.cpu())[visible], raw(images)[visible])


@pytest.mark.parametrize("name", WRITING)
def test_batches_that_lie_in_memory_without_gaps_are_taken(name: str) -> None:
    """Or the property above would compare nothing."""
    for layout in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        volume = layout == torch.channels_last_3d
        images = torch.rand(4, 3, *([16] * volume), 32, 32).to(DEVICES[name], memory_format=layout)
        drawn = GroupMask((8, 8, 8) if volume else 8, 0.5, "noise", seed=0).sample(images)
        each = [Noise().operation(images, drawn, None)]
        assert WRITING[name].takes(images, torch.empty_like(images), drawn.mask, drawn.fill, each, None)


@pytest.mark.parametrize("kind", operation.KINDS)
def test_every_kind_of_operation_is_some_built_in_fills(kind: int) -> None:
    """So that a kind that a backend does not know fails the property above."""
    images = torch.rand(4, 3, 32, 32)
    drawn = GroupMask(8, 0.5, seed=0).sample(images)
    kinds = {fill.operation(images, drawn, pool).kind for fill in BUILT_IN.values() for pool in (None, images)}
    assert kind in kinds


@pytest.mark.parametrize("inplace", [False, True])
def test_an_unknown_operation_is_refused_before_anything_is_written(
    inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = operation.Operation(len(operation.KINDS), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr(Noise, "operation", lambda *_: unknown)
    images = torch.rand(4, 3, 32, 32)
    before = images.clone()
    for fill in ("noise", {"noise": 1, "zeros": 1}, {"zeros": 1, "noise": 1}):
        with pytest.raises(ValueError, match="unknown operation"):
            GroupMask(8, 0.5, fill, seed=0, inplace=inplace)(images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("fill", BUILT_IN)
def test_the_registry_is_what_users_are_offered(fill: str, capsys: pytest.CaptureFixture[str]) -> None:
    from gmml_aug.__main__ import main

    assert GroupMask(fill=fill).fills == (BUILT_IN[fill],)
    assert f'``"{fill}"``' in (GroupMask.__doc__ or "")
    docs = Path(__file__).parent.parent / "docs"
    assert f'| `"{fill}"` |' in (docs / "guide.md").read_text("utf-8")
    assert f"::: gmml_aug.{type(BUILT_IN[fill]).__name__}\n" in (docs / "api.md").read_text("utf-8")
    with pytest.raises(SystemExit):
        main(["preview", "--help"])
    assert fill in capsys.readouterr().out


@pytest.mark.parametrize("fill", EACH)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_no_hidden_pixel_stays_as_it_was(fill: Any, ratio: float, backend: str) -> None:
    images = torch.rand(32, 3, 12, 20, generator=torch.Generator().manual_seed(0)) + 1  # odd grids have a middle
    out, mask = GroupMask(4, ratio, fill, seed=0)(images)
    assert (out != images)[patch_to_pixel(mask, 4).expand(images.shape)].all()


@pytest.mark.parametrize("inplace", [False, True])
def test_donors_that_are_not_in_the_batch_are_drawn_again(inplace: bool, backend: str) -> None:
    corrupt = GroupMask(4, 1.0, "alien", seed=4, inplace=inplace)
    images = torch.randn(4, 3, 8, 8)
    drawn = corrupt.sample(images)
    for donor in (torch.tensor([3, 2, 1, 4]), torch.tensor([-1, 2, 1, 0]), torch.tensor([1, 1, 2, 2])):
        fits = (donor >= 0) & (donor < 4) & (donor != torch.arange(4))
        out = corrupt.apply(images.clone(), drawn._replace(donor=donor)).images
        assert torch.equal(out, images[torch.where(fits, donor, drawn.donor)])


@pytest.mark.parametrize("fill", ["alien", Alien("group"), "shuffle"])
def test_images_that_are_written_one_by_one_are_copied_as_they_were(fill: Any, backend: str) -> None:
    images = torch.randn(6, 3, 256, 256)  # more values than functions write at once
    written = [GroupMask(64, 0.7, fill, seed=0, inplace=inplace)(images.clone()).images for inplace in (False, True)]
    assert torch.equal(*written)


@pytest.mark.parametrize("fill", EACH)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_of_slices_is_applied_as_its_copy_is(fill: Any, inplace: bool, backend: str) -> None:
    corrupt = GroupMask(8, 0.5, fill, seed=1, inplace=inplace)
    images = random_images((6, 3, 32, 48), torch.float32)
    part = MaskPlan(*(field[::2] for field in corrupt.sample((12, 3, 32, 48))))
    part = part._replace(donor=(torch.arange(12) + 1)[::2] % 6)
    turned = part._replace(mask=part.mask.transpose(1, 2).contiguous().transpose(1, 2))
    expected = corrupt.apply(images.clone(), MaskPlan(*(field.contiguous() for field in part))).images
    for plan in (part, turned):
        assert torch.equal(bits(corrupt.apply(images.clone(), plan).images), bits(expected))


def test_a_plan_of_more_fills_is_refused_before_anything_is_written(backend: str) -> None:
    images = torch.randn(4, 3, 8, 8)
    corrupt = GroupMask(4, 0.5, {"noise": 1, "zeros": 1}, seed=4, inplace=True)
    before, drawn = images.clone(), GroupMask(4, 0.5, {"noise": 1, "zeros": 1, "mean": 98}, seed=4).sample(images)
    for plan in (drawn, drawn._replace(fill=torch.tensor([0, -1, 1, 1]))):
        with pytest.raises(ValueError, match="fills of the one that drew it"):
            corrupt.apply(images, plan)
        with pytest.raises(ValueError, match="has 2"):
            corrupt.owner(plan)
    assert torch.equal(images, before)
    assert torch.equal(GroupMask(4, 0.5, "zeros").apply(images, drawn).mask, drawn.mask)  # one fill takes any plan


@pytest.mark.parametrize("inplace", [False, True])
def test_the_operators_keep_torchs_rules(inplace: bool, backend: str) -> None:
    corrupt = GroupMask(4, 0.5, EVERY, seed=4)
    images = torch.randn(4, 3, 8, 8)
    drawn = corrupt.sample(images)
    operations = [fill.operation(images, drawn, None) for fill in corrupt.fills if isinstance(fill, BuiltIn)]
    arguments = (images, drawn.mask, drawn.fill, None, *operation.packed(operations))
    operator = torch.ops.gmml_aug.write_.default if inplace else torch.ops.gmml_aug.write.default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    before = images._version
    operator(*arguments)
    assert (images._version > before) is inplace  # autograd sees the write


def test_the_mean_is_that_of_the_visible_pixels_by_channel(backend: str) -> None:
    images = random_images((8, 2, 3, 16, 16), torch.float32, special=False)
    corrupt = GroupMask(4, (0.2, 0.9), "mean", seed=0)
    drawn = corrupt.sample(images)
    hidden = patch_to_pixel(drawn.mask, 4)[:, None].expand(images.shape)
    out = corrupt.apply(torch.where(hidden, math.nan, images), drawn).images
    for i in range(8):
        for channel in range(3):
            mean = images[i, :, channel][~hidden[i, :, channel]].double().mean()
            assert torch.allclose(out[i, :, channel][hidden[i, :, channel]].double(), mean)
    assert torch.equal(out[~hidden], images[~hidden])


def test_the_mean_of_bytes_is_rounded_and_that_of_nothing_is_0(backend: str) -> None:
    images = torch.tensor([1, 2, 2, 2], dtype=torch.uint8).view(1, 1, 2, 2).repeat(2, 1, 4, 4)
    out, mask = GroupMask(2, 0.5, Mean(), seed=0)(images)
    assert (out[patch_to_pixel(mask, 2)] == 2).all()  # of 1.75
    assert (GroupMask(2, 1.0, "mean")(images).images == 0).all()
    assert GroupMask(2, 0.5, "mean")(images[:, :0]).images.shape == images[:, :0].shape  # no channels


def test_no_gradient_reaches_what_the_mean_leaves_out() -> None:
    corrupt, images = GroupMask(4, (0.1, 1.0), "mean", seed=2), torch.randn(16, 3, 32, 32)
    plan = corrupt.sample(images)
    hidden = patch_to_pixel(plan.mask, 4).expand(images.shape)
    poisoned = torch.where(hidden, math.nan, images).requires_grad_()
    corrupt.apply(poisoned, plan).images.square().sum().backward()
    assert poisoned.grad is not None
    assert (poisoned.grad[hidden] == 0).all()
    assert poisoned.grad.isfinite().all()


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
@pytest.mark.parametrize("fill", EACH)
@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_views_are_written_as_copies_are_and_nothing_around_them(
    view: int, fill: Any, inplace: bool, backend: str
) -> None:
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


@pytest.mark.parametrize("fill", EACH)
def test_expanded_images_are_written_as_copies_are(fill: Any, backend: str) -> None:
    corrupt = GroupMask(16, 0.5, fill, seed=1)
    for images in (torch.rand(1, 3, 64, 64).expand(6, -1, -1, -1), torch.rand(6, 1, 64, 64).expand(-1, 3, -1, -1)):
        before, plan = images.clone(), corrupt.sample(images)
        assert torch.equal(corrupt.apply(images, plan).images, whole(corrupt, before, plan))
        assert torch.equal(images, before)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("fill", ["alien", Alien("group"), {"noise": 1, "alien": 1}, {"alien": 1, "zeros": 1}])
def test_donors_may_be_some_of_the_images(fill: Any, inplace: bool, backend: str) -> None:
    """Also in place: a donor gives what it was, not what was written over it."""
    images = random_images((8, 3, 64, 64), torch.float32)
    corrupt = GroupMask(16, 0.5, fill, seed=1, inplace=inplace)
    plan = corrupt.sample(images)
    expected = whole(corrupt, images.clone(), plan, images[2:5].clone())
    out = corrupt.apply(images, plan, donors=images[2:5]).images
    assert torch.equal(bits(out), bits(expected))


class _Doubled:
    """Take twice the donor's pixels."""

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        pass

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        return 2 * donors[plan.donor]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_fill_of_ones_own_that_reads_donors(mixed: bool, pool: bool, inplace: bool, backend: str) -> None:
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


@pytest.mark.parametrize("fill", EACH)
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


@pytest.mark.parametrize("fill", EACH)
def test_vmap_writes_each_of_many_batches(fill: Any) -> None:
    batches, corrupt = torch.rand(3, 6, 3, 32, 32), GroupMask(8, 0.5, fill, seed=1)
    plan = corrupt.sample(batches[0])
    out = torch.vmap(lambda images: corrupt.apply(images, plan).images)(batches)
    assert torch.equal(out, torch.stack([whole(corrupt, images, plan) for images in batches]))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("fill", EACH)
def test_images_that_hold_no_values_have_their_shapes_followed(fill: Any, inplace: bool) -> None:
    with FakeTensorMode():
        out, mask = GroupMask(8, 0.5, fill, seed=1, inplace=inplace)(torch.empty(6, 3, 32, 32, dtype=torch.float16))
    assert (out.shape, out.dtype, mask.shape) == ((6, 3, 32, 32), torch.float16, (6, 4, 4))


@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", "shuffle"])
@pytest.mark.parametrize("shape", [(2, 0, 32, 32), (2, 0, 3, 32, 32), (0, 3, 32, 32)])
@pytest.mark.parametrize("inplace", [False, True])
def test_images_without_pixels_come_back_as_they_are(
    shape: tuple[int, ...], fill: str, inplace: bool, backend: str
) -> None:
    out, mask = GroupMask(8, 0.5, fill, seed=0, inplace=inplace)(torch.zeros(shape))
    assert out.shape == shape
    assert mask.shape == (shape[0], 4, 4)


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_zeros_keep_the_sign_of_zero(dtype: torch.dtype, backend: str) -> None:
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
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_temporary_is_nearly_as_large_as_the_images(
    fill: Any, inplace: bool, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the result, whose memory is NumPy's and not counted here, for whom large arrays of its own are counted."""
    pytest.importorskip("numba")
    import tracemalloc

    monkeypatch.setenv("GMML_AUG_BACKENDS", "compiled,functions")
    images = torch.zeros(48, 3, 224, 224).to(memory_format=layout)
    corrupt = GroupMask(16, 0.5, fill, seed=0, inplace=inplace)
    corrupt(images)  # what is kept for every call is not what is asked for here
    assert peak_bytes(lambda: corrupt(images)) < 0.1 * images.nbytes
    tracemalloc.start()  # NumPy's arrays are among what it sees
    try:
        corrupt(images)
        assert tracemalloc.get_traced_memory()[1] < (0.1 if inplace else 1.1) * images.nbytes
    finally:
        tracemalloc.stop()
