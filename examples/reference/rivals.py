"""The two methods that GMML is compared with: MAE (arXiv 2111.06377) and SimMIM (arXiv 2111.09886).

Each takes the encoder of an ``Autoencoder``, and so begins with the same weights as GMML and is evaluated as it is:

    mae = MAE(build(config, channels)[0].encoder)
    mask = MAE.masks(patch_size, seed).sample(images, index=numbers).mask
    errors, counted = mae(images, mask)
    loss = (errors * counted).sum() / (counted.sum() * images.shape[1])

The masks are GroupMask's: counted by sample, exact and resumable. Both methods hide the same number of patches in every
image, so over several processes ``counted.sum()`` times their number is the count of all pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gmml_aug import GroupMask, keep_indices, patch_to_pixel

from .model import Autoencoder


def normalised_per_patch(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Return images whose every patch has mean 0 and standard deviation 1, over its pixels and channels together.

    MAE's better targets (sec. 3, "Reconstruction target"). They serve GMML too, whose error is then
    ``(model(corrupted) - normalised_per_patch(images, patch_size)).abs()``.

    Args:
        images: ``(B, C, H, W)``, floating.
        patch_size: int or (height, width) in pixels.

    Returns:
        Of the shape and dtype of ``images``. A patch of one colour is 0, not the quotient of two zeros.
    """
    patches, mean, spread = _mean_and_spread(images, patch_size)
    return F.fold((patches - mean) / spread, images.shape[-2:], patch_size, stride=patch_size)


def with_contrast_of(images: Tensor, made: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Give every patch of what was made the mean and spread of the image's own, which normalised targets lack.

    Args:
        images: ``(B, C, H, W)``, floating.
        made: likewise; ``normalised_per_patch(images, patch_size)`` becomes ``images``.
        patch_size: int or (height, width) in pixels.
    """
    _, mean, spread = _mean_and_spread(images, patch_size)
    wanted = F.unfold(made, patch_size, stride=patch_size) * spread + mean
    return F.fold(wanted, images.shape[-2:], patch_size, stride=patch_size)


def _mean_and_spread(images: Tensor, patch_size: int | tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    patches = F.unfold(images, patch_size, stride=patch_size)  # (B, C * height * width, patches)
    variance, mean = torch.var_mean(patches, dim=1, correction=0, keepdim=True)
    return patches, mean, (variance + 1e-6).sqrt()


class Rival(nn.Module):
    """The parts that both methods share. A method adds ``forward`` and its ``masks``."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch_size: tuple[int, int] = encoder.patch_embed.patch_size
        self.grid: tuple[int, int] = encoder.patch_embed.grid_size
        self.channels = encoder.patch_embed.proj.in_channels

    def unused(self) -> list[nn.Module]:
        """Return what no prediction passes through, as ``Autoencoder.unused`` does: a pooling of timm's."""
        return [] if self.encoder.attn_pool is None else [self.encoder.attn_pool]

    def pixel_layer(self, dim: int) -> nn.Linear:
        """Return a linear layer from tokens of ``dim`` to the pixels of a patch, all channels."""
        return nn.Linear(dim, self.channels * self.patch_size[0] * self.patch_size[1])

    def encoded(self, tokens: Tensor) -> Tensor:
        """Return the normed patch tokens of the last block, of tokens with positions and class tokens."""
        last: Tensor = self.encoder.norm(self.encoder.blocks(self.encoder.norm_pre(tokens)))
        return last[:, self.encoder.num_prefix_tokens :]

    def to_images(self, predicted: Tensor, images: Tensor) -> Tensor:
        """Put the predicted pixels of the patches, ``(B, patches, C * height * width)``, in their places."""
        return F.fold(predicted.transpose(1, 2), images.shape[-2:], self.patch_size, stride=self.patch_size)

    def on_grid(self, mask: Tensor, images: Tensor) -> Tensor:
        """Return a mask of patches, or of units of several, as one of the encoder's patches, ``(B, gh, gw)``."""
        rows, columns = self.grid
        if mask.dtype != torch.bool or mask.ndim != 3 or len(mask) != len(images):
            raise ValueError(
                f"the mask is (B, gh, gw) bool, for {len(images)} images; got {tuple(mask.shape)}, {mask.dtype}"
            )
        if rows % mask.shape[1] or columns % mask.shape[2]:
            raise ValueError(f"a mask of {mask.shape[1]}x{mask.shape[2]} units does not fit {rows}x{columns} patches")
        return patch_to_pixel(mask, (rows // mask.shape[1], columns // mask.shape[2]))[:, 0]


class MAE(Rival):
    """Masked autoencoder (arXiv 2111.06377, sec. 3): the encoder sees visible patches alone.

    A decoder of timm's blocks gets these, a learned token in the place of each hidden patch, and fixed sine and cosine
    positions; a linear layer gives pixels. As the paper's for ViT-L, the decoder is half as wide as the encoder (1024
    to 512), with as many heads, and a third as deep (24 blocks to 8). Class tokens stay in the encoder. Unlike
    the paper's, the encoder's positions are learned on from sines and cosines, and its weights start as timm has them:
    all as GMML's.

    Args:
        encoder: A ``VisionTransformer`` as ``Autoencoder`` makes it, of images of one size.
    """

    positions: Tensor

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__(encoder)
        attention: Any = encoder.blocks[0].get_submodule("attn")
        dim, heads = encoder.embed_dim // 2, attention.num_heads
        if encoder.embed_dim % 8 or dim % heads:
            raise SystemExit(
                f"MAE's decoder is half as wide as the encoder: give a --dim that divides by 8 and by twice --heads; "
                f"got {encoder.embed_dim} and {heads}"
            )
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(dim))  # of one dimension, and so without weight decay
        positions = build_sincos2d_pos_embed(list(self.grid), dim, interleave_sin_cos=True)
        self.register_buffer("positions", positions, persistent=False)
        self.decoder = nn.Sequential(
            *(Block(dim, heads, qkv_bias=True) for _ in range(max(1, len(encoder.blocks) // 3))),
            nn.LayerNorm(dim),
            self.pixel_layer(dim),
        )
        for module in (self.embed, *self.decoder.modules()):
            if isinstance(module, nn.Linear):  # the paper's start, appendix A.1
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @staticmethod
    def masks(patch_size: int, seed: int, ratio: float = 0.75) -> GroupMask:
        """Return what draws the masks: single patches at random, 75 % of them (sec. 3, "Masking")."""
        return GroupMask(patch_size, ratio, "zeros", group_size=(1, 1), seed=seed)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return each pixel's squared error, and which pixels count: the hidden ones.

        Args:
            images: ``(B, C, H, W)``, floating and normalised.
            mask: ``(B, gh, gw)`` bool, True = hidden, as many in every image, and neither none nor all.

        Returns:
            ``(B, C, H, W)`` float32, against ``normalised_per_patch``; and ``(B, 1, H, W)`` bool.
        """
        mask = self.on_grid(mask, images)
        tokens = self.encoder._pos_embed(self.encoder.patch_embed(images))
        kept = keep_indices(mask, self.encoder.num_prefix_tokens)
        if not self.encoder.num_prefix_tokens < kept.shape[1] < tokens.shape[1]:
            raise ValueError("MAE needs a visible and a hidden patch in every image: give another ratio")
        seen = self.embed(self.encoded(tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))))

        places = keep_indices(mask)[..., None].expand_as(seen)
        hidden = self.mask_token.to(seen.dtype).expand(len(images), mask[0].numel(), -1)
        predicted = self.decoder(hidden.scatter(1, places, seen) + self.positions)
        wrong = self.to_images(predicted, images) - normalised_per_patch(images, self.patch_size)
        return wrong.square(), patch_to_pixel(mask, self.patch_size)


class SimMIM(Rival):
    """SimMIM (arXiv 2111.09886, sec. 3): the encoder sees all places, a learned token in those of hidden patches.

    A linear layer gives pixels. The encoder is timm's plain ViT, as GMML's, with absolute positions.

    Args:
        encoder: A ``VisionTransformer`` as ``Autoencoder`` makes it, of images of one size.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__(encoder)
        self.mask_token = nn.Parameter(0.02 * torch.randn(encoder.embed_dim))  # without weight decay, as in MAE
        self.head = self.pixel_layer(encoder.embed_dim)

    @staticmethod
    def masks(patch_size: int, seed: int, ratio: float = 0.6, unit: int = 2) -> GroupMask:
        """Return what draws the masks: random squares of ``unit`` by ``unit`` patches, 60 % of them.

        The paper's are of 32 pixels, two of its patches a side, on a grid of their own (sec. 3.2, table 1). GroupMask
        draws just these as single patches of that size; groups of (2, 2) patches would begin anywhere and overlap.
        """
        return GroupMask(unit * patch_size, ratio, "zeros", group_size=(1, 1), seed=seed)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return each pixel's absolute error, and which pixels count: the hidden ones.

        Args:
            images: ``(B, C, H, W)``, floating and normalised.
            mask: ``(B, gh, gw)`` bool, True = hidden, of patches or of units of several.

        Returns:
            ``(B, C, H, W)`` float32, and ``(B, 1, H, W)`` bool.
        """
        mask = self.on_grid(mask, images)
        patches = self.encoder.patch_embed(images)
        patches = torch.where(mask.flatten(1)[..., None], self.mask_token.to(patches.dtype), patches)
        predicted = self.head(self.encoded(self.encoder._pos_embed(patches)))
        wrong = self.to_images(predicted, images) - images
        return wrong.abs(), patch_to_pixel(mask, self.patch_size)


def as_autoencoder_weights(weights: dict[str, Tensor], autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Return the weights of an ``Autoencoder`` with a rival's encoder, whose features evaluate.py takes.

    Args:
        weights: The ``state_dict`` of a ``MAE`` or ``SimMIM``.
        autoencoder: One that was built with ``fuse="last"`` and no ``blocks``; its decoder stays as it is, untrained.
    """
    if autoencoder.blocks != [len(autoencoder.encoder.blocks)]:
        raise SystemExit(
            f"MAE and SimMIM train the last block's tokens: give --fuse last, and no --blocks; got blocks "
            f"{autoencoder.blocks}"
        )
    own = autoencoder.state_dict()
    return own | {name: weights[name] for name in own if name.startswith("encoder.")}


def flops(step: Callable[[], Tensor]) -> int:
    """Return the floating-point operations of the loss that ``step()`` gives and of its gradient.

    Those of matrix products alone, as PyTorch counts them: a multiplication and an addition are two.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        step().backward()
    return counter.get_total_flops()
