"""Real pipelines and models: what their users have works as it is."""

from __future__ import annotations

import pytest
import torch

from gmml_aug import GroupMask, keep_indices, masked_indices


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
