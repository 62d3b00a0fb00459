"""The GMML network: a timm ViT that sees the whole corrupted image, and a light decoder (arXiv 2205.14986, sec. 3)."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Images ``(B, C, H, W)`` in, reconstructed images of the same shape out."""

    def __init__(self, image_size: int, patch_size: int, channels: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.encoder = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=channels,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            num_classes=0,
        )
        # Sine and cosine positions, as in MAE: timm's own start (0.02 wide) drowns in the embedding of tiny patches.
        assert self.encoder.pos_embed is not None
        grid = self.encoder.patch_embed.grid_size
        with torch.no_grad():
            self.encoder.pos_embed.copy_(build_sincos2d_pos_embed(list(grid), dim, interleave_sin_cos=True)[None])
        # Every second block of the upper half: 6, 8, 10 and 12 of a ViT of 12 blocks.
        self.blocks = [i - 1 for i in range(depth, 0, -2) if i >= depth / 2][::-1]
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.ConvTranspose2d(dim, channels, patch_size, stride=patch_size),
        )

    def features(self, images: Tensor) -> Tensor:
        """Return the fused tokens, the normed average of several blocks' outputs: ``(B, tokens, dim)``."""
        outputs = self.encoder.forward_intermediates(
            images, indices=self.blocks, output_fmt="NLC", intermediates_only=True
        )
        assert isinstance(outputs, list)
        fused: Tensor = self.encoder.norm(torch.stack(outputs).mean(0))
        return fused

    def forward(self, images: Tensor) -> Tensor:
        grid = self.encoder.patch_embed.dynamic_feat_size(images.shape[-2:])
        decoded: Tensor = self.decoder(self.features(images).transpose(1, 2).unflatten(2, grid))
        return decoded


class Classifier(nn.Module):
    """The average of the fused tokens, and one linear layer: images in, ``(B, classes)`` logits out."""

    def __init__(self, autoencoder: Autoencoder, classes: int) -> None:
        super().__init__()
        self.body = autoencoder
        self.head = nn.Linear(autoencoder.encoder.embed_dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body.features(images).mean(1))
        return logits
