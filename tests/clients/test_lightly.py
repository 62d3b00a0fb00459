"""lightly: its masked transformer and decoder take our masks and indices where they took lightly's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gmml_aug import GroupMask, block_sizes, describe, keep_indices, masked_indices, patch_to_pixel

timm = pytest.importorskip("timm")
modules = pytest.importorskip("lightly.models.modules")
utils = pytest.importorskip("lightly.models.utils")

# 8 x 8 and 14 x 14 patches of 16 pixels, behind one class token.
CELLS, GRID = (6, 3, 128, 128), (6, 3, 224, 224)
INVERSE = block_sizes((14, 14), area=(0.39, 0.42), aspect=(0.5, 2))

# MAEDecoderTIMM warns from lightly 1.6 on that 1.7 will have MaskedVisionTransformerDecoderTIMM alone.
pytestmark = pytest.mark.filterwarnings("ignore:.*DecoderTIMM:FutureWarning")

# Name, prefix tokens, what lightly may do with the position embedding: its sine and cosine do not fit where the
# embedding has no place for the prefix, as in timm's models with register tokens.
MODELS = [("vit_tiny_patch16_224", 1, "sincos"), ("vit_little_patch16_reg4_gap_256", 4, "learn")]
every_model = pytest.mark.parametrize(("name", "prefix", "positions"), MODELS)


def build(name: str, positions: str) -> Any:
    torch.manual_seed(0)
    vit = timm.create_model(name, img_size=64, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    encoder = modules.MaskedVisionTransformerTIMM(vit, pos_embed_initialization=positions)
    torch.nn.init.normal_(encoder.mask_token)
    return encoder


@every_model
def test_mask_replaces_random_block_mask(name: str, prefix: int, positions: str) -> None:
    encoder = build(name, positions)
    images = torch.randn(4, 3, 64, 64)
    theirs = utils.random_block_mask((4, 4, 4), min_image_mask_ratio=0.3, max_image_mask_ratio=0.6)
    corrupted, mask = GroupMask(16, (0.3, 0.6), "noise")(images)
    assert (mask.shape, mask.dtype, mask.device) == (theirs.shape, theirs.dtype, theirs.device)
    tokens = functional.pad(mask.flatten(1), (encoder.vit.num_prefix_tokens, 0))
    assert tokens.shape == (4, encoder.sequence_length)
    with torch.no_grad():
        assert torch.equal(encoder.encode(images, mask=tokens), encoder.encode(corrupted, mask=tokens))
        assert not torch.equal(encoder.encode(images), encoder.encode(corrupted))
        assert encoder(images, mask=tokens).shape == (4, 32)
        # Hidden patches are the mask token before the positions are added; visible ones are as without a mask.
        masked = encoder.preprocess(images, mask=tokens) != encoder.preprocess(images)
    assert torch.equal(masked.any(-1), tokens)


@every_model
def test_indices_replace_random_token_mask(name: str, prefix: int, positions: str) -> None:
    encoder = build(name, positions)
    images = torch.randn(4, 3, 64, 64)
    corrupted, mask = GroupMask(16, 0.75, "noise")(images)
    idx_keep, idx_mask = keep_indices(mask, prefix), masked_indices(mask, prefix)
    assert (idx_keep[:, :prefix] == torch.arange(prefix)).all()
    everything = torch.cat([idx_keep, idx_mask], dim=1).sort(1).values
    assert torch.equal(everything, torch.arange(encoder.sequence_length).expand(4, -1))
    if prefix == 1:  # lightly's indices know of a class token alone
        theirs = utils.random_token_mask((4, encoder.sequence_length), mask_ratio=0.75)
        assert [index.shape for index in theirs] == [idx_keep.shape, idx_mask.shape]
        assert [index.dtype for index in theirs] == [idx_keep.dtype, idx_mask.dtype]
    with torch.no_grad():
        encoded = encoder.encode(images, idx_keep=idx_keep)
        assert encoded.shape == (4, prefix + 4, 32)
        assert torch.equal(encoded, encoder.encode(corrupted, idx_keep=idx_keep))
        assert not torch.equal(encoder.encode(images), encoder.encode(corrupted))
        whole = encoder.preprocess(images, idx_mask=idx_mask) != encoder.preprocess(images)
    assert torch.equal(whole.any(-1)[:, prefix:], mask.flatten(1))


def decoded(decoder: Any, encoded: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
    """Return what the decoder makes of the hidden tokens; both of lightly's decoders, each in its own words."""
    batch, length = len(encoded), idx_keep.shape[1] + idx_mask.shape[1]
    if isinstance(decoder, modules.MAEDecoderTIMM):
        tokens = decoder.mask_token.repeat(batch, length, 1)
        tokens = utils.set_at_index(tokens, idx_keep, decoder.embed(encoded).type_as(tokens))
        pixels: Tensor = decoder.predict(utils.get_at_index(decoder.decode(tokens), idx_mask))
        return pixels
    tokens = utils.set_at_index(encoded.new_zeros(batch, length, encoded.shape[2]), idx_keep, encoded)
    hidden: Tensor = utils.get_at_index(decoder(tokens, idx_mask=idx_mask), idx_mask)
    return hidden


@every_model
@pytest.mark.parametrize("kind", ["MAEDecoderTIMM", "MaskedVisionTransformerDecoderTIMM"])
def test_a_masked_autoencoder_learns(name: str, prefix: int, positions: str, kind: str) -> None:
    if not hasattr(modules, kind):
        pytest.skip(f"this lightly has no {kind}")
    encoder = build(name, positions)
    if kind == "MAEDecoderTIMM":
        decoder = modules.MAEDecoderTIMM(
            16, 16, embed_dim=32, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, num_prefix_tokens=prefix
        )
        head: torch.nn.Module = torch.nn.Identity()
    else:
        decoder = modules.MaskedVisionTransformerDecoderTIMM(16, 32, depth=1, num_heads=2, num_prefix_tokens=prefix)
        head = torch.nn.Linear(32, 3 * 16 * 16)
    parts = torch.nn.ModuleList([encoder, decoder, head])
    optimizer = torch.optim.AdamW([p for p in parts.parameters() if p.requires_grad], lr=3e-3)
    images = functional.interpolate(torch.randn(4, 3, 4, 4), size=64, mode="bilinear")
    mask = GroupMask(16, 0.75).sample(images).mask
    idx_keep, idx_mask = keep_indices(mask, prefix), masked_indices(mask, prefix)
    # The patches have no prefix, so here the indices begin at 0.
    target = utils.get_at_index(utils.patchify(images, 16), masked_indices(mask))
    losses = []
    for _ in range(40):
        hidden = head(decoded(decoder, encoder.encode(images, idx_keep=idx_keep), idx_keep, idx_mask))
        loss = functional.mse_loss(hidden, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.7 * losses[0]


def test_the_target_patches_are_the_hidden_ones() -> None:
    """Its patchify counts patches as the mask does."""
    torch.manual_seed(0)
    corrupted, mask = GroupMask(16, 0.5, "zeros")(torch.randn(4, 3, 64, 64))
    patches = utils.patchify(corrupted, 16)
    assert (utils.get_at_index(patches, masked_indices(mask)) == 0).all()
    assert (utils.get_at_index(patches, keep_indices(mask)) != 0).any(-1).all()


def assert_alike(ours: list[Tensor], theirs: tuple[Tensor, Tensor], patches: int) -> None:
    """Assert that both pairs of indices have one shape and type, and that ours name each token once."""
    assert [index.shape for index in ours] == [index.shape for index in theirs]
    assert [index.dtype for index in ours] == [index.dtype for index in theirs]
    assert torch.equal(ours[0][:, 0], theirs[0][:, 0])  # the class token first
    assert torch.equal(torch.cat(ours, dim=1).sort(1).values, torch.arange(1 + patches).expand(len(ours[0]), -1))


# The oldest lightly that the extra allows, 1.5.26, lacks it; CI has the newest, so that these tests run there.
NEWER = pytest.mark.skipif(
    not hasattr(utils, "random_inverse_block_mask"),
    reason="random_inverse_block_mask came to lightly after 1.5.26",
)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("cell", [2, 4])
def test_single_cells_replace_random_grid_token_mask(cell: int, ratio: float) -> None:
    mask = patch_to_pixel(GroupMask(cell * 16, ratio, group_size=(1, 1)).sample(CELLS).mask, cell)[:, 0]
    theirs = utils.random_grid_token_mask((6, 65), ratio, grid_size=cell)
    assert_alike([keep_indices(mask, 1), masked_indices(mask, 1)], theirs, 64)
    hidden = torch.zeros(6, 65, dtype=torch.bool).scatter_(1, theirs[1], True)[:, 1:].reshape(6, 8, 8)
    for grid in (mask, hidden):
        cells = grid.unflatten(1, (-1, cell)).unflatten(3, (-1, cell))
        assert torch.equal(cells.all(4).all(2), cells.any(4).any(2))  # each is hidden whole, or not at all


@NEWER
@pytest.mark.parametrize("placement", ["uniform", "inside"])
def test_inverted_blocks_replace_random_inverse_block_mask(placement: Any) -> None:
    corrupt = GroupMask(16, 0.65, group_size=INVERSE, placement=placement, invert=True)
    mask = corrupt.sample(GRID).mask
    theirs = utils.random_inverse_block_mask((6, 197), 0.65, roll=placement == "uniform")
    assert_alike([keep_indices(mask, 1), masked_indices(mask, 1)], theirs, 196)


def visible(ours: bool, roll: bool) -> Tensor:
    """Return which patches 2,000 masks leave visible, of ours or of lightly's."""
    torch.manual_seed(0)
    if ours:
        placement: Any = "uniform" if roll else "inside"
        corrupt = GroupMask(16, 0.65, group_size=INVERSE, placement=placement, invert=True)
        return ~corrupt.sample((2000, *GRID[1:])).mask
    idx_keep, _ = utils.random_inverse_block_mask((2000, 197), 0.65, roll=roll)
    return torch.zeros(2000, 197, dtype=torch.bool).scatter_(1, idx_keep, True)[:, 1:].reshape(-1, 14, 14)


@NEWER
@pytest.mark.parametrize("ours", [True, False])
def test_inverted_blocks_leave_visible_what_lightlys_do(ours: bool) -> None:
    """Rolled, each patch is visible about equally often, in a few pieces; else it is one block, in the middle."""
    rolled, whole = describe(visible(ours, roll=True)), describe(visible(ours, roll=False))
    assert rolled.most_to_least < 1.3
    assert 1.8 < rolled.components.float().mean() < 2.6
    assert (whole.components == 1).all()
    assert whole.most_to_least > 20
