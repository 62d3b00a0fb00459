"""Kornia: RandomGroupMask is one of its augmentations."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gmml_aug import Alien, GroupMask, MaskPlan, patch_to_pixel

pytest.importorskip("kornia", minversion="0.9")  # which Python 3.10 does not have
K = pytest.importorskip("kornia.augmentation")
from gmml_aug.interop.kornia import RandomGroupMask  # noqa: E402

ALL_FILLS: dict[Any, float] = {"zeros": 1, "noise": 1, "alien": 1, "shuffle": 1, Alien("group"): 1}


def numbered(*batch: int, side: int = 32) -> Tensor:
    """Images that are constant, each at a number of its own from 1: the pixels tell which image they come from."""
    return torch.arange(1.0, math.prod(batch) + 1).view(*batch, 1, 1, 1).expand(*batch, 3, side, side).contiguous()


def sources(images: Tensor, mask: Tensor) -> list[set[int]]:
    """Return which numbered images the hidden pixels of each image come from."""
    hidden = patch_to_pixel(mask, images.shape[-1] // mask.shape[-1]).expand(images.shape)
    return [set(image[here].int().tolist()) for image, here in zip(images, hidden, strict=True)]


@pytest.mark.parametrize("fill", [*ALL_FILLS, ALL_FILLS])
@pytest.mark.parametrize("invert", [False, True])
def test_it_is_group_mask(fill: Any, invert: bool) -> None:
    """With one seed: the same patches, the same pixels, the next batch too."""
    images = torch.rand(6, 3, 32, 32)
    how: dict[str, Any] = {"group_size": (1, 3), "placement": "inside", "invert": invert, "seed": 3}
    corrupt = GroupMask((8, 4), (0.2, 0.8), fill, **how)
    augment = RandomGroupMask((8, 4), (0.2, 0.8), fill, **how)
    for _ in range(2):
        expected = corrupt(images)
        assert torch.equal(augment(images), expected.images)
        assert torch.equal(augment.mask, expected.mask)


def test_without_a_seed_it_follows_torch() -> None:
    images, augment = torch.rand(4, 3, 32, 32), RandomGroupMask(8, fill=ALL_FILLS, p=0.5)
    torch.manual_seed(0)
    first, second = augment(images), augment(images)
    torch.manual_seed(0)
    assert torch.equal(augment(images), first)
    assert not torch.equal(second, first)


@settings(max_examples=40, derandomize=True)
@given(
    batch=st.integers(2, 5),
    seed=st.none() | st.integers(0, 2**63),
    fill=st.sampled_from([*ALL_FILLS, ALL_FILLS]),
    ratio=st.sampled_from([0.0, 0.3, (0.2, 0.9), 1.0]),
    group_size=st.sampled_from([None, (1, 1), (2, 3)]),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    same_on_batch=st.booleans(),
    container=st.sampled_from([None, K.ImageSequential, K.AugmentationSequential, K.VideoSequential]),
    draw=st.integers(0, 99),
)
def test_replay(
    batch: int,
    seed: int | None,
    fill: Any,
    ratio: Any,
    group_size: Any,
    p: float,
    same_on_batch: bool,
    container: Any,
    draw: int,
) -> None:
    """``_params`` give the same bits again, also in a fresh module and after other calls."""
    torch.manual_seed(draw)
    clip = (3,) if container is K.VideoSequential else ()
    images = torch.rand(batch, *clip, 3, 16, 24)

    def build() -> Any:
        augment = RandomGroupMask(4, ratio, fill, group_size=group_size, seed=seed, p=p, same_on_batch=same_on_batch)
        if container is None:
            return augment
        return container(K.RandomHorizontalFlip(), augment, K.RandomGaussianNoise(), random_apply=2)

    first = build()
    out = first(images)
    params = copy.deepcopy(first._params)
    first(images)
    for module in (first, build()):
        assert torch.equal(module(images, params=params), out)


def test_a_replay_hides_the_same_patches_of_another_view() -> None:
    augment = RandomGroupMask(8, (0.2, 0.8), "zeros", p=0.5)
    torch.manual_seed(1)
    augment(torch.rand(8, 3, 32, 32) + 1)
    mask = augment.mask
    assert 0 < mask.flatten(1).any(1).sum() < 8
    other = augment(torch.rand(8, 1, 32, 32, dtype=torch.float64) + 1, params=augment._params)
    assert torch.equal(other == 0, patch_to_pixel(mask, 8))
    assert torch.equal(augment.mask, mask)


def test_p_leaves_whole_images_alone() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 3, 16, 16)
    augment = RandomGroupMask(4, 0.5, "noise", p=0.3)
    out = augment(images)
    count = augment.mask.flatten(1).sum(1)
    assert set(count.tolist()) == {0, 8}
    assert torch.equal(count > 0, augment._params["batch_prob"] > 0.5)
    assert 90 <= (count > 0).sum() <= 150
    changed = (out != images).any(1, keepdim=True)
    assert torch.equal(changed, patch_to_pixel(augment.mask, 4))


def test_aliens_come_from_the_whole_batch() -> None:
    """So that ``p`` may choose a single image, and what it left alone still gives patches."""
    torch.manual_seed(0)
    images, augment = numbered(4), RandomGroupMask(8, 0.5, "alien", p=0.25)
    alone, donors = 0, set()
    for _ in range(200):
        out = augment(images)
        chosen = augment.mask.flatten(1).any(1)
        alone += int(chosen.sum() == 1)
        for i, source in enumerate(sources(out, augment.mask)):
            assert len(source) == int(chosen[i])
            assert i + 1 not in source
            donors |= {(i, number, bool(chosen[number - 1])) for number in source}
    assert alone > 20
    assert {(i, j) for i, j, _ in donors} == {(i, j + 1) for i in range(4) for j in range(4) if i != j}
    assert {was_chosen for *_, was_chosen in donors} == {True, False}


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_aliens_of_a_batch_of_one_are_refused_whatever_p_draws(p: float) -> None:
    for _ in range(5):
        with pytest.raises(ValueError, match="batch of one"):
            RandomGroupMask(8, fill="alien", p=p)(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="batch of one"):
        K.VideoSequential(RandomGroupMask(8, fill="alien", p=p))(torch.rand(1, 4, 3, 32, 32))


def test_same_on_batch() -> None:
    torch.manual_seed(0)
    images = numbered(5)
    fills, shifts = set(), set()
    for _ in range(20):
        augment = RandomGroupMask(8, (0.2, 0.8), {"noise": 1, "alien": 1}, same_on_batch=True)
        out = augment(images)
        assert augment.mask.shape == (5, 4, 4)
        assert (augment.mask == augment.mask[0]).all()
        hidden = out[:, patch_to_pixel(augment.mask[0], 8).expand(3, -1, -1)]
        alien = (hidden == hidden[:, :1]).all()
        fills.add(bool(alien))
        if alien:
            shift = (hidden[:, 0] - images[:, 0, 0, 0]) % 5
            assert (shift == shift[0]).all()
            shifts.add(int(shift[0]))
        else:
            assert (hidden == hidden[0]).all()
    assert fills == {True, False}
    assert shifts == {1, 2, 3, 4}
    assert int(RandomGroupMask(8, seed=0, same_on_batch=True)(images).shape[0]) == 5


def test_what_is_passed_beside_the_image_is_left_alone() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    labels = torch.randint(0, 20, (4, 1, 32, 32))
    soft = torch.rand(4, 2, 32, 32)
    boxes = torch.tensor([[2.0, 3.0, 10.0, 12.0]]).expand(4, 1, 4)
    points, classes = torch.rand(4, 5, 2) * 31, torch.arange(4)
    augment = RandomGroupMask(8, 0.5, ALL_FILLS, p=0.7)
    pipeline = K.AugmentationSequential(augment, data_keys=["input", "mask", "mask", "bbox_xyxy", "keypoints", "class"])
    beside = labels, soft, boxes, points, classes
    out, *rest = pipeline(images, *beside)
    assert augment.mask.any()
    assert torch.equal((out != images).any(1, keepdim=True), patch_to_pixel(augment.mask, 8))
    for after, before in zip(rest, beside, strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)
    assert torch.equal(pipeline.transform_matrix, torch.eye(3).expand(4, 3, 3))
    assert torch.equal(pipeline.inverse(out, data_keys=["input"]), out)


def test_a_segmentation_mask_moves_with_the_image_before_it() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 1, 32, 32) + 1
    augment = RandomGroupMask(8, 0.5, "zeros")
    pipeline = K.AugmentationSequential(
        K.RandomHorizontalFlip(), K.RandomAffine(0, translate=(0.2, 0.2)), augment, data_keys=["input", "mask"]
    )
    out, labels = pipeline(images, images.clone())
    hidden = patch_to_pixel(augment.mask, 8)
    assert (out[hidden] == 0).all()
    assert (labels[hidden] != 0).any()
    again = pipeline(images, images.clone(), params=pipeline._params)
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], labels)
    flipped = K.AugmentationSequential(K.RandomHorizontalFlip(p=1), augment, data_keys=["input", "mask"])
    assert torch.equal(flipped(images, images)[1], images.flip(-1))


@pytest.mark.parametrize("data_format", ["BTCHW", "BCTHW"])
@pytest.mark.parametrize("same_on_batch", [False, True])
def test_video_frames_share_one_draw(data_format: str, same_on_batch: bool) -> None:
    """One mask, one noise, and aliens from the same frame of one other clip."""
    torch.manual_seed(0)
    clips = numbered(3, 4)

    def run(pipeline: Any, clips: Tensor) -> Tensor:
        swapped = data_format == "BCTHW"
        out: Tensor = pipeline(clips.transpose(1, 2) if swapped else clips)
        return out.transpose(1, 2) if swapped else out

    for fill in ("alien", "noise"):
        augment = RandomGroupMask(8, (0.2, 0.8), fill, same_on_batch=same_on_batch)
        pipeline = K.VideoSequential(augment, data_format=data_format)
        out = run(pipeline, clips)
        assert augment.mask.shape == (12, 4, 4)
        mask = augment.mask.unflatten(0, (3, 4))
        assert (mask == mask[:, :1]).all()
        assert bool((mask == mask[0]).all()) == same_on_batch
        visible = ~patch_to_pixel(augment.mask, 8).expand(12, 3, 32, 32)
        assert torch.equal(out.flatten(0, 1)[visible], clips.flatten(0, 1)[visible])
        if fill == "alien":
            from_ = sources(out.flatten(0, 1), augment.mask)
            for place, source in enumerate(from_):
                (number,) = source
                assert (number - 1) % 4 == place % 4
                assert (number - 1) // 4 != place // 4
        else:
            still = run(pipeline, torch.zeros(3, 4, 3, 32, 32))
            assert (still == still[:, :1]).all()
            assert still.any()


def test_video_frames_of_their_own() -> None:
    torch.manual_seed(0)
    augment = RandomGroupMask(8, 0.5, "alien")
    out = K.VideoSequential(augment, same_on_frame=False)(numbered(1, 6))
    mask = augment.mask
    assert (mask != mask[0]).any()
    for place, source in enumerate(sources(out[0], mask)):
        assert len(source) == 1
        assert place + 1 not in source


def test_video_beside_its_segmentation() -> None:
    torch.manual_seed(0)
    clips, labels = torch.rand(2, 3, 3, 32, 32), torch.rand(2, 3, 1, 32, 32)
    augment = RandomGroupMask(8, 0.5, "zeros", p=0.5)
    pipeline = K.AugmentationSequential(K.VideoSequential(augment), data_keys=["input", "mask"])
    out, after = pipeline(clips, labels)
    assert torch.equal(after, labels)
    assert torch.equal((out == 0)[:, :, :1].flatten(0, 1), patch_to_pixel(augment.mask, 8))
    assert torch.equal(pipeline(clips, labels, params=pipeline._params)[0], out)


def test_one_image_and_keepdim() -> None:
    image = torch.rand(3, 32, 32)
    for keepdim, shape in ((False, (1, 3, 32, 32)), (True, (3, 32, 32))):
        augment = RandomGroupMask(8, 0.5, "noise", keepdim=keepdim)
        assert augment(image).shape == shape
        assert augment.mask.shape == (1, 4, 4)
    assert RandomGroupMask(8, keepdim=True)(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    augment = RandomGroupMask(8, p=0.5, same_on_batch=True)
    assert augment(torch.rand(0, 3, 32, 32)).shape == (0, 3, 32, 32)
    assert augment.mask.shape == (0, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32).to(dtype)
    for p in (0.5, 1.0):
        augment = RandomGroupMask(8, 0.5, ALL_FILLS, p=p)
        out = augment(images)
        assert out.dtype == dtype
        visible = ~patch_to_pixel(augment.mask, 8).expand_as(images)
        assert torch.equal(out[visible], images[visible])
        assert torch.equal(augment(images, params=augment._params), out)


def test_the_mask_is_on_the_images_device() -> None:
    """Also where the module was not moved to it; the meta device stands in for an accelerator."""
    for p in (0.5, 1.0):
        augment = RandomGroupMask(8, fill=ALL_FILLS, p=p)
        out = augment(torch.rand(4, 3, 32, 32, device="meta"))
        assert out.device.type == augment.mask.device.type == "meta"
        pipeline = K.AugmentationSequential(augment, data_keys=["input", "mask"])
        pipeline(torch.rand(4, 3, 32, 32, device="meta"), torch.rand(4, 1, 32, 32, device="meta"))
        assert augment.mask.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    images = torch.rand(4, 3, 32, 32, device="cuda")
    moved, left = (RandomGroupMask(8, fill=ALL_FILLS, p=0.5, seed=0) for _ in range(2))
    moved.to("cuda")
    for augment in (moved, left):
        out = augment(images)
        assert out.device == augment.mask.device == images.device
        assert torch.equal(augment(images, params=augment._params), out)
    for name in ("mask", "fill", "key", "group"):
        assert moved._params[name].device == images.device
        assert torch.equal(moved._params[name].cpu(), left._params[name])


def test_autograd_goes_through_what_is_visible() -> None:
    torch.manual_seed(0)
    for p in (0.5, 1.0):
        images = torch.rand(8, 3, 32, 32)
        images[0] = torch.nan
        images.requires_grad_()
        augment = RandomGroupMask(8, 0.5, "noise", p=p)
        (grad,) = torch.autograd.grad(augment(images).sum(), images)
        visible = ~patch_to_pixel(augment.mask, 8).expand_as(images)
        assert torch.equal(grad, visible.float())


def test_a_stream_goes_on_where_it_stopped() -> None:
    images = torch.rand(4, 3, 32, 32)
    first = RandomGroupMask(8, seed=5)
    pipeline = K.ImageSequential(first)
    pipeline(images)
    state = pipeline.state_dict()
    assert [int(number) for number in state.values()] == [4]
    restored = K.ImageSequential(RandomGroupMask(8, seed=5))
    restored.load_state_dict(state)
    copies = [restored, copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))]
    second = pipeline(images)
    for module in copies:
        assert torch.equal(module(images), second)
    assert not torch.equal(pipeline(images), second)
    assert RandomGroupMask(8).state_dict() == {}


def test_random_apply_leaves_its_masks_in_params() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) + 1
    pipeline = K.ImageSequential(RandomGroupMask(8, 0.5, "zeros"), K.RandomBrightness(p=1), random_apply=1)
    chosen = set()
    for _ in range(10):
        out = pipeline(images)
        (item,) = pipeline._params
        chosen.add(item.name)
        if item.name == "RandomGroupMask_0":
            assert torch.equal(out == 0, patch_to_pixel(item.data["mask"], 8).expand_as(out))
    assert len(chosen) == 2


def test_a_ratio_may_be_scheduled() -> None:
    augment = RandomGroupMask(8, 0.25)
    for ratio in (0.25, 0.5):
        augment.group_mask.ratio = ratio
        augment(torch.rand(2, 3, 32, 32))
        assert augment.mask.flatten(1).sum(1).tolist() == [16 * ratio] * 2


def test_its_parameters_are_tensors_with_the_batch_first() -> None:
    """A container repeats them over frames; what the plan says of donors follows from the key."""
    for same_on_batch in (False, True):
        drawn = RandomGroupMask(8, same_on_batch=same_on_batch).generate_parameters((3, 3, 32, 32))
        assert set(drawn) == set(MaskPlan._fields) - {"donor"}
        assert all(len(field) == 3 for field in drawn.values())


def test_wrong_input_is_refused_in_plain_words() -> None:
    for module in (RandomGroupMask(16), K.ImageSequential(RandomGroupMask(16), RandomGroupMask(8))):
        with pytest.raises(ValueError, match="height is 40 pixels, which is not a multiple of the patch's 16"):
            module(torch.rand(2, 3, 40, 32))
    with pytest.raises(ValueError, match="p is in"):
        RandomGroupMask(8, p=1.5)
    with pytest.raises(TypeError, match="keepdim is True or False; got 'no'"):
        RandomGroupMask(keepdim="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="p is a number"):
        RandomGroupMask(8, p="0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown fill"):
        RandomGroupMask(8, fill="blur")
    with pytest.raises(TypeError, match="uint8"):
        RandomGroupMask(8)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    augment = RandomGroupMask(8)
    augment(torch.rand(4, 3, 32, 32))
    with pytest.raises(ValueError, match="the plan is for a mask of"):
        augment(torch.rand(2, 3, 32, 32), params=augment._params)


def test_there_is_no_mask_before_a_call() -> None:
    with pytest.raises(RuntimeError, match="has not been called"):
        RandomGroupMask(8).mask  # noqa: B018


def test_it_tells_its_settings() -> None:
    text = repr(K.ImageSequential(RandomGroupMask(8, 0.5, "zeros", p=0.3)))
    assert "RandomGroupMask" in text
    assert "patch_size=(8, 8)" in text
    assert "p=0.3" in text


def test_group_mask_itself_after_kornia_augmentations() -> None:
    pipeline = nn.Sequential(K.RandomHorizontalFlip(p=0.5), K.RandomGaussianNoise(p=0.5), GroupMask(8))
    images, mask = pipeline(torch.rand(4, 3, 32, 32))
    assert images.shape == (4, 3, 32, 32)
    assert mask.shape == (4, 4, 4)
