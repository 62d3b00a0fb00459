"""TorchIO: volumes of a `SubjectsDataset`, corrupted on the batch of its loader or patch by patch of its queue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gmml_aug import GroupMask, patch_to_pixel

from .training import falls

tio = pytest.importorskip("torchio")

PATCH = (8, 4, 8)


def subjects(*last: Any, count: int = 8) -> Any:
    """Return volumes and labels that say where they are bright, cropped and flipped together."""
    torch.manual_seed(0)
    volumes = [torch.rand(1, 40, 36, 34) for _ in range(count)]
    both = tio.Compose([tio.CropOrPad((32, 32, 32)), tio.RandomFlip(axes=(0, 1, 2)), *last])
    pairs = [{"image": tio.ScalarImage(tensor=v), "label": tio.LabelMap(tensor=(v > 0.5).long())} for v in volumes]
    return tio.SubjectsDataset([tio.Subject(**pair) for pair in pairs], transform=both)


@pytest.mark.parametrize("workers", [0, 2])
def test_on_the_batch_of_its_loader(workers: int) -> None:
    corrupt, masks = GroupMask(PATCH, 0.5, "zeros"), []
    for batch in tio.SubjectsLoader(subjects(), batch_size=4, num_workers=workers):
        images = batch["image"][tio.DATA]
        corrupted, mask = corrupt(images)
        hidden = patch_to_pixel(mask, PATCH)
        assert (images.shape, mask.shape) == ((4, 1, 32, 32, 32), (4, 4, 8, 4))
        assert (mask.flatten(1).sum(1) == 64).all()
        assert torch.equal(corrupted, images.masked_fill(hidden, 0))
        assert torch.equal(batch["label"][tio.DATA], (images > 0.5).long())
        masks.append(mask)
    assert len(torch.cat(masks).flatten(1).unique(dim=0)) == 8


def test_its_axes_are_those_of_the_patch_in_the_same_order() -> None:
    """It keeps the axes of a file, width first, and the sides of a patch are counted as the tensor has them."""
    (batch,) = tio.SubjectsLoader(subjects(count=2), batch_size=2)
    corrupted, mask = GroupMask(PATCH, 0.25, "zeros")(batch["image"][tio.DATA])
    cells = corrupted[:, 0].unflatten(3, (4, 8)).unflatten(2, (8, 4)).unflatten(1, (4, 8))
    assert torch.equal((cells == 0).all(6).all(4).all(2), mask)


def test_aliens_come_from_other_subjects() -> None:
    (batch,) = tio.SubjectsLoader(subjects(), batch_size=8)
    images = batch["image"][tio.DATA]
    corrupted, mask = GroupMask(PATCH, 0.5, "alien")(images)
    hidden = patch_to_pixel(mask, PATCH)
    assert torch.equal(corrupted[~hidden], images[~hidden])
    taken = ((corrupted[:, None] == images[None]) | ~hidden[:, None]).flatten(2).all(-1)
    assert (taken.sum(1) == 1).all()
    assert not taken.diagonal().any()


class Hide:
    """The last transform: the corrupted volume and its mask, as images of the subject's own space."""

    def __init__(self, corrupt: GroupMask) -> None:
        self.corrupt = corrupt

    def __call__(self, subject: Any) -> Any:
        image = subject["image"]
        corrupted, mask = self.corrupt(image.data)
        subject.add_image(tio.ScalarImage(tensor=corrupted, affine=image.affine), "corrupted")
        hidden = patch_to_pixel(mask[None], PATCH)[0]
        subject.add_image(tio.LabelMap(tensor=hidden.to(torch.uint8), affine=image.affine), "hidden")
        return subject


def test_as_the_last_transform_of_a_compose() -> None:
    for batch in tio.SubjectsLoader(subjects(Hide(GroupMask(PATCH, 0.5, "zeros"))), batch_size=4, num_workers=2):
        images, hidden = batch["image"][tio.DATA], batch["hidden"][tio.DATA].bool()
        assert (hidden.flatten(1).sum(1) == 32**3 // 2).all()
        assert torch.equal(batch["corrupted"][tio.DATA], images.masked_fill(hidden, 0))


def test_on_the_patches_of_a_queue() -> None:
    queue = tio.Queue(subjects(count=4), 16, 4, tio.data.UniformSampler(16), num_workers=0)
    corrupt, seen = GroupMask((4, 4, 4), 0.5, "mean"), 0
    for batch in tio.SubjectsLoader(queue, batch_size=8, num_workers=0):
        images = batch["image"][tio.DATA]
        corrupted, mask = corrupt(images)
        hidden = patch_to_pixel(mask, (4, 4, 4))
        assert torch.equal(corrupted[~hidden], images[~hidden])
        assert (mask.flatten(1).sum(1) == 32).all()
        seen += len(images)
    assert seen == 16


def test_what_a_subject_does_not_cover_stays_visible() -> None:
    """`CropOrPad` pads with a value of one's own, by which the empty patches are known."""
    volumes = [torch.rand(1, 32, 32, side) + 1 for side in (16, 24, 32)]
    data = [tio.Subject(image=tio.ScalarImage(tensor=volume)) for volume in volumes]
    loader = tio.SubjectsLoader(tio.SubjectsDataset(data, tio.CropOrPad((32, 32, 32), padding_mode=0)), batch_size=3)
    (batch,) = loader
    images = batch["image"][tio.DATA]
    valid = (images[:, 0] > 0).unflatten(3, (4, 8)).unflatten(2, (8, 4)).unflatten(1, (4, 8)).all(6).all(4).all(2)
    mask = GroupMask(PATCH, 0.5)(images, valid=valid).mask
    assert valid.flatten(1).sum(1).tolist() == [64, 64, 128]
    assert torch.equal(mask.flatten(1).sum(1), valid.flatten(1).sum(1) // 2)
    assert not (mask & ~valid).any()


def test_a_subject_itself_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"Subject.*give a torch\.Tensor"):
        GroupMask(PATCH)(subjects()[0])


def test_a_network_learns_what_was_hidden() -> None:
    (batch,) = tio.SubjectsLoader(subjects(tio.RandomBlur((3, 3)), tio.ZNormalization(), count=4), batch_size=4)
    images = batch["image"][tio.DATA]
    corrupted, mask = GroupMask((8, 8, 8), 0.5)(images)
    hidden = patch_to_pixel(mask, (8, 8, 8))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, 1, 3, padding=1))

    def loss() -> Tensor:
        error: Tensor = ((model(corrupted) - images).abs() * hidden).sum() / hidden.sum()
        return error

    falls(model, loss, share=0.98)
