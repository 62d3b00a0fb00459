"""Hugging Face's VideoMAEForPreTraining: `bool_masked_pos` from tubes and from boxes, as many in every clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gmml_aug import GroupMask, describe, patch_to_pixel

from .training import falls

transformers = pytest.importorskip("transformers")

TUBELET, STEPS = 2, 4  # frames in a patch, patches in a clip


def clips(batch: int = 4) -> Tensor:
    torch.manual_seed(0)
    channels_first = functional.interpolate(torch.randn(batch, 3, 4, 4, 4), size=(8, 64, 64), mode="trilinear")
    return channels_first.transpose(1, 2).contiguous()  # (B, T, C, H, W)


def video_mae() -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.VideoMAEConfig(
        image_size=64,
        num_frames=TUBELET * STEPS,
        tubelet_size=TUBELET,
        **small,
        **{f"decoder_{name}": number for name, number in small.items()},
    )
    return transformers.VideoMAEForPreTraining(config).eval()


def tubes_of_clips(pixel_values: Tensor) -> Tensor:
    """Return one mask for all frames, spread over the steps of time."""
    mask = GroupMask(16, 0.75).sample(pixel_values).mask
    return mask[:, None].expand(-1, STEPS, -1, -1)


def tubes_of_volumes(pixel_values: Tensor) -> Tensor:
    """Return tubes of single patches, drawn as boxes that cover all of time."""
    corrupt = GroupMask((TUBELET, 16, 16), 0.75, group_size={("all", 1, 1): 1})
    return corrupt.sample(pixel_values.transpose(1, 2)).mask


def boxes(pixel_values: Tensor) -> Tensor:
    return GroupMask((TUBELET, 16, 16), 0.75).sample(pixel_values.transpose(1, 2)).mask


Draw = Callable[[Tensor], Tensor]
every_way = pytest.mark.parametrize("draw", [tubes_of_clips, tubes_of_volumes, boxes])


@every_way
def test_what_the_mask_hides_video_mae_does_not_see(draw: Draw) -> None:
    model, pixel_values = video_mae(), clips()
    mask = draw(pixel_values)
    assert mask.shape == (4, STEPS, 4, 4)
    assert (mask.flatten(1).sum(1) == 48).all()
    hidden = patch_to_pixel(mask, (TUBELET, 16, 16)).transpose(1, 2)  # (B, T, 1, H, W)
    corrupted = torch.where(hidden, 9.0, pixel_values)
    with torch.no_grad():
        embed = model.videomae.embeddings.patch_embeddings
        assert torch.equal((embed(corrupted) != embed(pixel_values)).any(-1), mask.flatten(1))
        outputs = [model(x, bool_masked_pos=mask.flatten(1)) for x in (pixel_values, corrupted)]
    assert outputs[0].logits.shape == (4, 48, 3 * TUBELET * 16 * 16)
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert not torch.equal(outputs[0].loss, outputs[1].loss)  # the loss is that of the hidden pixels


@pytest.mark.parametrize("draw", [tubes_of_clips, tubes_of_volumes])
def test_tubes_hide_the_same_places_at_all_times(draw: Draw) -> None:
    mask = draw(clips())
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert len(mask.flatten(1).unique(dim=0)) > 1  # each clip has others


def test_boxes_are_connected_in_time_too() -> None:
    mask = GroupMask((TUBELET, 16, 16), 0.75).sample((200, 3, 16, 128, 128)).mask
    single = GroupMask((TUBELET, 16, 16), 0.75, group_size=(1, 1)).sample((200, 3, 16, 128, 128)).mask
    assert not torch.equal(mask, mask[:, :1].expand_as(mask))
    runs = [(m[:, 1:] & m[:, :-1]).sum() for m in (mask, single)]
    assert runs[0] > runs[1]
    assert describe(mask).components.sum() < describe(single).components.sum()


def test_corrupted_clips_come_back_in_their_own_layout() -> None:
    """To see the hidden boxes filled, as for a model without `bool_masked_pos`."""
    pixel_values = clips()
    volumes, mask = GroupMask((TUBELET, 16, 16), 0.75, "zeros")(pixel_values.transpose(1, 2))
    hidden = patch_to_pixel(mask, (TUBELET, 16, 16)).transpose(1, 2)
    assert torch.equal(volumes.transpose(1, 2), pixel_values.masked_fill(hidden, 0))


@every_way
def test_video_mae_learns_what_was_hidden(draw: Draw) -> None:
    model, pixel_values = video_mae(), clips()
    bool_masked_pos = draw(pixel_values).flatten(1)
    falls(model, lambda: model(pixel_values, bool_masked_pos=bool_masked_pos).loss, share=0.9, lr=1e-2, steps=40)
