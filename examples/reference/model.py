"""The GMML network: a timm ViT that sees the whole corrupted image, and a light decoder (arXiv 2205.14986, sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers.config import set_fused_attn
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import load_state_dict
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from gmml_aug import Alien, GroupMask

from .config import Config

if TYPE_CHECKING:
    from .data.sources import Data


METHODS = {"gmml": "group masking, GMML", "mae": "MAE", "simmim": "SimMIM"}


class Autoencoder(nn.Module):
    """Images ``(B, C, H, W)`` in, reconstructed images of the same shape out.

    Args:
        name: A model of timm, a ``VisionTransformer``.
        options: of ``timm.create_model(name, **options)``, with which its weights load.
        blocks: The blocks whose outputs are fused, counted from 1; ``None`` is every second one of the upper half
            (6, 8, 10 and 12 of a ViT of 12 blocks, as in the paper).
        fuse: ``"mean"`` (the paper's), ``"last"`` (of the blocks, alone) or ``"learned"`` (weights that sum to one).
        decoder_depth: Pointwise layers before the transposed convolution that gives pixels.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        blocks: Sequence[int] | None = None,
        fuse: str = "mean",
        decoder_depth: int = 2,
    ) -> None:
        super().__init__()
        # On a CPU a step with PyTorch's fused attention takes up to three times as long: its backward pass in bf16.
        set_fused_attn(torch.accelerator.is_available())
        try:
            encoder = timm.create_model(name, pretrained=False, **options)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise SystemExit(
                f"timm makes no {name} of {options}: {error}. --model takes a VisionTransformer of timm, such as "
                "vit_tiny_patch16_224"
            ) from None
        if not isinstance(encoder, VisionTransformer) or not isinstance(encoder.patch_embed, PatchEmbed):
            raise SystemExit(
                f"{name} is no VisionTransformer of timm that embeds patches; take one such as vit_tiny_patch16_224"
            )
        if encoder.embed_dim % 4:
            raise SystemExit(f"--dim is a multiple of 4, for sines and cosines of rows and columns; got {options}")
        self.encoder = encoder
        depth = len(encoder.blocks)
        blocks = blocks or tuple(i for i in range(depth, 0, -2) if i >= depth / 2)
        if min(blocks) < 1 or max(blocks) > depth or len(set(blocks)) < len(blocks):
            raise SystemExit(f"--blocks takes different numbers from 1 to {depth}, the encoder's depth; got {blocks}")
        self.blocks = sorted(blocks)[-1:] if fuse == "last" else sorted(blocks)
        self.fuse = fuse
        self.fusion = nn.Parameter(torch.zeros(len(self.blocks))) if fuse == "learned" else None
        # Sine and cosine positions, as in MAE: timm's own start (0.02 wide) drowns in the embedding of tiny patches.
        position = encoder.pos_embed
        if position is not None:
            grid = encoder.patch_embed.grid_size
            with torch.no_grad():
                spread = build_sincos2d_pos_embed(list(grid), encoder.embed_dim, interleave_sin_cos=True)
                position[:, position.shape[1] - len(spread) :].copy_(spread)
        dim, channels, patch = encoder.embed_dim, encoder.patch_embed.proj.in_channels, encoder.patch_embed.patch_size
        pointwise = [layer for _ in range(decoder_depth) for layer in (nn.Conv2d(dim, dim, 1), nn.GELU())]
        self.decoder = nn.Sequential(*pointwise, nn.ConvTranspose2d(dim, channels, patch, stride=patch))

    def unused(self) -> list[nn.Module]:
        """Return what no reconstruction passes through: the blocks after the last fused one, a pooling of timm's."""
        pooling = self.encoder.attn_pool
        return [*self.encoder.blocks[self.blocks[-1] :], *([] if pooling is None else [pooling])]

    def outputs(self, images: Tensor, blocks: list[int]) -> list[Tensor]:
        """Return the patch tokens ``(B, tokens, dim)`` after each of the blocks, counted from 1, before any norm."""
        tokens = self.encoder.forward_intermediates(
            images, indices=[block - 1 for block in blocks], output_fmt="NLC", intermediates_only=True
        )
        assert isinstance(tokens, list)
        return tokens

    def features(self, images: Tensor) -> Tensor:
        """Return the fused tokens ``(B, tokens, dim)``: the normed average of several blocks' outputs."""
        outputs = torch.stack(self.outputs(images, self.blocks))
        if self.fusion is None:
            fused: Tensor = self.encoder.norm(outputs.mean(0))
        else:
            fused = self.encoder.norm(torch.einsum("k,kbnd->bnd", self.fusion.softmax(0), outputs))
        return fused

    def pooled(self, images: Tensor) -> Tensor:
        """Return the mean ``(B, dim)`` of the fused tokens: the features of an image that are evaluated."""
        return self.features(images).mean(1)

    def decode(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Return the pixels that normed tokens ``(B, tokens, dim)`` stand for, in the shape of ``images``."""
        grid = self.encoder.patch_embed.dynamic_feat_size(images.shape[-2:])
        decoded: Tensor = self.decoder(tokens.transpose(1, 2).unflatten(2, grid))
        return decoded

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.features(images), images)


class Classifier(nn.Module):
    """The average of the fused tokens, and one linear layer: images in, ``(B, classes)`` logits out.

    The average is batch-normalised, without weights: what tells images apart in it is small beside what they share, and
    a new linear layer on it as it is learns too slowly for few labels.
    """

    def __init__(self, autoencoder: Autoencoder, classes: int) -> None:
        super().__init__()
        self.body = autoencoder
        self.norm = nn.BatchNorm1d(autoencoder.encoder.embed_dim, affine=False)
        self.head = nn.Linear(autoencoder.encoder.embed_dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body.pooled(images)))
        return logits


def parameters(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in groups for AdamW: biases, norms, positions and class tokens do not decay."""
    kept = {"pos_embed", "cls_token", "dist_token", "reg_token"}
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] in kept]
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=names)
    return groups


def build(config: Config, channels: int) -> tuple[Autoencoder, dict[str, Any]]:
    """Return the network of a run's settings, and the arguments that plain timm makes its encoder of."""
    options = {"img_size": config.image_size, "patch_size": config.patch_size, "in_chans": channels}
    options |= {"num_classes": 0, "fc_norm": False}
    shape = {"embed_dim": config.dim, "depth": config.depth, "num_heads": config.heads}
    options |= {name: value for name, value in shape.items() if value is not None}
    model = Autoencoder(config.model, options, config.blocks, config.fuse, config.decoder_depth)
    return model, {"model_name": config.model, **options}


def start_from(path: Path, model: Autoencoder) -> None:
    """Load the encoder's weights from a file of timm's, or of an earlier run; end here if they do not fit.

    Positions of another grid and patches of another size are resampled, as timm does it.
    """
    if not path.is_file():
        raise SystemExit(f"--init {path}: there is no such file")
    try:
        found = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch and safetensors raise what they like for other files
        why = f"{type(error).__name__}: {error}"
        raise SystemExit(f"--init {path} cannot be read as .safetensors or .pth ({why})") from None
    whole = {name: value for name, value in found.items() if not name.startswith(("decoder.", "fusion"))}
    state = checkpoint_filter_fn({name.removeprefix("encoder."): value for name, value in whole.items()}, model.encoder)
    own = model.encoder.state_dict()
    fits = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    missing = [name for name in own if name not in fits]
    if missing:
        raise SystemExit(
            f"--init {path} does not fit {len(missing)} of the encoder's {len(own)} weights, such as {missing[0]}: "
            "give --model, --dim, --depth, --heads, --patch-size as it was made with"
        )
    model.encoder.load_state_dict(fits)


def encoder_config(model: Autoencoder, options: dict[str, Any], data: Data, method: str) -> dict[str, Any]:
    """Return what ``timm.create_model`` makes the trained encoder of, with how its images are cut and normalised.

    It ends after the last fused block, for later ones are untrained, and pools the mean of the normed patch tokens. Its
    ``pretrained_cfg`` is all its own: nothing is left of timm's, which speaks of ImageNet.
    """
    if not isinstance(model.encoder, VisionTransformerDistilled):  # which timm pools by its class tokens alone
        options = options | {"global_pool": "avg", "pool_include_prefix": False}
    fused = ", ".join(map(str, model.blocks))
    of_timm: dict[str, Any] = model.encoder.pretrained_cfg  # type: ignore[assignment]
    about = {name: of_timm[name] for name in ("first_conv", "classifier", "fixed_input_size")}
    about |= {
        "tag": method,
        "description": f"Pretrained by {METHODS[method]} (gmml_aug) on {data.name}, without labels.",
        "notes": [f"Evaluated features: blocks {fused} (counted from 1), fused by {model.fuse}."],
        "num_classes": 0,
        "label_names": data.classes or None,
        **data.timm_config,
    }
    return {**options, "depth": model.blocks[-1], "pretrained_cfg": about}


def encoder_weights(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those of an ``Autoencoder``'s weights that the encoder of ``encoder_config`` loads."""
    return {name: weights[f"encoder.{name}"] for name in timm.create_model(**config).state_dict()}


def masks(config: Config, **other: Any) -> GroupMask:
    """Return the corruption of a run's settings, with other arguments in the place of some."""
    fills = (Alien("group") if name == "alien-by-group" else name for name in config.fill)
    asked: dict[str, Any] = {
        "ratio": config.ratio,
        "fill": dict.fromkeys(fills, 1.0),
        "group_size": config.group_size,
        "seed": config.seed,
    }
    return GroupMask(config.patch_size, **(asked | other))
