"""torchvision's v2 transforms, data sets and collate functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from gmml_aug import GroupMask, Masked, patch_to_pixel

pytest.importorskip("torchvision")
from PIL import Image
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 3, 32, 32)])
def test_images_keep_their_class(shape: tuple[int, ...]) -> None:
    for inplace in (False, True):
        images = tv_tensors.Image(torch.rand(shape))
        out, mask = GroupMask(8, inplace=inplace)(images)
        assert type(out) is tv_tensors.Image
        assert type(mask) is torch.Tensor
        assert (out is images) == inplace


def test_videos_keep_their_class_and_one_mask_a_clip() -> None:
    out, mask = GroupMask(8)(tv_tensors.Video(torch.rand(2, 5, 3, 32, 32)))
    assert type(out) is tv_tensors.Video
    assert mask.shape == (2, 4, 4)
    clip = tv_tensors.Video(torch.rand(5, 3, 32, 32))
    out, mask = GroupMask(8, 0.5, "zeros")(clip)
    assert out.shape == clip.shape
    assert mask.shape == (4, 4)
    assert torch.equal((out == 0)[:, 0], patch_to_pixel(mask, 8).expand(5, 32, 32))


def pipeline(corrupt: GroupMask) -> Any:
    return v2.Compose([v2.RandomResizedCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), corrupt])


def test_last_in_a_compose() -> None:
    out, mask = pipeline(GroupMask(8, 0.5))(Image.new("RGB", (40, 40), "red"))
    assert type(out) is tv_tensors.Image
    assert out.shape == (3, 32, 32)
    assert mask.sum() == 8


def test_a_joint_sample_in_a_compose() -> None:
    """Detection: the boxes and the segmentation go through what moves pixels, and pass the corruption untouched."""
    target = {
        "boxes": tv_tensors.BoundingBoxes([[1, 2, 11, 12]], format="XYXY", canvas_size=(40, 40)),
        "masks": tv_tensors.Mask(torch.ones(1, 40, 40, dtype=torch.uint8)),
        "labels": torch.tensor([3]),
        "image_id": 7,
    }
    before = v2.Compose([v2.ToImage(), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)])
    image = Image.new("RGB", (40, 40), "red")
    _, moved = before(image, target)
    masked, out = v2.Compose([before, GroupMask(8, 0.5, "zeros")])(image, target)
    assert isinstance(masked, Masked)
    assert torch.equal(masked.images[0] == 0, patch_to_pixel(masked.mask, 8)[0])
    assert list(out) == list(target)
    for name in ("boxes", "masks", "labels"):
        assert type(out[name]) is type(target[name])
        assert torch.equal(out[name], moved[name])
    assert out["image_id"] == 7
    as_dict = v2.Compose([before, GroupMask(8, 0.5)])({"image": image, **target})
    assert isinstance(as_dict["image"], Masked)
    assert torch.equal(as_dict["boxes"], moved["boxes"])


class _Marks(v2.Transform):  # type: ignore[misc]
    """A real v2 transform, whose base class decides what it is given."""

    _transformed_types = (v2._utils.is_pure_tensor, tv_tensors.Image, tv_tensors.Video, Image.Image)

    def transform(self, inpt: Any, params: dict[str, Any]) -> str:
        return "transformed"


def image() -> Tensor:
    return torch.rand(3, 16, 16)


SAMPLES: list[Any] = [
    (image(), 3),
    [image(), image()],
    {"a": torch.zeros(2, 3, 16, 16), "b": torch.tensor(1)},
    {"depth": image(), "image": tv_tensors.Image(image())},  # a plain tensor beside an image is no image
    (tv_tensors.Image(image()), {"right": tv_tensors.Image(image()), "mask": tv_tensors.Mask(image())}),
    (tv_tensors.Mask(image()), image(), image()),
    ("cat", [3, None, (image(), 4.5)]),
    (tv_tensors.Video(torch.rand(2, 3, 16, 16)), image(), 3),
]


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_what_the_image_is_is_v2s_own_rule(number: int) -> None:
    sample = SAMPLES[number]
    marked: Any = _Marks()(sample)
    leaves = torch.utils._pytree.tree_leaves(marked)
    out = torch.utils._pytree.tree_leaves(GroupMask(8, 0.5)(sample), is_leaf=lambda leaf: isinstance(leaf, Masked))
    assert "transformed" in leaves
    assert [isinstance(leaf, Masked) for leaf in out] == [leaf == "transformed" for leaf in map(_plain, leaves)]
    for leaf, other in zip(out, leaves, strict=True):
        assert isinstance(leaf, Masked) or leaf is other


def _plain(leaf: object) -> object:
    return leaf if isinstance(leaf, str) else None


def test_images_of_one_sample_share_their_mask() -> None:
    left, right = tv_tensors.Image(torch.ones(3, 32, 32)), tv_tensors.Image(torch.ones(1, 32, 32))
    corrupt = GroupMask(8, 0.5, "zeros", seed=0)
    (out, mask), (other, again) = corrupt(left, right)
    assert torch.equal(mask, again)
    assert torch.equal(out[0], other[0])
    assert corrupt.counter == 1
    inplace = GroupMask(8, 0.5, "zeros", inplace=True)
    with pytest.raises(ValueError, match=r"same size and device; got \(3, 32, 32\) on cpu and \(3, 16, 32\) on cpu"):
        inplace(left, tv_tensors.Image(torch.ones(3, 16, 32)))
    with pytest.raises(ValueError, match="3 values"):
        GroupMask(8, 0.5, {"zeros": 1, _per_channel(): 1}, inplace=True)(left, right)
    assert (left == 1).all()


def _per_channel() -> Any:
    from gmml_aug import Zeros

    return Zeros((0.0, 0.1, 0.2))


def test_images_on_two_devices_and_a_batch_beside_a_clip_are_refused_untouched() -> None:
    corrupt = GroupMask(8, 0.5, "zeros", seed=0, inplace=True)
    image = tv_tensors.Image(torch.ones(5, 3, 32, 32))
    for other in (tv_tensors.Image(image.to("meta")), tv_tensors.Video(torch.ones(5, 3, 32, 32))):
        with pytest.raises(ValueError, match="same size and device"):
            corrupt(image, other)
    assert (image == 1).all()
    assert corrupt.counter == 0


def test_an_image_that_stands_twice_in_a_sample_is_written_once() -> None:
    images = tv_tensors.Image(torch.rand(4, 3, 32, 32))
    expected = GroupMask(8, 0.5, "alien", seed=0)(images)
    out = GroupMask(8, 0.5, "alien", seed=0, inplace=True)({"a": images, "b": images})
    assert torch.equal(out["a"].images, expected.images)
    assert torch.equal(out["b"].images, expected.images)
    before = images.clone()
    corrupt = GroupMask(8, 0.5, "alien", seed=0, inplace=True)
    with pytest.raises(ValueError, match="share memory"):
        corrupt(tv_tensors.Image(images), tv_tensors.Image(images))
    assert torch.equal(images, before)
    assert corrupt.counter == 0
    corrupt(tv_tensors.Image(images[:2]), tv_tensors.Image(images[2:]))  # side by side


def test_a_segmentation_mask_alone_is_no_image() -> None:
    with pytest.raises(TypeError, match=r"tv_tensors\.Mask, which is none"):
        GroupMask(8)(tv_tensors.Mask(torch.ones(3, 32, 32)))


def test_a_pil_image_names_the_conversion() -> None:
    with pytest.raises(TypeError, match=r"pil_to_tensor|ToImage"):
        GroupMask(8)((Image.new("RGB", (32, 32)), 3))


def test_the_transform_of_a_data_set_and_its_loader() -> None:
    data = datasets.FakeData(8, (3, 40, 40), 10, transform=pipeline(GroupMask(8, 0.5, seed=0)))
    masked, _ = data[0]
    assert masked.images.shape == (3, 32, 32)
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="spawn")
    seen = []
    for batch, labels in loader:
        assert isinstance(batch, Masked)
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.mask.flatten(1).sum(1).tolist() == [8] * 4
        assert labels.shape == (4,)
        seen.append(batch.mask)
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 8  # the workers do not repeat each other


class _Pairs(datasets.VisionDataset):  # type: ignore[misc]
    def __getitem__(self, i: int) -> Any:
        return self.transforms(Image.new("RGB", (40, 40), "red"), {"label": i})

    def __len__(self) -> int:
        return 4


def test_the_joint_transforms_of_a_data_set() -> None:
    masked, target = _Pairs(transforms=pipeline(GroupMask(8, 0.5)))[2]
    assert isinstance(masked, Masked)
    assert target == {"label": 2}


def test_a_batch_in_collate_fn_where_cutmix_stands() -> None:
    data = TensorDataset(torch.rand(12, 3, 32, 32), torch.arange(12))
    for batch_transform in (GroupMask(8, 0.5, "alien"), v2.CutMix(num_classes=12)):

        def collate(samples: list[Any], transform: Any = batch_transform) -> Any:
            return transform(*default_collate(samples))

        for images, labels in DataLoader(data, 4, collate_fn=collate):
            assert len(labels) == 4
            if isinstance(images, Masked):
                assert images.images.shape == (4, 3, 32, 32)
                assert images.mask.flatten(1).sum(1).tolist() == [8] * 4
