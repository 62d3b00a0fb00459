"""The kernels give the bits of the functions for all devices: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmml_aug import Alien, GroupMask, MaskPlan, Noise, Shuffle, Zeros, groups, plan, rng, write

pytest.importorskip("triton", minversion="3.3")
from gmml_aug import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Sides = tuple[int, int]


@st.composite
def drawn_settings(draw: st.DrawFn) -> plan.Settings:
    grid = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))))
    low = draw(st.sampled_from([low, high]))  # one ratio may end in half a patch
    sizes = tuple(tuple(sorted(draw(st.tuples(st.integers(1, side), st.integers(1, side))))) for side in grid)
    sizes = draw(st.sampled_from([sizes, tuple(groups.group_range(side, None) for side in grid), ((1, 1), (1, 1))]))
    inside = draw(st.booleans())
    rectangles = groups.rectangles_needed(*grid, round(high * grid[0] * grid[1]), *sizes, inside)
    return plan.Settings(
        grid,
        (low, high),
        sizes,  # type: ignore[arg-type]
        inside,
        draw(st.sampled_from([1.0, 0.5])),
        draw(st.sampled_from([(1.0,), (1.0, 2.0), (3.0, 1.0, 1.0)])),
        min(rectangles, draw(st.sampled_from([63, 10**6]))),  # some run out
    )


@settings(max_examples=40)
@given(
    drawn_settings(),
    st.integers(1, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 2**31 - 2, 2**40]),
    st.data(),
)
def test_masks_fills_and_donors_are_the_same_bits(
    asked: plan.Settings, batch: int, root: int, first: int, data: st.DataObject
) -> None:
    samples = torch.arange(batch) + first
    how = data.draw(st.sampled_from(["numbers", "tensors", "index"]))
    if how == "index":
        samples = torch.tensor(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=batch, max_size=batch)))
        column = torch.stack([samples, samples + 1], 1).to(DEVICE)[:, 0]  # of a table: not contiguous
        got = kernels.draw(root, 0, column, batch, DEVICE, asked)
    elif how == "tensors":  # an unseeded draw, and a counter that lives on the device
        got = kernels.draw(
            torch.tensor(root, device=DEVICE), torch.tensor(first, device=DEVICE), None, batch, DEVICE, asked
        )
    else:
        got = kernels.draw(root, first, None, batch, DEVICE, asked)
    for mine, theirs in zip(got, plan._draw_batch(root, samples, asked), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine.cpu(), theirs)


def test_large_grids_and_batches_are_the_same_bits() -> None:
    for grid, batch in (((128, 128), 2), ((3, 60), 40), ((2, 2), 300)):
        sizes = (groups.group_range(grid[0], None), groups.group_range(grid[1], None))
        number = groups.rectangles_needed(*grid, round(0.5 * grid[0] * grid[1]), *sizes, False)
        asked = plan.Settings(grid, (0.4, 0.5), sizes, False, 0.9, (1.0, 2.0, 1.0), number)
        got = kernels.draw(7, 0, None, batch, DEVICE, asked)
        for mine, theirs in zip(got, plan._draw_batch(7, torch.arange(batch), asked), strict=True):
            assert torch.equal(mine.cpu(), theirs)


def bits(images: Tensor) -> Tensor:
    """Return the pixels' bits; which NaN it is, torch.where() does not keep for bfloat16 on a CPU."""
    numbers = images.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[images.itemsize])
    return numbers.masked_fill(images.isnan(), 0)


@settings(max_examples=60)
@given(st.data())
def test_pixels_are_the_same_bits(data: st.DataObject) -> None:
    pick = data.draw
    dtype = pick(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8]))
    patch = pick(st.sampled_from([(4, 4), (2, 6), (8, 5), (16, 16), (7, 14), (6, 6)]))
    grid = pick(st.sampled_from([(1, 2), (2, 2), (2, 3)]))
    batch, channels = pick(st.integers(1, 4)), pick(st.sampled_from([1, 2, 3]))
    frames = pick(st.sampled_from([(), (2,)]))
    shape = (*frames, channels, grid[0] * patch[0], grid[1] * patch[1])
    inplace = pick(st.booleans())
    torch.manual_seed(pick(st.integers(0, 100)))

    def some(number: int) -> Tensor:
        images = (torch.rand(number, *shape) * 255).to(dtype)
        if dtype != torch.uint8:
            images.view(-1)[:: pick(st.integers(3, 50))] = pick(st.sampled_from([float("nan"), float("inf"), -0.0]))
        if pick(st.booleans()) and not frames:
            images = images.to(memory_format=torch.channels_last)
        if pick(st.booleans()):
            images = images.repeat_interleave(2, -1)[..., ::2]  # not dense
        return images

    noise = Noise() if dtype == torch.uint8 else pick(st.sampled_from([Noise(), Noise(0.3, 1.7)]))
    kinds: list[Any] = [Zeros(), Zeros(7.0), Zeros(tuple(range(channels))), noise]
    donors = some(5) if pick(st.booleans()) else None
    if donors is not None or batch > 1:
        kinds += [Alien(), Alien("group")]
    if not inplace:
        kinds.append(Shuffle())
    fills = pick(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True))
    images = some(batch)
    corrupt = GroupMask(patch, (0.0, 1.0), dict.fromkeys(fills, 1), seed=pick(st.integers(0, 100)), p=0.8)
    drawn = corrupt.sample(images)

    described, values = write._described(corrupt.fills)
    there = images.to(DEVICE)
    pool = None if donors is None else donors.to(DEVICE)
    out = there.clone() if inplace else torch.empty_like(there)
    there = out if inplace else there
    if frames and channels > 1 and there.stride(1) != channels * there.stride(2):
        assert not kernels.can_write(there, out, described, patch, pool)
        return
    small = channels * (frames[0] if frames else 1) * patch[0] * patch[1] < kernels.LEAST_PIXELS
    assert kernels.can_write(there, out, described, patch, pool) is not small
    sources = Shuffle().sources(drawn).to(DEVICE)
    by_patch = write._by_patch(drawn, described, donors) if write._BY_GROUP in described else drawn
    plain = [2 if kind == write._BY_GROUP else kind for kind in described]
    kernels.write(there, out, by_patch.to(DEVICE), sources, pool, plain, values)
    expected = drawn if donors is None else drawn._replace(donor=drawn.pool_donor(5))
    wanted = write._write_whole(images, expected, corrupt.fills, patch, images if donors is None else donors)
    assert torch.equal(bits(out.cpu()), bits(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_noise_level_is_the_same_bits(dtype: torch.dtype) -> None:
    blank = torch.empty(1, 1, 512, 512, dtype=dtype)
    drawn, images = GroupMask(64, 1.0, "noise", seed=1).sample(blank), blank.to(DEVICE, copy=True)
    kernels.write(images, images, drawn.to(DEVICE), None, None, [1], [0.0, 1.0])
    wanted = Noise().values(blank, drawn, blank)
    if dtype == torch.float32:
        assert len(wanted.unique()) > 64_000  # of 65,536, after 262,144 draws
    assert torch.equal(bits(images.cpu()), bits(wanted))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 4, 6), (3, 2, 3, 16, 32)])
def test_the_operator_falls_back_where_the_kernel_does_not_go(
    shape: tuple[int, ...], inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches of two pixels, and fp64: the same call, by the functions for all devices."""
    used = []
    monkeypatch.setattr(write, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(kernels, "write", lambda *arguments: used.append(arguments))
    patch, dtype = ((2, 1), torch.float32) if len(shape) == 4 else ((16, 16), torch.float64)
    corrupt = GroupMask(patch, 0.5, {Noise(1, 2): 1, Zeros(3.0): 1, "alien": 1, "shuffle": 1}, seed=4)
    images = torch.randn(shape, dtype=dtype)
    drawn, donors = corrupt.sample(images), torch.randn(2, *shape[1:], dtype=dtype)
    wanted = corrupt.apply(images, drawn, donors=donors).images
    arguments = (*drawn, donors, *write._described(corrupt.fills), patch)
    if inplace:
        got = images.clone()
        torch.ops.gmml_aug.write_(got, *arguments)
    else:
        got = torch.ops.gmml_aug.write(images, *arguments)
    assert torch.equal(got, wanted)
    assert not used


def test_the_operator_launches_the_kernel_and_keeps_torchs_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "kernels_for", lambda device: kernels)
    corrupt = GroupMask(4, 0.5, {"noise": 1, "alien": 1, Alien("group"): 1}, seed=4)
    images = torch.randn(4, 3, 8, 8, device=DEVICE)
    drawn = corrupt.sample(torch.empty(4, 3, 8, 8)).to(DEVICE)
    arguments = (*drawn, None, *write._described(corrupt.fills), (4, 4))
    wanted = corrupt.apply(images.cpu(), MaskPlan(*drawn).to("cpu")).images
    assert torch.equal(torch.ops.gmml_aug.write(images, *arguments).cpu(), wanted)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.gmml_aug.write.default, (images, *arguments), test_utils=checks)
    torch.library.opcheck(torch.ops.gmml_aug.write_.default, (images.clone(), *arguments), test_utils=checks)
    before = images._version
    torch.ops.gmml_aug.write_(images, *arguments)
    assert torch.equal(images.cpu(), wanted)
    assert images._version > before  # autograd sees the write


def test_a_plan_of_slices_and_of_another_module_stays_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "kernels_for", lambda device: kernels)
    many, two = (GroupMask(4, 0.5, fill, seed=4) for fill in ({"noise": 1, Zeros(1.0): 1, Zeros(2.0): 1}, "alien"))
    drawn = many.sample(torch.empty(8, 3, 8, 8))
    images = torch.randn(4, 3, 8, 8)
    slices = MaskPlan(*(field[::2] for field in drawn))._replace(donor=torch.tensor([3, 2, 1, 0]))
    for corrupt in (many, two, GroupMask(4, 0.5, {"noise": 1, "zeros": 1})):
        plain = slices if len(corrupt.fills) > 1 else slices._replace(fill=torch.zeros(4, dtype=torch.int64))
        arguments = (None, *write._described(corrupt.fills), (4, 4))
        got = torch.ops.gmml_aug.write(images.to(DEVICE), *plain.to(DEVICE), *arguments).cpu()
        wanted = corrupt.apply(images, slices).images
        assert torch.equal(got, wanted)


def test_a_whole_call_goes_through_both_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a CUDA tensor takes, counter and all; on a CPU the kernels are put in its way."""
    launched = []

    def spy(name: str) -> Any:
        kernel = getattr(kernels, name)
        return lambda *arguments: launched.append(name) or kernel(*arguments)  # type: ignore[func-returns-value]

    for name in ("draw", "write"):
        monkeypatch.setattr(kernels, name, spy(name))
    monkeypatch.setattr(plan, "kernels_for", lambda device: kernels if device.type == DEVICE.type else None)
    monkeypatch.setattr(plan, "_FEW_RECTANGLES", 0)
    monkeypatch.setattr(write, "kernels_for", lambda device: kernels)
    corrupt = GroupMask(4, 0.5, seed=3)
    masks = [corrupt.sample(torch.empty(2, 1, 16, 16, device=DEVICE)).mask.cpu() for _ in range(2)]
    assert launched == ["draw", "draw"]
    assert torch.equal(
        torch.cat(masks), GroupMask(4, 0.5, seed=3).sample(torch.empty(4, 1, 16, 16, device="cpu")).mask.cpu()
    )
    assert int(corrupt.counter) == 4


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gmml_aug import kernels

def build(kernel, types, constants, warps):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})

longs = {"fill_ptr": "*i64", "donor_ptr": "*i64", "key_ptr": "*i64", "group_ptr": "*i32"}
numbers = "sample batch least most low_height heights low_width widths rectangles".split()
types = {**longs, "mask_ptr": "*i1", "root_ptr": "*i64", "sample_ptr": "*i64", "share_ptr": "*i64",
         **dict.fromkeys(numbers, "i32"), **dict.fromkeys(["root", "start", "stop", "p"], "i64")}
build(kernels._draw_kernel, types, dict(HEIGHT=14, WIDTH=14, SHARES=2, INSIDE=False, ROOT=True, SAMPLE=1, BLOCK=256), 1)
patch = dict(ROWS=14, COLUMNS=14, HEIGHT=16, WIDTH=16, PIXELS=768, IMAGE=150528, PLANE=50176, LINE=224, PIXEL=1)
steps = {f"{to}_{name}": patch[name] for to in ("OUT", "POOL") for name in ("IMAGE", "PLANE", "LINE", "PIXEL")}
flags = dict.fromkeys(["POOL", "ZEROS", "NOISE", "ALIEN", "SHUFFLE", "SCALED"], True)
types = {**longs, "mask_ptr": "*i1", "source_ptr": "*i64", "kind_ptr": "*i32", "scale_ptr": "*fp32",
         "cubic_ptr": "*i32", "pool": "i32", "batch": "i32"}
for kind in ("fp32", "fp16", "bf16", "u8"):
    pixels = dict.fromkeys(["out_ptr", "image_ptr", "pool_ptr", "value_ptr"], "*" + kind)
    per_word = 8 if kind == "u8" else 4
    for by_patch in (False, True):
        constants = dict(**patch, **steps, **flags, INPLACE=False, BY_PATCH=by_patch, KINDS=4, CHANNELS=3,
                         PER_WORD=per_word, BLOCK=1024)
        build(kernels._write_kernel, types | pixels, constants, 4)
types = {**longs, "image_ptr": "*fp32", "mask_ptr": "*i1", "kind_ptr": "*i32", "batch": "i32"}
for by_patch in (False, True):
    build(kernels._alien_kernel, types, dict(**patch, BY_PATCH=by_patch, KINDS=2, IMAGES=256, BLOCK=32), 16)
print("built")
"""


def test_the_kernels_compile_for_a_gpu() -> None:
    """The interpreter takes more than the compiler does; the compiler needs no GPU."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=without, capture_output=True, text=True)
    assert done.stdout.strip() == "built", done.stderr[-2000:]


def test_a_key_and_a_word_are_the_generators() -> None:
    asked = plan.Settings((2, 2), (0.5, 0.5), ((1, 1), (1, 1)), False, 1.0, (1.0,), 0)
    for root in (0, 1, -1, 2**63 - 1, -(2**63)):
        assert kernels.draw(root, 5, None, 1, DEVICE, asked)[3].item() == rng.keys(root, torch.tensor([5])).item()
