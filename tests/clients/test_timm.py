"""timm: token i behind the prefix is patch i, so the mask's indices choose tokens of any vision transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gmml_aug import GroupMask, keep_indices, masked_indices

timm = pytest.importorskip("timm")

# Name, prefix tokens (class and register tokens), pixels of a patch.
MODELS = [
    ("vit_base_patch16_gap_224", 0, 16),
    ("vit_tiny_patch16_224", 1, 16),
    ("vit_little_patch16_reg4_gap_256", 4, 16),
    ("vit_small_patch14_reg4_dinov2", 5, 14),
]
every_model = pytest.mark.parametrize(("name", "prefix", "patch"), MODELS)


def build(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, embed_dim=32, depth=2, num_heads=2, num_classes=0, **settings).eval()
    # timm leaves class and register tokens almost zero, and equal tokens would hide a wrong index.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    return torch.take_along_dim(tokens, indices[..., None], dim=1)


def embed(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model._pos_embed(model.patch_embed(images))  # timm has no public name for it
    return tokens


@every_model
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_a_hidden_patch_changes_its_own_token_alone(name: str, prefix: int, patch: int, size: tuple[int, int]) -> None:
    pixels = (size[0] * patch, size[1] * patch)
    model = build(name, img_size=pixels)
    assert model.num_prefix_tokens == prefix
    images = torch.randn(6, 3, *pixels)
    corrupted, mask = GroupMask(patch, 0.4, "noise")(images)
    with torch.no_grad():
        changed = (embed(model, corrupted) != embed(model, images)).any(-1)
    tokens = torch.arange(changed.shape[1]).expand_as(changed)
    hidden = masked_indices(mask, num_prefix_tokens=model.num_prefix_tokens)
    visible = keep_indices(mask, num_prefix_tokens=model.num_prefix_tokens)
    assert torch.equal(tokens[changed].view(6, -1), hidden)
    assert torch.equal(tokens[~changed].view(6, -1), visible)


@every_model
def test_blocks_run_on_the_visible_tokens_alone(name: str, prefix: int, patch: int) -> None:
    """As in MAE: what is hidden has no say in what the encoder gives, and the prefix stays in front."""
    model = build(name, img_size=4 * patch)
    images = torch.randn(4, 3, 4 * patch, 4 * patch)
    corrupted, mask = GroupMask(patch, 0.75, "noise")(images)
    visible = keep_indices(mask, num_prefix_tokens=model.num_prefix_tokens)

    def encode(images: Tensor) -> Tensor:
        tokens: Tensor = model.norm(model.blocks(model.norm_pre(take(embed(model, images), visible))))
        return tokens

    with torch.no_grad():
        encoded = encode(images)
        assert encoded.shape == (4, prefix + 4, 32)
        assert torch.equal(encoded, encode(corrupted))
        # Without a hidden patch nothing is left out, so this is timm's own road.
        visible = keep_indices(torch.zeros_like(mask), num_prefix_tokens=model.num_prefix_tokens)
        assert torch.equal(encode(images), model.forward_features(images))


@every_model
def test_the_features_of_hidden_patches_are_picked(name: str, prefix: int, patch: int) -> None:
    """As in GMML and SimMIM: the whole corrupted image goes in, the loss looks at what was hidden."""
    model = build(name, img_size=4 * patch)
    images, mask = GroupMask(patch, 0.5, "noise")(torch.randn(4, 3, 4 * patch, 4 * patch))
    with torch.no_grad():
        tokens = model.forward_features(images)
    hidden = take(tokens, masked_indices(mask, num_prefix_tokens=model.num_prefix_tokens))
    assert hidden.shape == (4, 8, 32)
    assert torch.equal(hidden.flatten(0, 1), tokens[:, prefix:][mask.flatten(1)])


def test_rectangular_patches_come_in_the_order_of_a_patch_embedding() -> None:
    torch.manual_seed(0)
    layer = timm.layers.PatchEmbed(img_size=(32, 48), patch_size=(8, 16), in_chans=3, embed_dim=5)
    images = torch.randn(6, 3, 32, 48)
    out, mask = GroupMask((8, 16), 0.4, "noise", group_size=(1, 2))(images)
    assert torch.equal((layer(out) != layer(images)).any(-1), mask.flatten(1))


def naflex(**settings: Any) -> Any:
    return build("naflexvit_base_patch16_gap", **settings)  # four register tokens


def test_naflex_takes_plain_images_of_any_shape() -> None:
    pytest.importorskip("timm.models.naflexvit")
    model = naflex()
    for pixels in ((32, 80), (64, 48)):
        images = torch.randn(4, 3, *pixels)
        corrupted, mask = GroupMask(16, 0.5, "noise")(images)
        visible = keep_indices(mask, num_prefix_tokens=model.num_prefix_tokens)
        with torch.no_grad():
            before, after = model.embeds(images)[0], model.embeds(corrupted)[0]
            assert model(corrupted).shape == (4, 32)
        assert model.num_prefix_tokens == 4
        hidden = masked_indices(mask, num_prefix_tokens=model.num_prefix_tokens)
        assert torch.equal(take(before, visible), take(after, visible))
        assert (take(before, hidden) != take(after, hidden)).any(-1).all()


def naflex_batch(images: list[Tensor]) -> dict[str, Any]:
    data = pytest.importorskip("timm.data.naflex_dataset")
    transforms = pytest.importorskip("timm.data.naflex_transforms")
    patchify, collate = transforms.Patchify(16), data.NaFlexCollator(max_seq_len=16)
    batch: dict[str, Any] = collate([(patchify(image), 0) for image in images])[0]
    return batch


def pad(masks: list[Tensor]) -> Tensor:
    """Lay masks of different grids out as NaFlex lays out its patches: row-major, padded with what is not there."""
    return torch.stack([torch.nn.functional.pad(mask.flatten(), (0, 16 - mask.numel())) for mask in masks])


def test_naflex_takes_images_of_different_shapes_corrupted_before_they_are_cut() -> None:
    model = naflex()
    torch.manual_seed(0)
    images = [torch.randn(3, 16 * rows, 16 * columns) for rows, columns in ((2, 6), (4, 4), (5, 3))]
    corrupted, masks = zip(*(GroupMask(16, 0.5, "noise")(image) for image in images), strict=True)
    before, after, hidden = naflex_batch(images), naflex_batch(list(corrupted)), pad(list(masks))
    assert hidden.sum(1).tolist() == [6, 8, 8]
    assert torch.equal((before["patches"] != after["patches"]).any(-1), hidden)
    with torch.no_grad():
        features = model.forward_features(**{k: v for k, v in after.items() if k != "seq_len"})["patches"]
    assert features[:, model.num_prefix_tokens :][hidden].shape == (22, 32)


def test_naflex_leaves_out_hidden_patches_as_it_leaves_out_padding() -> None:
    """In a batch from timm's own loader: draw for each image's grid, and call hidden patches not valid."""
    model = naflex()
    torch.manual_seed(0)
    images = [torch.randn(3, 16 * rows, 16 * columns) for rows, columns in ((2, 6), (4, 4), (5, 3))]
    batch = naflex_batch(images)
    corrupt = GroupMask(16, 0.5)
    grids = (batch["patch_coord"].amax(1) + 1).tolist()
    assert grids == [[2, 6], [4, 4], [5, 3]]
    hidden = pad([corrupt.sample((3, 16 * rows, 16 * columns)).mask for rows, columns in grids])
    visible = {**batch, "patch_valid": batch["patch_valid"] & ~hidden}
    noise = torch.where(hidden[..., None], torch.randn_like(batch["patches"]), batch["patches"])
    with torch.no_grad():
        assert torch.equal(model(visible), model({**visible, "patches": noise}))
        assert not torch.equal(model(batch), model({**batch, "patches": noise}))
