"""Volumes: three axes do what two do. The properties of the other files run over volumes too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gmml_aug import Alien, GroupMask, Masked, describe, keep_indices, masked_indices, mix_labels, patch_to_pixel

from .test_guarantees import FILLS, images_of, same

VOLUMES = (4, 2, 8, 12, 16)
PATCH = (2, 3, 4)


@pytest.mark.parametrize("fill", FILLS)
def test_volumes_their_views_and_one_volume(fill: Any, backend: str) -> None:
    corrupt, volumes, index = GroupMask(PATCH, (0.3, 0.7), fill, seed=0), images_of(VOLUMES), torch.arange(4) * 9
    out = corrupt(volumes, index=index)
    assert out.mask.shape == (4, 4, 4, 4)
    hidden = patch_to_pixel(out.mask, PATCH).expand(VOLUMES)
    assert torch.equal(out.images[~hidden], volumes[~hidden])
    donors = images_of(VOLUMES, seed=1)
    whole = corrupt(volumes, index=index, donors=donors)
    alone = [corrupt(volumes[i], index=int(index[i]), donors=donors) for i in range(4)]
    parts = Masked(*(torch.stack(part) for part in zip(*alone, strict=True)))
    assert torch.equal(whole.mask, parts.mask)
    assert torch.allclose(whole.images, parts.images)
    for layout in (volumes.to(memory_format=torch.channels_last_3d), volumes.repeat_interleave(2, -1)[..., ::2]):
        for inplace in (False, True):
            again = GroupMask(PATCH, (0.3, 0.7), fill, seed=0, inplace=inplace)
            images = layout.clone()
            got = again(images, index=index)
            assert torch.allclose(got.images, out.images)
            assert (got.images is images) == inplace
            assert got.images.stride() == images.stride()


def test_a_volume_of_one_slice_is_an_image(backend: str) -> None:
    images = images_of((6, 3, 20, 28))
    flat, deep = (GroupMask(patch, fill={"noise": 1, "shuffle": 1}, seed=5) for patch in (4, (1, 4, 4)))
    wanted, got = flat(images), deep(images[:, :, None])
    assert torch.equal(got.mask[:, 0], wanted.mask)
    assert torch.equal(got.images[:, :, 0], wanted.images)


def test_groups_are_boxes_and_every_patch_is_hidden_about_equally_often() -> None:
    corrupt = GroupMask((1, 1, 1), 0.3, group_size=(2, 3), placement="inside", seed=0)
    mask = corrupt.sample((300, 1, 6, 7, 8)).mask.float()[:, None]
    corners = 1 - F.max_pool3d(1 - mask, 2, stride=1)  # of hidden cubes of two
    covered = F.max_pool3d(F.pad(corners, (1,) * 6), 2, stride=1)
    left_over = (mask - covered).clamp(min=0)[:, 0]
    assert left_over.any()  # some group was cut
    for patches in left_over:
        places = patches.nonzero()
        if len(places):
            assert (places.max(0).values - places.min(0).values).max() < 3
    often = GroupMask((1, 1, 1), 0.4, seed=0).sample((20_000, 1, 8, 8, 8)).mask.double().mean(0)
    assert often.max() / often.min() < 1.12  # of 512 binomials chance alone makes some 1.06; the seed is fixed


def test_tubes_reach_through_all_frames() -> None:
    mask = GroupMask((2, 4, 4), 0.5, group_size={("all", 2, 2): 1}, seed=0).sample((100, 3, 8, 32, 32)).mask
    parts = mask.flatten(2).double().mean(2)
    assert (mask.flatten(1).sum(1) == 128).all()
    differs = (mask != mask[:, :1]).any(1).flatten(1).sum(1)
    assert (differs <= 4).all()  # but for the last tube, which is cut
    assert parts.std(1).max() < 0.1


def test_labels_owners_and_indices_of_volumes() -> None:
    volumes = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 4, 8, 8)
    for fill in ("alien", Alien("group")):
        corrupt = GroupMask((2, 2, 2), 0.5, fill, seed=0)
        plan = corrupt.sample(volumes)
        owner = corrupt.owner(plan)
        assert torch.equal(corrupt.apply(volumes, plan).images[:, 0, ::2, ::2, ::2].long(), owner)
        soft = mix_labels(torch.arange(4), owner, 4)
        assert torch.allclose(soft.diagonal(), torch.full((4,), 0.5))
        hidden, shown = masked_indices(plan.mask), keep_indices(plan.mask)
        assert hidden.shape == shown.shape == (4, 16)
        assert plan.mask.flatten(1).gather(1, hidden).all()
    single = corrupt.sample(volumes[0])
    assert (single.mask.shape, single.key.shape) == ((2, 4, 4), ())
    with pytest.raises(ValueError, match="no other image"):
        corrupt.owner(single)


def test_components_are_connected_in_three_dimensions() -> None:
    mask = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    mask[0, :, 1, 1] = True  # a column through all slices
    mask[1, 0, 0, 0] = mask[1, 1, 1, 0] = mask[1, 2, 1, 0] = True
    figures = describe(mask)
    assert figures.components.tolist() == [1, 2]
    assert figures.sizes.tolist() == [[3, 0], [2, 1]]
    assert "3 x 3 x 3 patches" in str(figures)
    scipy = pytest.importorskip("scipy.ndimage")
    random = torch.rand(50, 4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    assert describe(random).components.tolist() == [scipy.label(one.numpy())[1] for one in random]
    assert torch.equal(describe(np.asarray(random)).sizes, describe(random).sizes)


def test_patch_to_pixel_repeats_patches_of_volumes() -> None:
    mask = torch.rand(2, 2, 3, 4) < 0.5
    pixels = patch_to_pixel(mask, PATCH)
    assert pixels.shape == (2, 1, 4, 9, 16)
    assert torch.equal(pixels[:, 0, 1::2, 2::3, 3::4], mask)
    assert torch.equal(patch_to_pixel(mask[0], PATCH), pixels[0])
    with pytest.raises(ValueError, match=r"\(B, gd, gh, gw\) or \(gd, gh, gw\) with.*\(2, 3, 4\); got \(3, 4\)"):
        patch_to_pixel(mask[0, 0], PATCH)
    with pytest.raises(ValueError, match=r"\(B, gh, gw\) or \(gh, gw\) with patches of \(2, 2\)"):
        patch_to_pixel(mask, 2)


def test_gradients_of_volumes() -> None:
    for fill in FILLS:
        corrupt = GroupMask((2, 2, 2), 0.5, fill, seed=4)
        volumes = images_of((3, 2, 4, 4, 4), torch.float64).requires_grad_()
        plan = corrupt.sample(volumes)
        assert torch.autograd.gradcheck(lambda x, by=corrupt, plan=plan: by.apply(x, plan).images, (volumes,))


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
def test_volumes_compile_once(fill: Any) -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter: Any = CompileCounter()
    eager, module = (GroupMask(PATCH, 0.5, fill, group_size={(1, 2, 2): 1, ("all", 1, 1): 1}, seed=0) for _ in range(2))
    fast = torch.compile(module, fullgraph=True, backend=counter)
    for step in range(4):
        volumes, valid = images_of(VOLUMES, seed=step), images_of((4, 4, 4, 4), seed=step) > -1
        module.ratio = eager.ratio = 0.1 + step / 10
        got, wanted = fast(volumes, valid=valid), eager(volumes, valid=valid)
        assert torch.equal(got.mask, wanted.mask)
        assert torch.allclose(got.images, wanted.images)
    assert counter.frame_count == 1


@pytest.mark.parametrize("shape", [(2, 1, 96, 96, 96), (2, 3, 16, 32, 32), (2, 4, 64, 32, 32)])
def test_volumes_that_would_be_taken_for_clips_are_refused(shape: tuple[int, ...]) -> None:
    """The error names the ways out, each of which works."""
    volumes = torch.zeros(shape)
    for call in (lambda: GroupMask(16)(volumes), lambda: GroupMask(16).sample(shape)):
        with pytest.raises(ValueError, match=r"patch_size=\(depth.*transpose\(1, 2\).*flatten\(1, 2\)"):
            call()
    assert GroupMask((16, 16, 16))(volumes).mask.ndim == 4
    assert GroupMask(16)(volumes.transpose(1, 2)).mask.ndim == 3
    assert GroupMask(16)(volumes.flatten(1, 2)).mask.ndim == 3


@pytest.mark.parametrize(
    ("arguments", "images", "words"),
    [
        ({"patch_size": 8}, torch.zeros(2, 4, 3, 16, 16), None),  # clips, as ever
        ({"patch_size": (4, 8, 8)}, torch.zeros(3, 16, 16), r"volumes \(B, C, D, H, W\).*got \(3, 16, 16\)"),
        ({"patch_size": (4, 8, 8)}, torch.zeros(1, 3, 6, 16, 16), "depth is 6 pixels.* 4 or 8"),
        ({"patch_size": (4, 8, 8), "group_size": (1, 2)}, torch.zeros(1, 3, 4, 16, 16), "up to 2 .*side of 1"),
        ({"patch_size": (1, 1, 1)}, torch.zeros(()).expand(1, 1, 256, 256, 256), "256 x 256 x 256 patches has more"),
    ],
)
def test_what_is_said_of_volumes(arguments: Any, images: Tensor, words: str | None) -> None:
    corrupt = GroupMask(**arguments)
    if words is None:
        assert corrupt(images).mask.ndim == 3
    else:
        with pytest.raises(ValueError, match=words):
            corrupt(images)


def test_plans_masks_and_valid_patches_of_volumes() -> None:
    volumes, mask = images_of(VOLUMES), images_of((4, 4, 4, 4)) > 0
    corrupt = GroupMask(PATCH, 0.5, {"noise": 1, "alien": 1}, seed=0)
    assert torch.equal(corrupt(volumes, mask=mask).mask, mask)
    hidden = corrupt(volumes, valid=mask).mask
    assert not (hidden & ~mask).any()
    assert hidden.flatten(1).sum(1).tolist() == [round(0.5 * int(one.sum())) for one in mask]
    plan = corrupt.sample(volumes)
    assert same(corrupt.apply(volumes, plan), corrupt.apply(volumes, plan))
    with pytest.raises(ValueError, match=r"patches of \(2, 3, 4\) need"):
        corrupt.apply(volumes, GroupMask((4, 3, 4)).sample(volumes))
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    with pytest.raises(TypeError, match=r"\(C, T, H, W\).*Video"):
        corrupt(tv_tensors.Video(torch.zeros(8, 3, 12, 16)))
