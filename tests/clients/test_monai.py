"""MONAI: volumes in a `Compose` of dictionary transforms and in its loader, and what its models learn from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gmml_aug import GroupMask, patch_to_pixel

from .training import falls

pytest.importorskip("monai")
pytest.importorskip("einops")
data = pytest.importorskip("monai.data")
transforms = pytest.importorskip("monai.transforms")

PATCH = (8, 8, 8)


class Hide:
    """The last transform: the volume corrupted and its mask, beside the volume."""

    def __init__(self, corrupt: GroupMask) -> None:
        self.corrupt = corrupt

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        corrupted, mask = self.corrupt(sample["image"])
        return {**sample, "corrupted": corrupted, "mask": mask}


def volumes(*last: Any) -> Any:
    """Return 8 samples of a volume and its labels, cropped and flipped together."""
    torch.manual_seed(0)
    both = ["image", "label"]
    transform = transforms.Compose(
        [
            transforms.EnsureChannelFirstd(both, channel_dim="no_channel"),
            transforms.RandSpatialCropd(both, (32, 32, 32), random_size=False),
            transforms.RandFlipd(both, prob=0.5),
            *last,
        ]
    )
    images = [torch.rand(40, 36, 34) + 1 for _ in range(8)]
    return data.Dataset([{"image": image, "label": (image > 1.5).long()} for image in images], transform)


def check(batch: dict[str, Any]) -> None:
    """Assert that what is hidden is zero, and that all else came through, with the labels of its own crop."""
    image, mask = batch["image"], batch["mask"]
    assert mask.shape == (len(image), 4, 4, 4)
    assert (mask.flatten(1).sum(1) == 32).all()
    assert torch.equal(batch["corrupted"], image.masked_fill(patch_to_pixel(mask, PATCH), 0))
    assert torch.equal(batch["label"], (image > 1.5).long())


@pytest.mark.parametrize("workers", [0, 2])
def test_last_in_a_compose_of_dictionary_transforms(workers: int) -> None:
    loader = data.DataLoader(volumes(Hide(GroupMask(PATCH, 0.5, "zeros"))), batch_size=4, num_workers=workers)
    masks = []
    for batch in loader:
        check(batch)
        masks.append(batch["mask"])
    assert len(torch.cat(masks).flatten(1).unique(dim=0)) == 8


def test_on_a_sample_itself_the_image_is_corrupted_and_the_label_passes() -> None:
    sample = volumes(GroupMask(PATCH, 0.5, "zeros"))[0]
    images, mask = sample["image"]
    hidden = patch_to_pixel(mask, PATCH)
    assert (images[hidden] == 0).all()
    assert torch.equal(sample["label"][~hidden], (images[~hidden] > 1.5).long())


@pytest.mark.parametrize("inplace", [False, True])
def test_meta_data_stay(inplace: bool) -> None:
    """And are its own: what is done to the result afterwards leaves the volume's history alone."""
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    image = data.MetaTensor(torch.rand(1, 32, 32, 32) + 1, affine=affine, meta={"filename_or_obj": "a.nii"})
    flip = transforms.Flip(0)
    flipped = flip(image)
    wanted, before = flipped.affine.clone(), flipped.as_tensor().clone()
    corrupted, mask = GroupMask(PATCH, 0.5, "zeros", inplace=inplace)(flipped)
    assert isinstance(corrupted, data.MetaTensor)
    assert not isinstance(mask, data.MetaTensor)
    assert torch.equal(corrupted.affine, wanted)
    assert corrupted.meta["filename_or_obj"] == "a.nii"
    assert corrupted.applied_operations == flipped.applied_operations
    shown = before.masked_fill(patch_to_pixel(mask, PATCH)[0], 0)
    assert torch.equal(flip.inverse(corrupted).as_tensor(), shown.flip(1))
    assert len(flipped.applied_operations) == (0 if inplace else 1)
    (batch,) = data.DataLoader(volumes(), batch_size=8)
    whole, _ = GroupMask(PATCH, 0.5, "alien")(batch["image"])
    assert whole.is_batch
    assert torch.equal(whole.affine, batch["image"].affine)


def test_aliens_come_from_other_volumes_of_the_batch() -> None:
    (batch,) = data.DataLoader(volumes(), batch_size=8)
    images = batch["image"].as_tensor()
    corrupted, mask = GroupMask(PATCH, 0.5, "alien")(images)
    hidden = patch_to_pixel(mask, PATCH)
    assert torch.equal(corrupted[~hidden], images[~hidden])
    taken = ((corrupted[:, None] == images[None]) | ~hidden[:, None]).flatten(2).all(-1)
    assert (taken.sum(1) == 1).all()  # all of one other volume
    assert not taken.diagonal().any()


def test_set_determinism_repeats_the_masks() -> None:
    corrupt = GroupMask(PATCH)
    masks = []
    for _ in range(2):
        pytest.importorskip("monai.utils").set_determinism(0)
        masks.append(corrupt.sample((4, 1, 32, 32, 32)).mask)
    pytest.importorskip("monai.utils").set_determinism(None)
    assert torch.equal(*masks)


def test_an_autoencoder_learns_what_was_hidden() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    images = functional.interpolate(torch.randn(4, 1, 2, 2, 2), size=32, mode="trilinear")
    model = nets.ViTAutoEnc(1, (32, 32, 32), (16, 16, 16), hidden_size=32, mlp_dim=64, num_layers=1, num_heads=2)
    corrupted, mask = GroupMask((16, 16, 16), 0.5)(images)
    hidden = patch_to_pixel(mask, (16, 16, 16))

    def loss() -> Tensor:
        error: Tensor = ((model(corrupted)[0] - images).abs() * hidden).sum() / hidden.sum()
        return error

    falls(model, loss, share=0.8)


def test_its_patches_are_counted_as_the_mask_counts_them() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.ViT(1, (32, 32, 32), PATCH, hidden_size=32, mlp_dim=64, num_layers=1, num_heads=2)
    images = torch.randn(2, 1, 32, 32, 32)
    corrupted, mask = GroupMask(PATCH, 0.5)(images)
    with torch.no_grad():
        changed = (model.patch_embedding(corrupted) != model.patch_embedding(images)).any(-1)
    assert torch.equal(changed, mask.flatten(1))
