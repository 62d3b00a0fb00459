"""Real pipelines and models: what their users have works as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from gmml_aug import GroupMask, keep_indices, masked_indices, patch_to_pixel


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 3, 32, 32)])
def test_torchvision_images_keep_their_class(shape: tuple[int, ...]) -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    for inplace in (False, True):
        images = tv_tensors.Image(torch.rand(shape))
        out, mask = GroupMask(8, inplace=inplace)(images)
        assert type(out) is tv_tensors.Image
        assert type(mask) is torch.Tensor
        assert (out is images) == inplace


def test_torchvision_videos_keep_their_class_and_one_mask_a_clip() -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    out, mask = GroupMask(8)(tv_tensors.Video(torch.rand(2, 5, 3, 32, 32)))
    assert type(out) is tv_tensors.Video
    assert mask.shape == (2, 4, 4)
    clip = tv_tensors.Video(torch.rand(5, 3, 32, 32))
    out, mask = GroupMask(8, 0.5, "zeros")(clip)
    assert out.shape == clip.shape
    assert mask.shape == (4, 4)
    assert torch.equal((out == 0)[:, 0], patch_to_pixel(mask, 8).expand(5, 32, 32))


def test_torchvision_last_in_a_compose() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    image = pytest.importorskip("PIL.Image").new("RGB", (40, 40), "red")
    pipeline = v2.Compose(
        [v2.RandomResizedCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), GroupMask(8, 0.5)]
    )
    out, mask = pipeline(image)
    assert out.shape == (3, 32, 32)
    assert mask.sum() == 8


def test_a_batch_in_collate_fn() -> None:
    corrupt = GroupMask(8, 0.5, "alien")
    data = TensorDataset(torch.rand(12, 3, 32, 32), torch.arange(12))

    def collate(samples: list[Any]) -> Any:
        images, labels = default_collate(samples)
        return corrupt(images), labels

    for (images, mask), labels in DataLoader(data, 4, collate_fn=collate):
        assert images.shape == (4, 3, 32, 32)
        assert mask.flatten(1).sum(1).tolist() == [8] * 4
        assert len(labels) == 4


def test_kornia_augmentations_before_it() -> None:
    augmentation = pytest.importorskip("kornia.augmentation")
    pipeline = nn.Sequential(
        augmentation.RandomHorizontalFlip(p=0.5), augmentation.RandomGaussianNoise(p=0.5), GroupMask(8)
    )
    images, mask = pipeline(torch.rand(4, 3, 32, 32))
    assert images.shape == (4, 3, 32, 32)
    assert mask.shape == (4, 4, 4)


def test_timm_takes_the_images_and_the_tokens() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=0)
    images, mask = GroupMask(16, 0.5, "noise")(torch.randn(4, 3, 64, 64))
    tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
    assert tokens.shape[1] == mask.flatten(1).shape[1]
    for indices in (keep_indices(mask), masked_indices(mask)):
        chosen = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
        assert chosen.shape == (4, 8, tokens.shape[2])
    visible = tokens[~mask.flatten(1)].view(4, 8, -1)
    assert torch.equal(visible, tokens.gather(1, keep_indices(mask)[..., None].expand_as(visible)))


def test_token_order_is_that_of_a_patch_embedding() -> None:
    """A hidden patch changes exactly its own token of timm's embedding."""
    layers = pytest.importorskip("timm.layers")
    embed = layers.PatchEmbed(img_size=(32, 48), patch_size=(8, 16), in_chans=3, embed_dim=5)
    images = torch.randn(6, 3, 32, 48)
    out, mask = GroupMask((8, 16), 0.4, "noise", group_size=(1, 2))(images)
    changed = (embed(out) != embed(images)).any(-1)
    assert torch.equal(changed, mask.flatten(1))
