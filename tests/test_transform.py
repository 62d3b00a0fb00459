"""GroupMask as a module: what it takes, what it returns, what it refuses."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import default_collate

from gmml_aug import Alien, GroupMask, Masked, MaskPlan, Noise, Zeros, mix_labels


def test_the_call_of_the_readme() -> None:
    corrupt = GroupMask(patch_size=16, ratio=(0.4, 0.7), fill={"noise": 1, "alien": 1})
    images, mask = corrupt(torch.randn(8, 3, 224, 224))
    assert images.shape == (8, 3, 224, 224)
    assert mask.shape == (8, 14, 14)
    assert mask.dtype == torch.bool
    masked = corrupt(images)
    assert isinstance(masked, Masked)
    assert masked.images is masked[0]


def test_importing_needs_torch_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import torch; after = set(sys.modules); import gmml_aug;"
        "print({m.split('.')[0] for m in set(sys.modules) - after} - set(sys.stdlib_module_names))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() in ("{'gmml_aug'}", "{'gmml_aug', 'torch'}", "{'torch', 'gmml_aug'}")


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 8, 8)])
def test_one_image(shape: tuple[int, ...]) -> None:
    image, corrupt = torch.randn(shape), GroupMask(8, 0.5, "noise", seed=0)
    plan = corrupt.sample(image, index=3)
    assert plan.mask.shape == (shape[1] // 8, shape[2] // 8)
    assert (plan.fill.shape, plan.donor.shape, plan.key.shape) == ((), (), ())
    out, mask = corrupt.apply(image, plan)
    assert out.shape == image.shape
    assert torch.equal(mask, plan.mask)
    batched = corrupt(image[None], index=torch.tensor([3]))
    assert torch.equal(out, batched.images[0])
    assert torch.equal(corrupt(image, index=torch.tensor(3)).images, out)
    assert torch.equal(corrupt.sample(shape, index=3).mask, mask)
    aliens = GroupMask(8, 1.0, "alien", seed=0)
    pool = torch.randn(5, *shape)
    assert torch.equal(aliens(image, index=3, donors=pool).images, pool[aliens.sample(image, index=3).pool_donor(5)])


def test_clips_share_one_mask_over_their_frames() -> None:
    clips = torch.randn(4, 5, 3, 32, 32)
    for fill in ("zeros", "noise", "alien", "shuffle"):
        corrupt = GroupMask(8, 0.5, fill, seed=0)
        plan = corrupt.sample(clips)
        assert plan.mask.shape == (4, 4, 4)
        out = corrupt.apply(clips, plan).images
        changed = (out != clips).unflatten(-1, (4, 8)).unflatten(-3, (4, 8)).any((1, 2, 4, 6))
        assert torch.equal(changed, plan.mask)
    noise = GroupMask(8, 1.0, "noise", seed=0)(clips).images
    assert not torch.equal(noise[:, 0], noise[:, 1])  # each frame has noise of its own
    aliens = GroupMask(8, 1.0, "alien", seed=0)
    assert torch.equal(aliens(clips).images, clips[aliens.sample(clips, index=torch.arange(4)).donor])


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (0, 2, 3, 32, 32)])
@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", "shuffle"])
def test_an_empty_batch_passes_through(shape: tuple[int, ...], fill: str) -> None:
    out, mask = GroupMask(8, 0.5, fill)(torch.empty(shape))
    assert out.shape == shape
    assert mask.shape == (0, 4, 4)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "images",
    [
        torch.randn(4, 3, 16, 24).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 16, 48)[..., ::2],
        torch.randn(3, 4, 16, 24).transpose(0, 1),
        torch.randn(4, 16, 24, 3).permute(0, 3, 1, 2),
        torch.randn(4, 3, 2, 16, 24).to(memory_format=torch.channels_last_3d).transpose(1, 2),
    ],
)
def test_memory_format_is_kept(images: Tensor, inplace: bool) -> None:
    images = images.detach().as_strided(images.shape, images.stride(), images.storage_offset())
    for fill in ("zeros", "noise", "alien", "shuffle", {"noise": 1, "shuffle": 1}):
        expected = images.stride() if inplace else torch.empty_like(images).stride()
        plain = images.contiguous().clone()
        out = GroupMask(8, 0.5, fill, seed=0, inplace=inplace)(images).images
        assert out.stride() == expected
        assert torch.equal(out, GroupMask(8, 0.5, fill, seed=0)(plain).images)


def test_in_place_aliens_come_from_the_images_as_they_were() -> None:
    images = torch.randn(16, 3, 16, 16)
    expected = GroupMask(4, 0.7, "alien", seed=0)(images)
    out = GroupMask(4, 0.7, "alien", seed=0, inplace=True)(images)
    assert out.images is images
    assert torch.equal(out.images, expected.images)


def test_p_leaves_images_alone() -> None:
    images = torch.randn(2000, 1, 8, 8)
    out, mask = GroupMask(2, 0.5, p=0.25, seed=0)(images)
    corrupted = mask.any(1).any(1)
    assert 400 < corrupted.sum() < 600
    assert (mask[corrupted].flatten(1).sum(1) == 8).all()
    assert torch.equal(out[~corrupted], images[~corrupted])
    assert not GroupMask(2, 0.5, p=0)(images).mask.any()


def test_a_model_that_holds_one_can_still_be_initialised() -> None:
    model = nn.Sequential(GroupMask(8), nn.Flatten())
    names: list[str] = []
    model.apply(lambda module: names.append(type(module).__name__))
    assert names == ["GroupMask", "Flatten", "Sequential"]
    assert model.half().eval().to("cpu")[0].counter.dtype == torch.int64


def test_repr_shows_the_arguments() -> None:
    text = repr(GroupMask(16, 0.5, {"noise": 1, "alien": 3}, seed=4))
    assert "ratio=(0.5, 0.5)" in text
    assert "Alien(per='image'): 3" in text
    assert "seed=4" in text


def test_numpys_integers_are_integers() -> None:
    corrupt = GroupMask(np.int64(8), 0.5, group_size=(np.int64(1), np.int32(2)), seed=0)  # type: ignore[arg-type]
    image = torch.zeros(3, 32, 32)
    expected = corrupt(image, index=3)
    assert torch.equal(corrupt(image, index=np.int64(3)).mask, expected.mask)
    assert torch.equal(corrupt.sample((np.int64(3), 32, 32), index=3).mask, expected.mask)  # type: ignore[arg-type]
    few = GroupMask(4, (0.1, 0.9), group_size={("all", "all"): 1}, invert=True, seed=0)  # its numbers are large
    for kind in (np.uint8, np.int16, np.uint64):
        again = deepcopy(few).sample(tuple(np.array([3, 3, 8, 36], kind)))
        assert torch.equal(again.mask, deepcopy(few).sample((3, 3, 8, 36)).mask)


def test_the_ratio_may_follow_a_schedule() -> None:
    corrupt = GroupMask(8, 0.25, seed=0)
    corrupt.ratio = 0.75
    assert corrupt(torch.zeros(2, 3, 32, 32)).mask.flatten(1).sum(1).tolist() == [12, 12]
    with pytest.raises(ValueError, match="reversed"):
        corrupt.ratio = (0.9, 0.1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("invert", "no", "invert is True or False; got 'no'"),
        ("inplace", 1, "inplace is True or False; got 1"),
        ("placement", "within", "placement is 'uniform' or 'inside'; got 'within'"),
        ("seed", 1.5, "seed is None or an int; got 1.5"),
        ("seed", 2**70, "seed has 64 bits"),
    ],
)
def test_what_is_set_later_is_checked_by_the_next_call(name: str, value: Any, said: str) -> None:
    corrupt, images = GroupMask(8, 0.5, seed=0), torch.ones(2, 3, 32, 32)
    setattr(corrupt, name, value)
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        corrupt(images)
    assert corrupt.counter == 0


@pytest.mark.parametrize("fill", ["zeros", "noise", "alien", "shuffle", {"shuffle": 1, "alien": 1}])
def test_gradients_in_place_are_those_out_of_place(fill: Any) -> None:
    gradients = []
    for inplace in (False, True):
        images = torch.ones(4, 3, 16, 16, requires_grad=True)
        noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        GroupMask(4, 0.5, fill, seed=0, inplace=inplace)(images * noise).images.square().sum().backward()
        gradients.append(images.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]


def test_built_in_inference_mode_it_counts_outside() -> None:
    with torch.inference_mode():
        corrupt = GroupMask(8, seed=0)
        corrupt(torch.zeros(2, 3, 32, 32))
    corrupt(torch.zeros(2, 3, 32, 32))
    assert corrupt.counter == 4


def test_on_the_meta_device_it_does_not_draw_garbage() -> None:
    with torch.device("meta"):
        corrupt = GroupMask(8, 0.5, seed=0)
    assert corrupt(torch.zeros(2, 3, 32, 32)).mask.sum() == 16
    with pytest.raises(ValueError, match="meta device"):
        corrupt.to("meta")(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("seed", [0, None])
def test_on_the_meta_device_it_is_copied_and_saved(seed: int | None) -> None:
    with torch.device("meta"):
        model = nn.Sequential(GroupMask(8, 0.5, seed=seed), nn.Linear(2, 2)).to("meta")
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copy.state_dict().keys() == model.state_dict().keys()
        assert copy[0].counter.is_meta
    real = model.to_empty(device="cpu")
    real.load_state_dict(nn.Sequential(GroupMask(8, seed=seed), nn.Linear(2, 2)).state_dict())
    assert real[0](IMAGES).mask.sum() == 32


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63, 2**64 - 1, np.int64(7)])
def test_any_64_bit_seed(seed: int) -> None:
    masks = [GroupMask(1, 0.5, seed=seed).sample((1, 16, 16)).mask for _ in range(2)]
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], GroupMask(1, 0.5, seed=1234).sample((1, 16, 16)).mask)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"patch_size": 0}, ValueError, "at least 1 pixel"),
        ({"patch_size": 16.0}, TypeError, "pair"),
        ({"patch_size": (16, 16, 16, 16)}, TypeError, "three|depth, height, width"),
        ({"patch_size": True}, TypeError, "pair"),
        ({"ratio": 1.1}, ValueError, r"in \[0, 1\]; got 1.1"),
        ({"ratio": -0.1}, ValueError, r"in \[0, 1\]"),
        ({"ratio": float("nan")}, ValueError, r"in \[0, 1\]"),
        ({"ratio": (0.7, 0.4)}, ValueError, r"reversed; write \(0.4, 0.7\)"),
        ({"ratio": (0.4, 1.7)}, ValueError, r"in \[0, 1\]"),
        ({"ratio": (0.4,)}, ValueError, "pair"),
        ({"ratio": "half"}, TypeError, "number"),
        ({"group_size": (3, 2)}, ValueError, "low <= high"),
        ({"group_size": (0, 2)}, ValueError, "1 <= low"),
        ({"group_size": ((1, 2), (2, 1))}, ValueError, "1 <= low <= high"),
        ({"group_size": ((1, 2), (1, 2), (1, 2))}, TypeError, "one for each of the 2 axes"),
        ({"group_size": {}}, ValueError, "mapping of sizes to weights is empty"),
        ({"group_size": {(1, "most"): 1}}, TypeError, "2 numbers of patches, or 'all' for an axis; got .1, 'most'"),
        ({"group_size": {(1, 2, 3): 1}}, TypeError, r"2 numbers of patches.*got \(1, 2, 3\)"),
        ({"group_size": {(0, 1): 1}}, ValueError, r"at least 1 patch a side; got \(0, 1\)"),
        ({"group_size": {(1, 1): 0}}, ValueError, "a size's weight is positive; got 0"),
        ({"group_size": {(1, 1): "1"}}, TypeError, "a size's weight is a number"),
        ({"group_size": 3}, TypeError, "pair"),
        ({"group_size": (1.0, 2.0)}, TypeError, "ints"),
        ({"placement": "outside"}, ValueError, "'uniform' or 'inside'"),
        ({"p": 1.5}, ValueError, "p is in"),
        ({"p": "1"}, TypeError, "number"),
        ({"seed": 1.0}, TypeError, "int"),
        ({"seed": 2**64}, ValueError, "64 bits"),
        ({"seed": True}, TypeError, "int"),
        ({"inplace": "False"}, TypeError, "True or False; got 'False'"),
        ({"invert": 1}, TypeError, "invert is True or False; got 1"),
        ({"inplace": 1}, TypeError, "True or False"),
        ({"ratio": 10**400}, ValueError, r"in \[0, 1\]; got 1000"),
        ({"p": "0.5"}, TypeError, "number"),
        ({"fill": {"noise": 10**400}}, ValueError, "range of floats"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        GroupMask(**arguments)


IMAGES = torch.zeros(4, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "more", "error", "words"),
    [
        (torch.zeros(4, 3, 33, 32), {}, ValueError, "height is 33 pixels.*32 or 40"),
        (torch.zeros(4, 3, 32, 31), {}, ValueError, "width is 31 pixels.*24 or 32"),
        (torch.zeros(4, 3, 8, 32), {}, ValueError, "groups of up to 2 patches.*side of 1"),
        (torch.zeros(32, 32), {}, ValueError, r"\(B, C, H, W\)"),
        (torch.zeros(1, 1, 1, 3, 32, 32), {}, ValueError, r"\(B, C, H, W\)"),
        (IMAGES.int(), {}, TypeError, "got torch.int32"),
        (IMAGES.long(), {}, TypeError, "got torch.int64"),
        (IMAGES.bool(), {}, TypeError, "got torch.bool"),
        (IMAGES.to(torch.complex64), {}, TypeError, "got torch.complex64"),
        (np.zeros((4, 3, 32, 32)), {}, TypeError, "torch.from_numpy"),
        (IMAGES, {"index": torch.arange(3)}, ValueError, r"shape \(4,\); got \(3,\)"),
        (IMAGES, {"index": torch.arange(4).int()}, TypeError, "int64"),
        (IMAGES, {"index": 1}, ValueError, r"shape \(4,\)"),
        (IMAGES, {"index": [0, 1, 2, 3]}, TypeError, "list"),
        (IMAGES, {"index": torch.arange(4, device="meta")}, ValueError, "meta device"),
        (IMAGES, {"donors": torch.zeros(4, 3, 32, 24)}, ValueError, r"\(N, 3, 32, 32\).*got \(4, 3, 32, 24\)"),
        (IMAGES, {"donors": torch.zeros(3, 32, 32)}, ValueError, r"got \(3, 32, 32\)"),
        (IMAGES, {"donors": torch.zeros(0, 3, 32, 32)}, ValueError, "at least 1"),
        (IMAGES, {"donors": IMAGES.double()}, ValueError, "dtype and device"),
        (IMAGES, {"donors": IMAGES.to("meta")}, ValueError, "on meta"),
        (IMAGES, {"donors": [IMAGES]}, TypeError, "list"),
        (IMAGES, {"donors": IMAGES}, ValueError, "the images themselves"),
        (torch.zeros(1, 3, 32, 32).expand(4, 3, 32, 32), {}, ValueError, "share memory"),
        (torch.zeros(3, 32, 40).as_strided((4, 3, 32, 32), (2, 1280, 40, 1)), {}, ValueError, "share memory"),
        (torch.zeros(4, 3, 32, 32, requires_grad=True), {}, ValueError, "leaf"),
        (torch.zeros(3, 32, 32, requires_grad=True), {"donors": IMAGES}, ValueError, "leaf"),
        (torch.zeros(6, 3, 32, 32, requires_grad=True)[:4], {}, ValueError, "leaf"),
    ],
)
def test_wrong_input_is_refused_untouched(
    images: Any, more: dict[str, Any], error: type[Exception], words: str
) -> None:
    corrupt = GroupMask(8, 0.5, {"noise": 1, "alien": 1}, group_size=(1, 2), seed=0, inplace=True)
    before = images.clone() if isinstance(images, Tensor) else None
    with pytest.raises(error, match=words):
        corrupt(images, **more)
    assert before is None or torch.equal(images, before)
    assert corrupt.counter == 0


def test_an_index_without_a_seed_or_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="has seed=None; give it an int"):
        GroupMask(8)(IMAGES, index=torch.arange(4))
    with pytest.raises(ValueError, match=r"64 bits.*got 9223372036854775808"):
        GroupMask(8, seed=0)(IMAGES[0], index=2**63)


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (IMAGES.to_sparse(), "torch.sparse_coo"),
        (torch.nested.nested_tensor([IMAGES[0], IMAGES[1]]), "nested"),
        (torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.quint8), "quantised"),
    ],
)
def test_tensors_that_are_not_dense_are_refused(images: Tensor, kind: str) -> None:
    for call in (GroupMask(8), GroupMask(8).sample):
        with pytest.raises(TypeError, match=f"got a {kind} one"):
            call(images)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_a_traced_graph_corrupts_what_it_is_given(backend: str, pre_dispatch: bool) -> None:
    images, others, corrupt = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32), GroupMask(8, fill="noise", seed=0)
    index, plan = torch.arange(4), corrupt.sample(images)
    for call in (lambda t: corrupt.apply(t, plan).images, lambda t: corrupt(t, index=index).images):
        graph = make_fx(call, pre_dispatch=pre_dispatch)(images)
        assert torch.equal(graph(others), call(others))


def test_tensors_that_dispatch_by_themselves_are_corrupted_by_torchs_operators(backend: str) -> None:
    images, mode = torch.randn(4, 3, 32, 32), FakeTensorMode()
    for fill in ("zeros", "noise"):
        corrupt = GroupMask(8, fill=fill, seed=0)
        plan = corrupt.sample(images)
        fake = corrupt.apply(mode.from_tensor(images), MaskPlan(*map(mode.from_tensor, plan))).images
        assert isinstance(fake, FakeTensor)
        both: Any = corrupt.apply(TwoTensor(images.clone(), images.clone()), plan).images
        assert torch.equal(both.a, corrupt.apply(images, plan).images)


def test_the_default_device_changes_nothing(backend: str) -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = GroupMask(8, fill="noise", seed=0)(images).images
    with torch.device("meta"):
        assert torch.equal(GroupMask(8, fill="noise", seed=0)(images).images, expected)


@pytest.mark.filterwarnings("ignore")
def test_torchscripts_tracing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use torch\.compile or torch\.export"):
        torch.jit.trace(GroupMask(8, seed=0), torch.randn(4, 3, 32, 32))


def test_a_dtensor_is_refused(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import distribute_tensor

    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        images = distribute_tensor(IMAGES, DeviceMesh("cpu", [0]))
        with pytest.raises(TypeError, match="to_local"):
            GroupMask(8)(images)
    finally:
        torch.distributed.destroy_process_group()


def test_replicas_of_data_parallel_are_refused_where_they_would_repeat_each_other() -> None:
    modules: list[Any] = [GroupMask(8, seed=seed) for seed in (0, None)]
    replicas = [module._replicate_for_data_parallel() for module in modules]
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        replicas[0](IMAGES)
    assert replicas[0](IMAGES, index=torch.arange(4)).mask.any()
    assert replicas[1](IMAGES).mask.any()


def test_a_pil_image_is_refused_with_its_conversion() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (32, 32))
    corrupt = GroupMask(8)
    for call in (corrupt, corrupt.sample, lambda x: corrupt.apply(x, corrupt.sample((3, 32, 32)))):
        with pytest.raises(TypeError, match=r"PIL\.Image.*pil_to_tensor"):
            call(image)


def test_plans_that_do_not_fit_are_refused() -> None:
    corrupt, images = GroupMask(8, 0.5, "alien"), torch.zeros(4, 3, 32, 32)
    plan = corrupt.sample(images)
    with pytest.raises(ValueError, match=r"\(4, 4, 4\).*need \(3, 4, 4\)"):
        corrupt.apply(images[:3], plan)
    with pytest.raises(ValueError, match=r"need \(4, 4, 2\)"):
        corrupt.apply(images[..., :16], plan)
    with pytest.raises(ValueError, match=r"plan.to\('cpu'\)"):
        corrupt.apply(images, plan.to("meta"))
    with pytest.raises(TypeError, match="sample"):
        corrupt.apply(images)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="got Masked"):
        corrupt.apply(images, Masked(images, plan.mask))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="batch of one"):
        corrupt.apply(images[:1], corrupt.sample(images[:1]))
    assert isinstance(plan, MaskPlan)
    assert plan._fields == ("mask", "fill", "donor", "key", "group")


def test_plans_of_single_images_make_a_plan_of_a_batch() -> None:
    images = torch.arange(1.0, 9).view(8, 1, 1, 1).expand(8, 1, 16, 16)
    corrupt = GroupMask(4, 1.0, {"alien": 1, Alien("group"): 1}, seed=3)
    plan = default_collate([corrupt.sample((1, 16, 16), index=i) for i in range(8)])
    assert (plan.donor == -1).all()
    shown = corrupt.apply(images, plan).images[:, 0, ::4, ::4]
    assert torch.equal(shown, corrupt(images, index=torch.arange(8)).images[:, 0, ::4, ::4])  # as if drawn for a batch
    assert torch.equal(shown, corrupt.owner(plan) + 1.0)
    assert (mix_labels(torch.arange(8), corrupt.owner(plan), 8).diag() == 0).all()
    part = MaskPlan(*(field[2:5] for field in plan))
    cut = corrupt.apply(images[2:5], part).images
    assert (cut != images[2:5]).all()
    assert set(cut.unique().tolist()) <= {3.0, 4.0, 5.0}


def test_groups_too_many_to_draw_are_refused() -> None:
    corrupt = GroupMask(1, 0.99999, group_size=(1, 2), seed=0)
    with pytest.raises(ValueError, match="larger groups"):
        corrupt.sample((1, 1, 1024, 1024))
    assert corrupt.counter == 0
    assert GroupMask(1, 1.0, group_size=(1, 2)).sample((1, 1, 1024, 1024)).mask.all()


def test_more_patches_than_can_be_ordered_are_refused() -> None:
    with pytest.raises(ValueError, match="larger patch_size"):
        GroupMask(1).sample((1, 1, 2049, 2048))


def test_a_sample_keeps_everything_but_its_image() -> None:
    corrupt, image = GroupMask(8, 0.5, "zeros", seed=0), torch.ones(3, 32, 32)
    plain = corrupt(image, index=7)
    samples: list[tuple[Any, Any, Any]] = [
        ((image, 3), 0, 1),
        ([image, torch.tensor(3)], 0, 1),  # the first plain tensor is the image
        ({"name": "cat", "pixels": image, "more": torch.ones(2)}, "pixels", "more"),
    ]
    for sample, key, other in samples:
        out = corrupt(sample, index=7)
        assert type(out) is type(sample)
        assert len(out) == len(sample)
        assert isinstance(out[key], Masked)
        assert torch.equal(out[key].images, plain.images)
        assert torch.equal(out[key].mask, plain.mask)
        assert out[other] is sample[other]
    masked, label = corrupt(image, 3, index=7)
    assert torch.equal(masked.images, plain.images)
    assert label == 3
    batch, labels = corrupt(torch.rand(4, 3, 32, 32), torch.arange(4))
    assert batch.mask.shape == (4, 4, 4)
    assert labels.tolist() == [0, 1, 2, 3]


def test_a_sample_without_an_image_is_refused_and_one_that_is_wrong_is_left_as_it_is() -> None:
    corrupt = GroupMask(8, 0.5, "zeros", seed=0, inplace=True)
    with pytest.raises(TypeError, match=r"no image.*it has int, str"):
        corrupt(("cat", 3))
    with pytest.raises(TypeError, match=r"no image.*nothing"):
        corrupt(())
    image = torch.ones(3, 30, 32)
    with pytest.raises(ValueError, match="height is 30"):
        corrupt({"image": image, "label": 3})
    assert (image == 1).all()
    assert corrupt.counter == 0


def test_the_owner_of_each_patch_is_the_image_that_it_shows() -> None:
    images = torch.arange(1.0, 65).view(64, 1, 1, 1).expand(64, 1, 16, 16)
    fill: dict[Any, float] = {"zeros": 1, "alien": 1, Alien("group"): 1, "shuffle": 1}
    for corrupt in (GroupMask(4, 0.5, fill, seed=0, p=0.8), GroupMask(4, 0.5, "alien"), GroupMask(4, 0.5, "noise")):
        plan = corrupt.sample(images)
        shown = corrupt.apply(images, plan).images[:, 0, ::4, ::4]
        owner = corrupt.owner(plan)
        kinds = [type(fill) for fill in corrupt.fills]
        own = torch.tensor([kind in (Zeros, Noise) for kind in kinds])[plan.fill][:, None, None] & plan.mask
        assert torch.equal(torch.where(own, owner + 1, shown), owner + 1)
        assert torch.equal(owner[own], torch.arange(64)[:, None, None].expand(64, 4, 4)[own])
    with pytest.raises(ValueError, match="plan of one image"):
        corrupt.owner(corrupt.sample(images[0]))
    with pytest.raises(TypeError, match="MaskPlan"):
        corrupt.owner(plan.mask)  # type: ignore[arg-type]


def test_a_sample_takes_donors() -> None:
    images, donors = torch.zeros(4, 3, 32, 32), torch.rand(5, 3, 32, 32)
    corrupt, index = GroupMask(8, 0.5, "alien", seed=0), torch.arange(4)
    (masked, label) = corrupt(images, "cat", index=index, donors=donors)
    assert torch.equal(masked.images, corrupt(images, index=index, donors=donors).images)
    assert label == "cat"


@pytest.mark.slow
def test_donors_of_other_sizes_compile() -> None:
    """The second size makes all of them symbols to the compiler."""
    torch.compiler.reset()
    eager, module = (GroupMask(4, 0.5, "alien", seed=0) for _ in range(2))
    fast = torch.compile(module, fullgraph=True, backend="eager")
    for side in (8, 12, 16):
        images, donors = torch.rand(2, 3, side, side), torch.rand(5, 3, side, side)
        got, expected = fast(images, donors=donors), eager(images, donors=donors)
        assert torch.equal(got.images, expected.images)
    with pytest.raises(ValueError, match=r"shape, \(N, 3, 16, 16\) with N at least 1; got \(5, 3, 8, 8\)"):
        eager(images, donors=donors[..., :8, :8])


@pytest.mark.parametrize("name", MaskPlan._fields)
def test_each_field_of_a_plan_is_checked(name: str) -> None:
    corrupt, images = GroupMask(8, 0.5, inplace=True), torch.zeros(4, 3, 32, 32)
    plan = corrupt.sample(images)
    field = getattr(plan, name)
    with pytest.raises(ValueError, match=f"for a {name} of .*2"):
        corrupt.apply(images, plan._replace(**{name: field[:2]}))
    with pytest.raises(TypeError, match=f"plan's {name} is"):
        corrupt.apply(images, plan._replace(**{name: field.to(torch.int16)}))
    assert (images == 0).all()


def test_a_batch_of_one_has_no_other_donor() -> None:
    corrupt = GroupMask(8, 0.5, Alien("group"), seed=0)
    plan = corrupt.sample((1, 3, 32, 32))
    assert (plan.group_donor() == -1).all()
    with pytest.raises(ValueError, match="batch of one"):
        corrupt.owner(plan)
    assert (GroupMask(8, 0.5, "noise").owner(plan) == 0).all()


def test_a_group_size_that_is_set_later_is_drawn_and_checked() -> None:
    index = torch.arange(3)
    corrupt, other = (GroupMask(1, 0.5, group_size=size, seed=0) for size in (None, {(1, 2): 1, (3, 1): 2}))
    corrupt.group_size = {(1, 2): 1, (3, 1): 2}
    assert corrupt.group_size == other.group_size
    for again in (corrupt, pickle.loads(pickle.dumps(corrupt)), deepcopy(corrupt)):
        masks = again.sample((3, 1, 14, 14), index=index).mask
        assert torch.equal(masks, other.sample((3, 1, 14, 14), index=index).mask)
    corrupt.group_size[(5, 5)] = 1  # into a copy
    with pytest.raises(ValueError, match="1 <= low <= high"):
        corrupt.group_size = (3, 1)
    assert corrupt.group_size == other.group_size
