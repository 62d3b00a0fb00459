"""Hugging Face's ASTModel: groups and bars of log-mel spectrograms, `(B, 1, time, mel)`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gmml_aug import GroupMask, Noise, keep_indices, masked_indices, patch_to_pixel

from .training import falls

transformers = pytest.importorskip("transformers")

BARS = {(1, "all"): 1, ("all", 1): 1}
every_size = pytest.mark.parametrize("group_size", [None, BARS], ids=["groups", "bars"])


def spectrograms(batch: int = 4) -> Tensor:
    torch.manual_seed(0)
    smooth = functional.interpolate(torch.randn(batch, 1, 32, 8), size=(1024, 128), mode="bilinear")
    return 0.5 * (smooth - smooth.mean()) / smooth.std()


def ast(**changes: Any) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ASTConfig(**small, frequency_stride=16, time_stride=16, **changes)
    return transformers.ASTModel(config).eval()


@every_size
def test_the_hidden_tokens_of_ast_are_those_of_the_transposed_mask(group_size: Any) -> None:
    """It counts its patches band by band, and has a class and a distillation token before them."""
    model, clean = ast(), spectrograms()
    corrupted, mask = GroupMask(16, 0.5, group_size=group_size)(clean)
    assert corrupted.shape == (4, 1, 1024, 128)
    assert mask.shape == (4, 64, 8)
    with torch.no_grad():
        changed = (model.embeddings(corrupted[:, 0]) != model.embeddings(clean[:, 0])).any(-1)
        tokens = model(corrupted[:, 0]).last_hidden_state
    assert tokens.shape[:2] == changed.shape == (4, 2 + 512)
    in_its_order = mask.transpose(1, 2)
    assert torch.equal(changed, functional.pad(in_its_order.flatten(1), (2, 0)))
    assert changed.gather(1, masked_indices(in_its_order, num_prefix_tokens=2)).all()
    assert not changed.gather(1, keep_indices(in_its_order, num_prefix_tokens=2)).any()


def test_bars_run_from_end_to_end() -> None:
    """Each clip hides its exact count: whole moments and whole bands, and of one more bar the rest of the count."""
    mask = GroupMask(16, 0.5, group_size=BARS, seed=0).sample((200, 1, 1024, 128)).mask
    assert (mask.sum((1, 2)) == 256).all()
    moments, bands = mask.all(2, keepdim=True), mask.all(1, keepdim=True)
    rest = mask & ~moments & ~bands
    one_moment, one_band = rest.any(2).sum(1) <= 1, rest.any(1).sum(1) <= 1
    assert (one_moment | one_band).all()
    assert moments.any()
    assert bands.any()


@pytest.mark.parametrize(("size", "shape"), [((1, "all"), (64, 1)), (("all", 1), (1, 8))])
def test_one_kind_of_bar_alone(size: Any, shape: tuple[int, int]) -> None:
    mask = GroupMask(16, 0.5, group_size={size: 1}).sample((50, 1, 1024, 128)).mask
    lines = mask.amax(2 if shape[1] == 1 else 1)
    assert torch.equal(lines.reshape(50, *shape).expand(-1, 64, 8), mask)
    assert (lines.sum(1) == max(shape) // 2).all()


@every_size
def test_noise_has_the_mean_and_spread_of_the_data(group_size: Any) -> None:
    clean = spectrograms() * 2 - 4  # log-mels before they are normalised
    mean, std = clean.mean().item(), clean.std().item()
    corrupted, mask = GroupMask(16, 0.5, Noise(mean, std), group_size=group_size)(clean)
    hidden = patch_to_pixel(mask, 16)
    assert torch.equal(corrupted[~hidden], clean[~hidden])
    assert corrupted[hidden].mean().item() == pytest.approx(mean, abs=0.02)
    assert corrupted[hidden].std().item() == pytest.approx(std, rel=0.02)


def test_the_padding_of_short_clips_is_left_alone() -> None:
    """The extractor pads the 1, 3 and 5 seconds of these clips to 1,024 moments."""
    waves = [torch.randn(16000 * seconds).numpy() for seconds in (1, 3, 5)]
    extractor = transformers.ASTFeatureExtractor()
    values = extractor(waves, sampling_rate=16000, return_tensors="pt").input_values[:, None]
    patches = values.unflatten(2, (64, 16)).unflatten(4, (8, 16))
    valid = (patches != values[:, :, -1:, -1:, None, None]).all((3, 5))[:, 0]
    corrupted, mask = GroupMask(16, 0.5)(values, valid=valid)
    seen = valid.sum((1, 2))
    assert (seen.diff() > 0).all()
    assert torch.equal(mask.sum((1, 2)), (seen * 0.5).round().long())
    assert not (mask & ~valid).any()
    assert torch.equal(corrupted[:, :, 512:], values[:, :, 512:])


@every_size
def test_ast_learns_what_was_hidden(group_size: Any) -> None:
    clean, model, head = spectrograms(), ast(), nn.Linear(32, 256)
    target = functional.unfold(clean.mT, 16, stride=16).mT
    corrupted, mask = GroupMask(16, 0.5, Noise(0, 0.5), group_size=group_size)(clean)
    hidden = mask.transpose(1, 2).flatten(1)

    def loss() -> Tensor:
        tokens = model(corrupted[:, 0]).last_hidden_state[:, 2:]
        error: Tensor = (head(tokens)[hidden] - target[hidden]).abs().mean()
        return error

    falls(nn.ModuleList([model, head]), loss, share=0.9)
