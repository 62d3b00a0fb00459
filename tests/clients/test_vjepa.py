"""Hugging Face's VJEPA2Model: indices of tubes and boxes for its context and its targets, as many in every clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gmml_aug import GroupMask, keep_indices, masked_indices

from .training import falls

transformers = pytest.importorskip("transformers")

TUBELET, STEPS, SIDE = 2, 4, 4  # frames in a patch, patches in a clip, patches in a row
PATCH = (TUBELET, 16, 16)


def tubes(volumes: Tensor) -> Tensor:
    """Return one mask for all frames, spread over the steps of time, so that the cut of a group is a tube's too."""
    mask = GroupMask(16, 0.75, group_size=(2, 2)).sample(volumes.transpose(1, 2)).mask
    return mask[:, None].expand(-1, STEPS, -1, -1)


def boxes(volumes: Tensor) -> Tensor:
    return GroupMask(PATCH, 0.75).sample(volumes).mask


Draw = Callable[[Tensor], Tensor]
every_way = pytest.mark.parametrize("draw", [tubes, boxes])


def vjepa() -> Any:
    if not hasattr(transformers, "VJEPA2Model"):
        pytest.skip("this transformers has no VJEPA2Model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 48, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    clip = {"crop_size": 16 * SIDE, "frames_per_clip": TUBELET * STEPS, "tubelet_size": TUBELET, "patch_size": 16}
    return transformers.VJEPA2Model(transformers.VJEPA2Config(**sizes, **predictor, **clip)).eval()


def clips(batch: int = 3) -> Tensor:
    """Return `(B, C, T, H, W)`; the model takes them with the frames first."""
    torch.manual_seed(0)
    return functional.interpolate(torch.randn(batch, 3, 4, 4, 4), size=(8, 64, 64), mode="trilinear")


def encoded(model: Any, volumes: Tensor, keep: Tensor) -> Tensor:
    """Return the visible tokens, encoded by the model's own layers from these tokens alone."""
    tokens = model.encoder.embeddings(volumes.transpose(1, 2)).take_along_dim(keep[..., None], 1)
    for layer in model.encoder.layer:
        tokens = layer(tokens, keep)[0]
    done: Tensor = model.encoder.layernorm(tokens)
    return done


def predicted(model: Any, visible: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
    """Return the prediction for the hidden tokens. The predictor picks its context from a whole sequence."""
    whole = visible.new_zeros(len(visible), STEPS * SIDE * SIDE, visible.shape[2])
    whole = whole.scatter(1, keep[..., None].expand_as(visible), visible)
    outputs = model.predictor(encoder_hidden_states=whole, context_mask=[keep], target_mask=[hidden])
    tokens: Tensor = outputs.last_hidden_state
    return tokens


@every_way
def test_the_model_takes_both_kinds_of_indices(draw: Draw) -> None:
    model, volumes = vjepa(), clips()
    mask = draw(volumes)
    keep, hidden = keep_indices(mask), masked_indices(mask)
    assert (mask.shape, keep.shape, hidden.shape) == ((3, STEPS, SIDE, SIDE), (3, 16), (3, 48))
    with torch.no_grad():
        outputs = model(volumes.transpose(1, 2), context_mask=[keep], target_mask=[hidden])
    whole = outputs.last_hidden_state
    assert torch.equal(outputs.masked_hidden_state, whole.take_along_dim(keep[..., None], 1))
    assert torch.equal(outputs.predictor_output.target_hidden_state, whole.take_along_dim(hidden[..., None], 1))
    assert outputs.predictor_output.last_hidden_state.shape == (3, 48, 48)


@every_way
def test_its_tokens_are_counted_as_the_mask_counts_them(draw: Draw) -> None:
    model, volumes = vjepa(), clips()
    corrupted, mask = GroupMask(PATCH)(volumes, mask=draw(volumes))
    with torch.no_grad():
        embed = model.encoder.embeddings
        changed = (embed(corrupted.transpose(1, 2)) != embed(volumes.transpose(1, 2))).any(-1)
    assert torch.equal(changed, mask.flatten(1))


def test_tubes_hide_the_same_places_at_all_times() -> None:
    mask = tubes(clips(20))
    assert (mask.flatten(1).sum(1) == 48).all()
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert len(mask.flatten(1).unique(dim=0)) > 1


def test_what_is_hidden_reaches_the_context_only_through_its_own_call() -> None:
    """Its forward encodes whole clips, and chooses afterwards; its layers take the visible tokens alone."""
    model, volumes = vjepa(), clips()
    corrupted, mask = GroupMask(PATCH, 0.75, "zeros")(volumes)
    keep, hidden = keep_indices(mask), masked_indices(mask)
    with torch.no_grad():
        calls = [
            model(x.transpose(1, 2), context_mask=[keep], target_mask=[hidden]).masked_hidden_state
            for x in (volumes, corrupted)
        ]
        assert not torch.allclose(*calls)
        assert torch.equal(encoded(model, volumes, keep), encoded(model, corrupted, keep))
        everything = torch.arange(STEPS * SIDE * SIDE).expand(3, -1)
        whole = model(volumes.transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(encoded(model, volumes, everything), whole)


@every_way
def test_it_learns_what_was_hidden(draw: Draw) -> None:
    student, teacher, volumes = vjepa(), vjepa(), clips()
    mask = draw(volumes)
    keep, hidden = keep_indices(mask), masked_indices(mask)
    with torch.no_grad():
        whole = teacher(volumes.transpose(1, 2), skip_predictor=True).last_hidden_state
        target = whole.take_along_dim(hidden[..., None], 1)

    def loss() -> Tensor:
        error = predicted(student, encoded(student, volumes, keep), keep, hidden) - target
        distance: Tensor = error.abs().mean()
        return distance

    falls(student, loss, share=0.93, lr=3e-3, steps=40)
