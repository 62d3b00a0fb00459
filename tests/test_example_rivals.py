"""MAE and SimMIM, which GMML is compared with: each against a step by hand, and what their encoders may see."""

# ruff: noqa: E402 (what is missing skips the file before it is imported)
from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

for library in ("accelerate", "kornia", "matplotlib", "safetensors", "sklearn", "timm", "torchvision"):
    pytest.importorskip(library)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
from reference.config import Config
from reference.model import Autoencoder, Classifier, build, masks, parameters
from reference.rivals import (
    MAE,
    Rival,
    SimMIM,
    as_autoencoder_weights,
    flops,
    normalised_per_patch,
    with_contrast_of,
)

from gmml_aug import patch_to_pixel

SETTINGS: dict[str, Any] = {
    "model": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "dim": 16, "depth": 4, "heads": 2,
    "blocks": None, "fuse": "last", "decoder_depth": 2, "ratio": (0.5, 0.5), "fill": ["noise"], "group_size": (1, 3),
    "seed": 0,
}  # fmt: skip
RIVALS = [MAE, SimMIM]


def config(**other: Any) -> Config:
    return Config(**(SETTINGS | other))


def made(kind: type[Rival], **settings: Any) -> Rival:
    torch.manual_seed(0)
    return kind(build(config(**settings), 3)[0].encoder)


def batch(kind: type[MAE] | type[SimMIM], size: int = 16, count: int = 3) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images, kind.masks(4, seed=0).sample(images, index=torch.arange(count)).mask


def loss_of(model: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
    errors, counted = model(images, mask)
    loss: Tensor = (errors * counted).sum() / (counted.sum() * images.shape[1])
    return loss


def normed(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    result: Tensor = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    return result


def through(block: Any, x: Tensor) -> Tensor:
    """One image's tokens ``(tokens, dim)`` through a block of timm's, head by head."""
    attention, dim = block.attn, x.shape[1]
    width = dim // attention.num_heads
    q, k, v = (normed(x, block.norm1) @ attention.qkv.weight.T + attention.qkv.bias).split(dim, 1)
    heads = []
    for h in range(attention.num_heads):
        part = slice(h * width, (h + 1) * width)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(1) @ v[:, part])
    x = x + torch.cat(heads, 1) @ attention.proj.weight.T + attention.proj.bias
    inner = normed(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    result: Tensor = x + gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return result


def embedded(encoder: Any, patch: Tensor) -> Tensor:
    token: Tensor = encoder.patch_embed.proj.weight.flatten(1) @ patch.flatten() + encoder.patch_embed.proj.bias
    return token


def encoded(encoder: Any, class_token: Tensor, tokens: list[Tensor]) -> Tensor:
    x = torch.stack([class_token, *tokens])
    for block in encoder.blocks:
        x = through(block, x)
    return normed(x, encoder.norm)[1:]


def patches_of(image: Tensor) -> list[Tensor]:
    return [image[:, r : r + 4, c : c + 4] for r in range(0, 16, 4) for c in range(0, 16, 4)]


def mae_by_hand(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    encoder, total, count = model.encoder, torch.zeros((), dtype=images.dtype), 0
    class_token = encoder.cls_token[0, 0] + encoder.pos_embed[0, 0]
    for image, hidden in zip(images, mask.flatten(1).tolist(), strict=True):
        patches = patches_of(image)
        visible = [i for i in range(16) if not hidden[i]]
        tokens = [embedded(encoder, patches[i]) + encoder.pos_embed[0, 1 + i] for i in visible]
        seen = encoded(encoder, class_token, tokens) @ model.embed.weight.T + model.embed.bias
        rows = [model.mask_token] * 16
        for place, i in enumerate(visible):
            rows[i] = seen[place]
        x = torch.stack(rows) + model.positions
        *blocks, norm, to_pixels = model.decoder
        for block in blocks:
            x = through(block, x)
        predicted = normed(x, norm) @ to_pixels.weight.T + to_pixels.bias
        for i in range(16):
            if hidden[i]:
                pixels = patches[i].flatten()
                target = (pixels - pixels.mean()) / (pixels.var(correction=0) + 1e-6).sqrt()
                total = total + (predicted[i] - target).pow(2).sum()
                count += len(target)
    return total / count


def simmim_by_hand(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    encoder, total, count = model.encoder, torch.zeros((), dtype=images.dtype), 0
    class_token = encoder.cls_token[0, 0] + encoder.pos_embed[0, 0]
    for image, units in zip(images, mask.tolist(), strict=True):
        patches = patches_of(image)
        hidden = [units[i // 4 // 2][i % 4 // 2] for i in range(16)]
        tokens = [
            (model.mask_token if hidden[i] else embedded(encoder, patches[i])) + encoder.pos_embed[0, 1 + i]
            for i in range(16)
        ]
        predicted = encoded(encoder, class_token, tokens) @ model.head.weight.T + model.head.bias
        for i in range(16):
            if hidden[i]:
                total = total + (predicted[i] - patches[i].flatten()).abs().sum()
                count += patches[i].numel()
    return total / count


@pytest.mark.parametrize(("kind", "by_hand"), [(MAE, mae_by_hand), (SimMIM, simmim_by_hand)])
def test_a_step_is_the_one_by_hand(kind: Any, by_hand: Any) -> None:
    model = made(kind, depth=6).double()  # whose decoder has two blocks
    images, mask = batch(kind)
    names, weights = zip(*model.named_parameters(), strict=True)
    losses = loss_of(model, images.double(), mask), by_hand(model, images.double(), mask)
    assert torch.allclose(*losses, rtol=1e-9)
    ours, theirs = (torch.autograd.grad(loss, weights) for loss in losses)
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-10), name


@pytest.mark.parametrize(("kind", "hidden"), [(MAE, 12), (SimMIM, 8)])
def test_every_image_hides_the_same_number(kind: Any, hidden: int) -> None:
    """75 % of 16 patches; 60 % of 4 units of 2x2 patches, rounded."""
    images, mask = batch(kind, count=50)
    counted = made(kind)(images, mask)[1]
    assert counted.shape == (50, 1, 16, 16)
    assert counted.flatten(1).sum(1).tolist() == [16 * hidden] * 50
    again = kind.masks(4, seed=0).sample(images[7:8], index=torch.tensor([7])).mask
    assert torch.equal(again[0], mask[7])  # by the sample's number, whatever the batch
    assert not torch.equal(kind.masks(4, seed=1).sample(images, index=torch.arange(50)).mask, mask)


def test_units_of_simmim_lie_on_a_grid_of_their_own() -> None:
    mask = SimMIM.masks(4, seed=0, ratio=0.5).sample((20, 3, 32, 32)).mask
    assert mask.shape == (20, 4, 4)
    patches = made(SimMIM, image_size=32).on_grid(mask, torch.zeros(20, 3, 32, 32))
    assert torch.equal(patches, mask.repeat_interleave(2, 1).repeat_interleave(2, 2))
    single = SimMIM.masks(4, seed=0, unit=1).sample((20, 3, 32, 32)).mask
    assert single.flatten(1).sum(1).tolist() == [round(0.6 * 64)] * 20


@pytest.mark.parametrize("kind", RIVALS)
def test_the_encoder_never_sees_hidden_pixels(kind: Any) -> None:
    model, seen = made(kind).eval(), []
    images, mask = batch(kind)
    model.encoder.norm_pre.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    model.encoder.blocks.register_forward_hook(lambda _, given, out: seen.append(out))
    hidden = patch_to_pixel(model.on_grid(mask, images), 4)
    others = torch.where(hidden, torch.randn_like(images), images)
    errors = [model(given, mask)[0] for given in (images, others)]
    tokens_in, out, other_in, other_out = seen
    assert torch.equal(tokens_in, other_in)
    assert torch.equal(out, other_out)
    assert tokens_in.shape[1] == 1 + (4 if kind is MAE else 16)
    assert torch.equal(errors[0][~hidden.expand_as(images)], errors[1][~hidden.expand_as(images)])
    assert not torch.isclose(errors[0], errors[1])[hidden.expand_as(images)].all()  # by the target alone
    # Visible patches do count for the prediction.
    seen.clear()
    model(torch.where(hidden, images, torch.randn_like(images)), mask)
    assert not torch.allclose(seen[1], out)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "deit_tiny_distilled_patch16_224"]
)
@pytest.mark.parametrize("kind", RIVALS)
def test_every_weight_learns(kind: Any, name: str) -> None:
    model = made(kind, model=name)
    for module in model.unused():
        module.requires_grad_(False)
    loss_of(model, *batch(kind)).backward()
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in learning.values())
    kept = parameters(model, 0.05)[0]
    assert kept["weight_decay"] == 0
    assert any(weight is model.mask_token for weight in kept["params"])


@pytest.mark.parametrize("kind", RIVALS)
def test_parts_of_several_processes_add_up(kind: Any) -> None:
    """As DDP has it: each part's sum over the count of all, times the parts, and then the mean."""
    model = made(kind)
    images, mask = batch(kind, count=4)
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        errors, counted = model(images[rows], mask[rows])
        parts.append((errors * counted).sum() * 2 / (2 * counted.sum() * 3))
    assert torch.allclose(torch.stack(parts).mean(), loss_of(model, images, mask))


@pytest.mark.parametrize("kind", RIVALS)
def test_in_bf16_errors_are_float32(kind: Any) -> None:
    model = made(kind)
    images, mask = batch(kind)
    with torch.autocast("cpu", torch.bfloat16):
        errors, _ = model(images, mask)
    assert errors.dtype == torch.float32
    assert torch.allclose(errors.mean(), model(images, mask)[0].mean(), rtol=0.05)
    loss_of(model, images, mask).backward()


@pytest.mark.parametrize("kind", RIVALS)
def test_what_was_pretrained_is_evaluated_as_gmml_is(kind: Any) -> None:
    model = made(kind)
    images, mask = batch(kind)
    optimizer = torch.optim.AdamW(parameters(model, 0.05), lr=1e-3)
    first = loss_of(model, images, mask)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model, images, mask).backward()
        optimizer.step()
    assert loss_of(model, images, mask) < first
    autoencoder = build(config(), 3)[0]
    autoencoder.load_state_dict(as_autoencoder_weights(model.state_dict(), autoencoder))
    with torch.no_grad():
        expected = model.encoder.forward_features(images)[:, 1:].mean(1)
        assert torch.allclose(autoencoder.pooled(images), expected, atol=1e-5)
    assert Classifier(autoencoder, 5)(images).shape == (3, 5)
    with pytest.raises(SystemExit, match="--fuse last"):
        as_autoencoder_weights(model.state_dict(), build(config(fuse="mean"), 3)[0])


@pytest.mark.parametrize("kind", RIVALS)
def test_it_begins_with_the_weights_of_gmml(kind: Any) -> None:
    torch.manual_seed(0)
    autoencoder = build(config(), 3)[0]
    ours = made(kind).state_dict()
    theirs = {name: weight for name, weight in autoencoder.state_dict().items() if name.startswith("encoder.")}
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert {name for name in ours if name.startswith("encoder.")} == theirs.keys()


def test_targets_normalised_per_patch() -> None:
    images = torch.randn(2, 3, 8, 12) * 5 + 3
    images[0, :, :4, :4] = 7
    normalised = normalised_per_patch(images, 4)
    assert normalised.shape == images.shape
    for b in range(2):
        for r in range(0, 8, 4):
            for c in range(0, 12, 4):
                patch = images[b, :, r : r + 4, c : c + 4]
                wanted = (patch - patch.mean()) / (patch.var(correction=0) + 1e-6).sqrt()
                assert torch.allclose(normalised[b, :, r : r + 4, c : c + 4], wanted, atol=1e-5)
    assert not normalised[0, :, :4, :4].any()
    assert normalised_per_patch(images, (4, 6)).shape == images.shape
    assert torch.allclose(with_contrast_of(images, normalised, 4), images, atol=1e-4)


def test_they_serve_the_loss_of_gmml() -> None:
    images, _ = batch(MAE)
    corrupted, mask = masks(config())(images, index=torch.arange(3))
    wrong = (build(config(), 3)[0](corrupted) - normalised_per_patch(images, 4)).abs() * patch_to_pixel(mask, 4)
    assert wrong.isfinite().all()
    assert wrong.sum() > 0


def test_mae_costs_less_a_step() -> None:
    size = {"image_size": 64, "patch_size": 8, "dim": 48, "depth": 6, "heads": 3, "group_size": (1, 3)}
    images = torch.randn(2, 3, 64, 64)
    gmml: Autoencoder = build(config(**size, fuse="mean"), 3)[0]
    corrupted, mask = masks(config(**size))(images)
    counted = patch_to_pixel(mask, 8)
    costs = {"GMML": flops(lambda: ((gmml(corrupted) - images).abs() * counted).sum())}
    for kind in (MAE, SimMIM):
        model, hidden = made(kind, **size), kind.masks(8, seed=0).sample(images).mask
        costs[kind.__name__] = flops(lambda model=model, hidden=hidden: loss_of(model, images, hidden))  # type: ignore[misc]
    print(", ".join(f"{name} {cost / costs['GMML']:.2f}" for name, cost in costs.items()))
    assert costs["MAE"] < 0.6 * costs["GMML"]
    assert costs["SimMIM"] < costs["GMML"]  # whose decoder has two layers more
    dense = nn.Linear(10, 20)
    # Forward, and the gradient of the weights: none goes to the input.
    assert flops(lambda: dense(torch.randn(3, 10)).sum()) == 2 * (2 * 3 * 10 * 20)


@pytest.mark.parametrize("kind", RIVALS)
def test_what_does_not_fit_is_refused(kind: Any) -> None:
    model = made(kind)
    images, mask = batch(kind)
    for wrong in (mask.float(), mask[0], mask[:2]):
        with pytest.raises(ValueError, match=r"the mask is \(B, gh, gw\) bool, for 3 images; got"):
            model(images, wrong)
    with pytest.raises(ValueError, match="a mask of 3x3 units does not fit 4x4 patches"):
        model(images, torch.ones(3, 3, 3, dtype=torch.bool))


def test_mae_needs_as_many_in_every_image_and_some_of_both() -> None:
    images, mask = batch(MAE)
    model = made(MAE)
    uneven = mask.clone()
    uneven[0] = True
    with pytest.raises(ValueError, match="every image has the same count"):
        model(images, uneven)
    for all_of in (torch.ones_like(mask), torch.zeros_like(mask)):
        with pytest.raises(ValueError, match="a visible and a hidden patch in every image"):
            model(images, all_of)
    with pytest.raises(SystemExit, match="divides by 8 and by twice --heads; got 12 and 2"):
        made(MAE, dim=12)
    with pytest.raises(SystemExit, match="got 40 and 8"):
        made(MAE, dim=40, heads=8)


@pytest.mark.parametrize(("fill", "several"), [("alien", False), ("alien-by-group", True)])
def test_groups_may_come_from_one_image_or_from_one_each(fill: str, several: bool) -> None:
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()
    corrupted = masks(config(fill=[fill], ratio=(0.7, 0.7), group_size=(1, 1)))(images).images
    donors = [set(image.unique().tolist()) - {float(i)} for i, image in enumerate(corrupted)]
    assert all((len(each) > 1) == several for each in donors)
